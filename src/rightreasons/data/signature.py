"""What a file is by its first bytes, whatever it is called: a scanner's .IMA is DICOM, and a .dcm may be a PNG."""

from __future__ import annotations

import codecs
from io import BytesIO

from rightreasons.data.listing import Source

# How many bytes of a file are read to recognise it.
HEAD = 512
_DICOM_SUFFIXES = (".dcm", ".dicom")
_IMAGES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"P1", b"P2", b"P3", b"P4", b"P5",
    b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
# Files that people have among their images and that no decoder here reads, by their first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the image itself: fetch it with `git lfs pull`"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"NRRD", "an NRRD volume: save its slices as images"),
    (b"<!doctype html", "a web page, as a failed download leaves behind"),
    (b"<html", "a web page, as a failed download leaves behind"),
    (b"<svg", "an SVG drawing: save it as pixels"),
    (b"<?xml", "an XML document"),
)
_NIFTI = (b"n+1\0", b"ni1\0")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")


def read_head(source: Source) -> bytes:
    """The first bytes of a source. Raises OSError for a file that cannot be opened."""
    if isinstance(source, BytesIO):
        return bytes(source.getbuffer()[:HEAD])
    with source.open("rb") as file:
        return file.read(HEAD)


def is_dicom(source: Source) -> bool:
    """By DICOM's preamble (PS3.10, 7.1), or without one by a first element of group 0008; by its name only where nothing else is recognised."""
    head = read_head(source)
    if head[128:132] == b"DICM":
        return True
    if _is_other_image(head):
        return False
    # Files from before part 10 of the standard begin with (0008,00xx), in little endian: elements below 0x20 stand first.
    if head[:2] == b"\x08\0" and len(head) > 8 and head[2] < 0x20 and head[3] == 0:
        return True
    return not isinstance(source, BytesIO) and source.suffix.lower() in _DICOM_SUFFIXES


def name_content(source: Source) -> str | None:
    """What a file is that is no image, in words; None if its first bytes do not tell."""
    head = read_head(source)
    if not head:
        return "an empty file"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head[344:348] in _NIFTI:
        return "a NIfTI volume: save its slices as images"
    if head[4:8] == b"ftyp":
        return "a HEIC photograph: save it as JPEG or PNG" if head[8:12] in _HEIF else "a video"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    told = next((words for signature, words in _OTHERS if start.startswith(signature.lower())), None)
    return "a text file" if told is None and _is_text(head) else told


def _is_other_image(head: bytes) -> bool:
    return head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    try:
        # The last character may be cut in two.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
