"""From a file to pixels: 8 and 16 bits, palettes, transparency, CMYK, EXIF's rotation and DICOM, at the size that is needed.

The one place where a file that somebody made is opened. Whatever a decoder raises on it becomes an ``UnreadableImage`` with the reason.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from rightreasons.data import dicom
from rightreasons.data.listing import Source
from rightreasons.data.mask_files import read_mask, shrink_mask
from rightreasons.data.signature import is_dicom, name_content
from rightreasons.data.window import Kind, Window, Windows, apply_window, choose_window, thin_out
from rightreasons.errors import MissingExtra, UnreadableImage

Mode = Literal["grey", "rgb"]

# 134 megapixels. A larger file is a decompression bomb, or not an input for a classifier.
MAX_PIXELS = 2**27
# One side is at most this many times the other: a longer strip is a mistake.
MAX_ASPECT = 100
# JPEG is decoded at no less than this many times the size needed, so that no difference from a full decoding can be seen.
DRAFT = 2
_LOSSY = ("JPEG", "MPO")
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
# Decoders warn about problems that they can read past, such as corrupt EXIF. What cannot be read is an error here and is named.
_HUSHED = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\."), 0)
_hushing = threading.Lock()
_decoders = 0


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded: its size as it is shown, in pixels, and whether it has colours.

    ``deep`` is its kind where something else must say what is black and what is white in it, ``format`` what its bytes are ("PNG").
    """

    width: int
    height: int
    mode: Mode
    deep: Kind | None = field(default=None, compare=False)
    format: str = field(default="", compare=False)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Ignores warnings of Pillow and pydicom while any thread decodes; afterwards the process's filters are as they were."""
    _count_decoders(1)
    try:
        yield
    finally:
        _count_decoders(-1)


def _count_decoders(change: int) -> None:
    global _decoders
    with _hushing:
        _decoders += change
        filters = warnings.filters
        assert isinstance(filters, list)  # the standard library only promises a sequence
        # The list is changed directly, because warnings.filterwarnings repeats every warning of the process, and catch_warnings would
        # undo what another thread has set meanwhile.
        if _decoders and _HUSHED not in filters[:1]:
            filters.insert(0, _HUSHED)
        while not _decoders and _HUSHED in filters:
            filters.remove(_HUSHED)


@_hushed()
def read_header(source: Source) -> Header:
    """Size and mode. Raises UnreadableImage for a file that is not an image, or that would not be decoded."""
    try:
        if is_dicom(source):
            return _dicom_header(source)
        with _opened(source) as image:
            return _header(image)
    except (UnreadableImage, MissingExtra):
        raise
    except Exception as error:  # decoders raise whatever they like on bytes that nobody made for them
        raise UnreadableImage(_say(error, source)) from error


@_hushed()
def decode_image(
    source: Source, *, mode: Mode, size: tuple[int, int] | None = None, window: Window | Windows | None = None
) -> UInt8[Tensor, "channel height width"]:
    """The pixels in 0 to 255, at ``size`` (height, width) or as they come.

    ``window`` is what black and white are in images of more than 8 bits. A pair goes before what a DICOM file says; windows by kind are for files
    that do not say it; with None that is guessed from the file alone. Transparency is laid on white. Raises UnreadableImage.
    """
    try:
        image = _open_dicom(source, window) if is_dicom(source) else _open(source, size, window)
        image = image.convert(_MODES[mode]) if image.mode != "F" else image
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(image)
    except (UnreadableImage, MissingExtra):
        raise
    except Exception as error:  # as above
        raise UnreadableImage(_say(error, source)) from error
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if pixels.ndim == 2:
        channels = np.repeat(pixels[None], 3, 0) if mode == "rgb" else pixels[None]
    else:
        # By NumPy: torch would wake its own threads for every image, in each of ours.
        channels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(channels)


