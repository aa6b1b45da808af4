#!/usr/bin/env bash
# One would guess that an image which Pillow opens without an error is the image
# in the file, whether its colours are stored pixel by pixel or plane by plane.
# Pillow 13.0.0 (seen 2026-11-28) opens an uncompressed 16-bit RGB TIFF with
# separate planes as another picture: each plane is read as 8-bit values, so that
# both bytes of a value become neighbouring pixels, and half the rows are lost. The
# same pixels stored together, or in separate planes with compression, come right
# (their high bytes).
# Microscopes and satellites write this form. A classifier trains on a scrambled
# picture, and every mask lies on the wrong place.
# Right value: TIFF 6.0, PlanarConfiguration and BitsPerSample; tifffile reads it.
# Cause: how PIL/TiffImagePlugin.py sets up the tiles of separate planes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import numpy as np
import tifffile
from PIL import Image

y, x = np.mgrid[:64, :64]
pixels = np.stack([x * 1000, y * 1000, np.full_like(x, 30000)], axis=2).astype(np.uint16)
high_byte = (pixels >> 8).astype(np.uint8)
planes = np.moveaxis(pixels, 2, 0)


def read(array, **form):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb", **form)
    assert np.array_equal(tifffile.imread(io.BytesIO(file.getvalue())), array)
    return np.asarray(Image.open(file))


together = read(pixels, planarconfig="contig")
separate = read(planes, planarconfig="separate")
compressed = read(planes, planarconfig="separate", compression="zlib")
for name, seen in (("together", together), ("separate, compressed", compressed), ("separate", separate)):
    print(f"{name:21} {100 * (seen == high_byte).mean():5.1f} % of values right; row 5:", seen[5, :3].tolist())
print(f"{'in the file':21}                           row 5:", high_byte[5, :3].tolist())
assert np.array_equal(together, high_byte) and np.array_equal(compressed, high_byte)
as_bytes = np.ascontiguousarray(planes, dtype="<u2").reshape(3, -1).view(np.uint8)[:, : 64 * 64].reshape(3, 64, 64)
assert np.array_equal(separate, np.moveaxis(as_bytes, 0, 2)), "the behaviour has changed"
PYTHON
