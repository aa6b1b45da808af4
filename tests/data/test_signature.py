"""Files are what their first bytes say, whatever they are called; and what is no image is named."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rightreasons.data.decode import decode_image, read_header
from rightreasons.data.signature import is_dicom, name_content
from rightreasons.errors import UnreadableImage

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.dcm", "a.IMA", "a.txt", "a"])
def test_images_under_other_names(tmp_path, kind, name):
    pixels = np.full((8, 9, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, kind)
    assert not is_dicom(tmp_path / name) and read_header(tmp_path / name).width == 9
    assert decode_image(tmp_path / name, mode="rgb").shape == (3, 8, 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"), (b"%PDF-1.7\n\x80\x01", "a PDF"),
        (b"PK\x03\x04" + bytes(50), "ZIP"), (b"\x1f\x8b\x08" + bytes(50), "gzip"), (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\n<!DOCTYPE html><html>", "web page"), (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"), (bytes(344) + b"n+1\0" + bytes(50), "NIfTI"),
        ("Grüße\n".encode() * 200, "a text file"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(tmp_path, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for source in (path, BytesIO(content)):
        with pytest.raises(UnreadableImage, match=words):
            decode_image(source, mode="grey")
    assert words in str(name_content(path))


def test_bytes_that_nothing_is_known_of(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x00\x01\x02" * 40)
    with pytest.raises(UnreadableImage, match="^not an image that can be read$"):
        decode_image(tmp_path / "a.png", mode="grey")