@_hushed()
def sample_values(source: Source) -> np.ndarray:
    """Some values of an image of more than 8 bits, for ``guess_window``. Raises UnreadableImage."""
    try:
        header = read_header(source)
        with _memory(header.width * header.height):
            if is_dicom(source):
                return thin_out(dicom.read_values(_rewound(source)))
            with _opened(source) as image:
                return thin_out(_read_deep(source, image)[0])
    except (UnreadableImage, MissingExtra):
        raise
    except Exception as error:  # as above
        raise UnreadableImage(_say(error, source)) from error


@_hushed()
def decode_mask(source: Source, *, size: tuple[int, int] | None = None) -> Bool[Tensor, "height width"]:
    """A mask by the rules of ``mask_files``, at ``size`` (height, width) or as it comes. Raises UnreadableImage, with the rule that does not fit."""
    try:
        with _opened(source) as image:
            _header(image)
            with _memory(image.width * image.height):
                mask = torch.from_numpy(read_mask(_upright(image), lossy=image.format in _LOSSY))
    except UnreadableImage:
        raise
    except Exception as error:  # as above
        raise UnreadableImage(_say(error, source)) from error
    return mask if size is None or mask.shape == size else shrink_mask(mask, size)


def _open(source: Source, size: tuple[int, int] | None, window: Window | Windows | None) -> Image.Image:
    """An image in mode L or RGB, or F in 0 to 255 where it has more than 8 bits."""
    with _opened(source) as image:
        header = _header(image)
        if size is not None and image.format in ("JPEG", "MPO"):
            wanted = size if header.width == image.width else size[::-1]
            image.draft(None, (DRAFT * wanted[1], DRAFT * wanted[0]))
        with _memory(image.width * image.height):
            if header.deep is not None:
                return _open_deep(source, image, header.deep, window)
            shown = _upright(image)
            if shown.has_transparency_data:
                grey = shown.mode in ("LA", "La", "L", "1")
                shown = shown.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("L" if grey else "RGB")
            return shown if shown.mode in ("L", "RGB") else shown.convert("L" if shown.mode in _GREY else "RGB")


def _open_deep(source: Source, image: Image.Image, kind: Kind, window: Window | Windows | None) -> Image.Image:
    """An image of more than 8 bits through a window: F where it is grey, RGB where it has colours. Transparency is laid on white."""
    # TIFF may say that 0 is white.
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0  # pyright: ignore[reportAttributeAccessIssue]
    values, alpha = _read_deep(source, image)
    chosen = choose_window(window, kind, values)
    shown = apply_window(values, chosen)
    shown = 255 - shown if inverted else shown
    if alpha is not None:
        shown = shown * alpha + 255 * (1 - alpha)
    return Image.fromarray(shown if shown.ndim == 2 else np.rint(shown).astype(np.uint8))


