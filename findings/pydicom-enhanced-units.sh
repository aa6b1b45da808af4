#!/usr/bin/env bash
# One would guess that pydicom's helpers for rescaling and windowing find the
# slope and the window of an enhanced CT, which keeps them in its functional
# groups, or say that they did not.
# pydicom 3.0.2 (seen 2026-11-28) looks at top-level elements alone: an enhanced
# image comes back as stored values, although the same elements at the top level
# of a classic image are applied.
# A data set that mixes scanners then holds two scales of grey, and a classifier
# can tell the scanner from the brightness.
# Places of the elements: DICOM PS3.3 C.7.6.16.2.9 (Pixel Value Transformation)
# and C.7.6.16.2.10 (Frame VOI LUT). Cause: apply_modality_lut and
# apply_windowing in pydicom/pixels/processing.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage


def elements(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def render(dataset):
    return apply_windowing(apply_modality_lut(stored, dataset), dataset)


stored = np.array([0, 864, 1064, 1264, 3000], dtype=np.uint16)
pixels = {"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0, "BitsStored": 12}
rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
window = {"WindowCenter": 40, "WindowWidth": 400}

classic = elements(SOPClassUID=CTImageStorage, **pixels, **rescale, **window)
shared = elements(
    PixelValueTransformationSequence=[elements(**rescale)], FrameVOILUTSequence=[elements(**window)]
)
enhanced = elements(
    SOPClassUID=EnhancedCTImageStorage,
    NumberOfFrames=1,
    SharedFunctionalGroupsSequence=[shared],
    PerFrameFunctionalGroupsSequence=[Dataset()],
    **pixels,
)
print("stored           ", stored.tolist())
print("classic CT       ", render(classic).round().tolist())
print("enhanced CT      ", render(enhanced).tolist())
assert np.array_equal(apply_modality_lut(stored, classic), stored - 1024.0)
assert not np.array_equal(render(classic), stored)
assert np.array_equal(render(enhanced), stored), "the behaviour has changed"
PYTHON
