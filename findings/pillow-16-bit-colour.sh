#!/usr/bin/env bash
# One would guess that Pillow opens 16-bit colour as it opens 16-bit grey, with
# all bits, or scales it by what the values span.
# Pillow 13.0.0 (seen 2026-11-28) has no mode for 16-bit colour and keeps the high
# byte of each value. Colour of a 12-bit sensor stored in 16 bits is left with 16
# levels, nearly black, from PNG and TIFF alike; grey keeps its 4096.
# Microscopy and raw photographs are stored so, and a classifier trained on the
# opened images sees almost nothing of them, without a warning.
# Sources: Pillow's documentation, Concepts, Modes, and the table _MODES in
# PIL/PngImagePlugin.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

GREY, COLOUR = 0, 2  # the colour types of PNG


def encode_png(pixels, colour_type):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encode_tiff(pixels, photometric):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric)
    return file.getvalue()


grey = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of a 12-bit sensor
colour = np.stack([grey, grey, grey], axis=2)
files = {
    "PNG grey": encode_png(grey, GREY),
    "PNG colour": encode_png(colour, COLOUR),
    "TIFF grey": encode_tiff(grey, "minisblack"),
    "TIFF colour": encode_tiff(colour, "rgb"),
}
levels = {}
for name, content in files.items():
    image = Image.open(io.BytesIO(content))
    pixels = np.asarray(image)
    levels[name] = len(np.unique(pixels))
    print(f"{name:12} mode {image.mode:5} {pixels.dtype}, {levels[name]} levels, largest {pixels.max()}")
assert levels == {"PNG grey": 4096, "PNG colour": 16, "TIFF grey": 4096, "TIFF colour": 16}, "the behaviour has changed"
PYTHON