def _read_deep(source: Source, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of an image of more than 8 bits, (height, width) or (height, width, 3), and its opacity in 0 to 1, where it has any.

    Of colours Pillow keeps the high byte of each value, whatever mode is asked for. They are read twice, the second time as if their bytes stood the
    other way round, which gives the low bytes. Raises UnreadableImage for colours in separate planes.
    """
    key = image.info.get("transparency")
    if image.mode in _DEEP:
        values = np.array(_upright(image))
        alpha = None if key is None else (values != key).astype(np.float32)
        return values, alpha
    raw = _raw_mode(image)
    if image.format == "TIFF" and image.tag_v2.get(284) == 2:  # pyright: ignore[reportAttributeAccessIssue]
        raise UnreadableImage("a TIFF of 16-bit colours in separate planes: save it with its colours together (PlanarConfiguration 1)")
    if raw == "LA;16B":
        # Grey and opacity, two bytes each, read as four channels of a byte.
        one, two, three, four = (plane.astype(np.uint16) for plane in np.moveaxis(_load_as(source, "RGBA"), -1, 0))
        return one * 256 + two, ((three * 256 + four) / np.float32(65535))
    name = raw.partition(";")[0].replace("RGBa", "RGBA")
    high, low = (f"{name};16B", f"{name};16L") if raw.endswith("B") else (f"{name};16L", f"{name};16B")
    values = _load_as(source, high).astype(np.uint16) * 256 + _load_as(source, low)
    if values.shape[-1] == 3:
        return values, None if key is None else (values != np.array(key)).any(-1, keepdims=True).astype(np.float32)
    alpha = values[..., 3:] / np.float32(65535)
    values = values[..., :3]
    # Colours that were multiplied by their opacity before they were stored.
    return (np.minimum(values / np.maximum(alpha, 1e-6), 65535) if raw.startswith("RGBa") else values), alpha


def _load_as(source: Source, raw: str) -> np.ndarray:
    """The pixels with the bytes of the file read in another order than it says."""
    with _opened(source) as image:
        assert isinstance(image, ImageFile)
        image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]
        return np.array(_upright(image))


def _raw_mode(image: Image.Image) -> str:
    """How the bytes of an image that is not decoded yet are to be read, in Pillow's words; RGB;16B is colours of 16 bits."""
    tiles = getattr(image, "tile", ())
    args = tiles[0].args if tiles else ""
    raw = str(args[0] if isinstance(args, tuple) else args)
    # What libtiff hands over is in the order of this machine.
    return f"{raw[:-1]}{'L' if sys.byteorder == 'little' else 'B'}" if raw.endswith(";16N") else raw


def _deep(image: Image.Image) -> Kind | None:
    """The kind of an image of more than 8 bits; None for others."""
    if image.mode == "F":
        return "floating point"
    if image.mode in _DEEP:
        return "whole numbers"
    raw = _raw_mode(image)
    planar = image.format == "TIFF" and image.tag_v2.get(284) == 2 and 16 in image.tag_v2.get(258, ())  # pyright: ignore[reportAttributeAccessIssue]
    deep = (image.mode in ("RGB", "RGBA") and raw.partition(";")[2] in ("16B", "16L")) or planar
    return "whole numbers" if deep else None


def _dicom_header(source: Source) -> Header:
    found = dicom.read_header(_rewound(source))
    return _check(Header(found.width, found.height, found.mode, "DICOM" if found.needs_window else None, "DICOM"))


def _open_dicom(source: Source, window: Window | Windows | None) -> Image.Image:
    header = _dicom_header(source)
    with _memory(header.width * header.height):
        return dicom.open_image(_rewound(source), window)


def _memory(pixels: int) -> contextlib.AbstractContextManager[object]:
    return _one_large if pixels > _LARGE else contextlib.nullcontext()


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
    mode: Mode = "grey" if image.mode in _GREY or _raw_mode(image) == "LA;16B" else "rgb"
    return _check(Header(width, height, mode, _deep(image), "JPEG" if image.format in _LOSSY else image.format or ""))


def _check(header: Header) -> Header:
    """Raises UnreadableImage for an image that is too large or too long and narrow."""
    width, height = header.width, header.height
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels are more than the {MAX_PIXELS // 10**6} megapixels that are decoded: make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(f"{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")
    return header


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The image in a file, its pixels not decoded yet."""
    with Image.open(_rewound(source)) as image:
        if image.format == "TIFF":
            # Pillow maps uncompressed files into memory by their upright size, which scrambles those that are stored on their side. It maps none
            # without a name.
            image.filename = ""  # pyright: ignore[reportAttributeAccessIssue] -- only images of files have one
        yield image


def _rewound(source: Source) -> Source:
    """A source to be read from its start. One of bytes is read by several threads, so that each takes its own."""
    return BytesIO(source.getbuffer()) if isinstance(source, BytesIO) else source


def _say(error: Exception, source: Source) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS // 10**6} megapixels: make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())
    if words.startswith("cannot identify image file"):
        content = name_content(source)
        return "not an image that can be read" + (f": {content}" if content else "")
    return words or type(error).__name__
