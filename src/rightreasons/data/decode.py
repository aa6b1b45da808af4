"""From a file to pixels: 8 and 16 bits, palettes, transparency, CMYK, EXIF's rotation and DICOM, at the size that is needed.

The one place where a file that somebody made is opened. Whatever a decoder raises on it becomes an ``UnreadableImage`` with the reason.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from rightreasons.data import dicom
from rightreasons.data.listing import Source
from rightreasons.errors import MissingExtra, UnreadableImage

Mode = Literal["grey", "rgb"]
Window = tuple[float, float]

# 134 megapixels. More than that in one file is a decompression bomb, or no input for a classifier.
MAX_PIXELS = 2**27
# One side is at most that many times the other: a strip is a mistake.
MAX_ASPECT = 100
# Bits that sensors have. What black and white are in a file of 16 bits is told by the fewest that hold its brightest pixel.
BITS = (8, 10, 12, 14, 16)
# JPEG is decoded at no less than this many times the size needed, which leaves nothing of the difference to a full decoding to be seen.
DRAFT = 2
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", "La", *_DEEP)
_MODES = {"grey": "L", "rgb": "RGB"}
# How pixels are stored, by EXIF's orientation, and what turns them upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Images of more pixels are decoded one at a time, so that memory does not grow with the number of threads.
_LARGE = 2**24
_one_large = threading.Lock()
# Decoders warn of what they can do without, corrupt EXIF and the like: it is read, or it is left out and named.
_HUSHED = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\."), 0)

# Pillow's own bound is lower, and a warning first.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded: its size as it is shown, in pixels, and whether it has colours."""

    width: int
    height: int
    mode: Mode


def read_header(source: Source) -> Header:
    """Size and mode. Raises UnreadableImage for what is no image, or will not be decoded."""
    _hush()
    try:
        if dicom.is_dicom(source):
            return _check(Header(*dicom.read_header(_rewound(source))))
        with Image.open(_rewound(source)) as image:
            return _header(image)
    except (UnreadableImage, MissingExtra):
        raise
    except Exception as error:  # decoders raise whatever they like on bytes that nobody made for them
        raise UnreadableImage(_say(error)) from error


def decode_image(
    source: Source, *, mode: Mode, size: tuple[int, int] | None = None, window: Window | None = None
) -> UInt8[Tensor, "channel height width"]:
    """The pixels in 0 to 255, at ``size`` (height, width) or as they come.

    ``window`` is what black and white are in images of more than 8 bits; by default what the file says (DICOM), or the fewest bits that hold
    its brightest pixel. Transparency is laid on white. Raises UnreadableImage.
    """
    _hush()
    try:
        image = _open_dicom(source, window) if dicom.is_dicom(source) else _open(source, size, window)
        image = image.convert(_MODES[mode]) if image.mode != "F" else image
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(image)
    except (UnreadableImage, MissingExtra):
        raise
    except Exception as error:  # as above
        raise UnreadableImage(_say(error)) from error
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if pixels.ndim == 2:
        channels = np.repeat(pixels[None], 3, 0) if mode == "rgb" else pixels[None]
    else:
        # By NumPy: torch would wake its own threads for every image, in each of ours.
        channels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(channels)


def decode_mask(source: Source, *, size: tuple[int, int] | None = None) -> Bool[Tensor, "height width"]:
    """A mask, true where the file is brighter than half of its brightest pixel; all false where it is black. Raises UnreadableImage."""
    _hush()
    try:
        with Image.open(_rewound(source)) as image:
            _header(image)
            opened = _upright(image)
            pixels = np.array(opened if opened.mode in (*_DEEP, "1", "L") else opened.convert("L"), dtype=np.float32)
    except UnreadableImage:
        raise
    except Exception as error:  # as above
        raise UnreadableImage(_say(error)) from error
    mask = torch.from_numpy(pixels > pixels.max() / 2)
    if size is not None and mask.shape != size:
        mask = torch.nn.functional.interpolate(mask[None, None].float(), size, mode="area")[0, 0] > 0.5
    return mask


def _open(source: Source, size: tuple[int, int] | None, window: Window | None) -> Image.Image:
    """An image in mode L or RGB, or F in 0 to 255 where it has more than 8 bits."""
    with Image.open(_rewound(source)) as image:
        header = _header(image)
        if size is not None and image.format in ("JPEG", "MPO"):
            wanted = size if header.width == image.width else size[::-1]
            image.draft(None, (DRAFT * wanted[1], DRAFT * wanted[0]))
        with _memory(image.width * image.height):
            shown = _upright(image)
            if shown.mode in _DEEP:
                values = np.array(shown, dtype=np.float32)
                return Image.fromarray(dicom.apply_window(values, window or _guess_window(values, shown.mode)))
            if shown.has_transparency_data:
                grey = shown.mode in ("LA", "La", "L", "1")
                shown = shown.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("L" if grey else "RGB")
            return shown if shown.mode in ("L", "RGB") else shown.convert("L" if shown.mode in _GREY else "RGB")


def _open_dicom(source: Source, window: Window | None) -> Image.Image:
    header = _check(Header(*dicom.read_header(_rewound(source))))
    with _memory(header.width * header.height):
        return dicom.open_image(_rewound(source), window)


def _memory(pixels: int) -> contextlib.AbstractContextManager[object]:
    return _one_large if pixels > _LARGE else contextlib.nullcontext()


def _hush() -> None:
    # Looked at each time and set where it is not first: filters belong to the process, and a context of another thread may have put back older ones.
    if not warnings.filters or warnings.filters[0] != _HUSHED:
        warnings.filterwarnings("ignore", module=_HUSHED[3].pattern)


def _orientation(image: Image.Image) -> int:
    """EXIF's, of an image whose pixels are not decoded yet; 1 is upright."""
    # Pillow turns TIFF by itself, and would decode a whole PNG to look for EXIF behind the pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # corrupt EXIF is no reason to leave out pixels that are not
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    image.load()
    return image if turn is None else image.transpose(turn)


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    mode: Mode = "grey" if image.mode in _GREY else "rgb"
    return _check(Header(width, height, mode))


def _check(header: Header) -> Header:
    """Raises UnreadableImage for an image that is too large, or a strip."""
    width, height = header.width, header.height
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels are more than the {MAX_PIXELS // 10**6} megapixels that are decoded: make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(f"{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")
    return header


def _guess_window(values: np.ndarray, mode: str) -> Window:
    """Black and white of an image of 16 bits, or of floating-point numbers in 0 to 1 or 0 to 255."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UnreadableImage(dicom.NO_NUMBERS)
    if mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    for bits in BITS:
        if low >= 0 and high < 2**bits:
            return 0.0, float(2**bits - 1)
    raise UnreadableImage(f"its values are {low:g} to {high:g}: say what is black and what is white, [data] window = [{low:g}, {high:g}]")


def _rewound(source: Source) -> Source:
    """A source to be read from its start. One of bytes is read by several threads, so that each takes its own."""
    return BytesIO(source.getbuffer()) if isinstance(source, BytesIO) else source


def _say(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS // 10**6} megapixels: make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())
    return "not an image that can be read" if words.startswith("cannot identify image file") else words or type(error).__name__
