#!/usr/bin/env bash
# One would guess that a VOI lookup table with 8-bit entries and more than 256 of
# them is applied as it stands: the entry at the place of the stored value.
# pydicom 3.0.2 (seen 2026-11-28) keeps the place in the type of the entries, so
# that places wrap at 256 and the upper part of the table is never used. The same
# table declared with 16-bit entries comes out right.
# Bright tissue turns dark in what a classifier is given, without a warning.
# Right value: DICOM PS3.3 C.11.2.1.1 (VOI LUT Module, LUT Descriptor). Cause:
# apply_voi in pydicom/pixels/processing.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi

table = np.arange(512) // 2  # a straight ramp from 0 to 255
stored = np.array([0, 100, 255, 256, 300, 511], dtype=np.uint16)


def render(entry_bits):
    item = Dataset()
    item.LUTDescriptor = [len(table), 0, entry_bits]
    item.add_new("LUTData", "US", table.tolist())
    image = Dataset()
    image.PixelRepresentation = 0
    image.BitsStored = 9
    image.VOILUTSequence = [item]
    return apply_voi(stored, image)


right = table[stored]
print("stored          ", stored.tolist())
print("by the standard ", right.tolist())
print("16-bit entries  ", render(16).tolist())
print("8-bit entries   ", render(8).tolist())
assert np.array_equal(render(16), right)
assert np.array_equal(render(8), table[stored % 256]), "the behaviour has changed"
PYTHON
