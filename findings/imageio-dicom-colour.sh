#!/usr/bin/env bash
# One would guess that imageio reads an uncompressed colour image in DICOM as it reads a
# colour PNG, and several frames as several frames.
# imageio 2.38.1 (seen 2026-11-29) opens a .dcm with its own older reader, even where
# pydicom is installed and imageio's newer reader built on it would do. The older one takes
# the samples of a pixel for planes: an RGB image comes back as one grey picture made of the
# first third of the bytes, its colours side by side. Of three frames it gives one, and a
# signed 12-bit value that is not filled up to 16 bits loses its sign. The one warning is
# that the reader is deprecated.
# Right values: DICOM PS3.3 C.7.6.3.1 (Planar Configuration, Pixel Representation, High
# Bit). Cause: the shapes in imageio/plugins/_dicom.py, _get_shape_and_sampling.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check imageio==2.38.1 pydicom==3.0.2 numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import contextlib
import io
import warnings
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def write(name, pixels, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = SecondaryCaptureImageStorage, "1.2.3.1", "1.2.3"
    dataset.Modality, dataset.InstanceNumber, dataset.Rows, dataset.Columns = "OT", 1, 6, 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = elements.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    for key, value in elements.items():
        setattr(dataset, key, value)
    dataset.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    Path(name).mkdir()
    dataset.save_as(f"{name}/image.dcm", enforce_file_format=True)
    with warnings.catch_warnings(record=True) as told, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        seen = imageio.imread(f"{name}/image.dcm")
    assert all(warning.category is DeprecationWarning for warning in told), [str(warning.message) for warning in told]
    return seen


grey = np.arange(24, dtype=np.uint8).reshape(6, 4)
assert np.array_equal(write("grey", grey), grey)

colour = np.stack([grey, grey + 100, grey + 200], axis=2)
RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
seen = write("colour", colour, **RGB)
print("colour: in the file", colour.shape, "read as", seen.shape, "first row", seen[0].tolist())
newer = imageio.imread("colour/image.dcm", plugin="pydicom")
assert np.array_equal(newer, colour)
assert np.array_equal(seen, colour.reshape(3, 6, 4)[0]), "the behaviour has changed"

frames = np.stack([grey, grey + 100, grey + 200])
seen = write("frames", frames, NumberOfFrames="3")
print("frames: in the file", frames.shape, "read as", seen.shape)
assert np.array_equal(seen, frames[0]), "the behaviour has changed"

signed = np.arange(-12, 12).reshape(6, 4)
seen = write("signed", (signed & 0xFFF).astype(np.uint16), BitsStored=12, PixelRepresentation=1)
print("signed: in the file", signed[0].tolist(), "read as", seen[0].tolist())
assert np.array_equal(seen, signed & 0xFFF), "the behaviour has changed"
PYTHON
