"""DICOM: what the file says of its pixels is applied (rescale, window, photometric interpretation); nothing else of its header is read."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from rightreasons.data.listing import Source
from rightreasons.errors import MissingExtra, UnreadableImage

_COLOURED = ("RGB", "PALETTE COLOR")
# What tells how pixels are shown. A patient's name, and whatever else a header has, is not even read.
_SHAPE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation")
_PIXELS = (
    *_SHAPE, "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{part}{colour}PaletteColorLookupTable{kind}" for colour in ("Red", "Green", "Blue")
      for part, kind in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))),
    "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip


def is_dicom(source: Source) -> bool:
    """By its first bytes, or by its name: old files have no preamble."""
    if isinstance(source, BytesIO):
        return bytes(source.getbuffer()[128:132]) == b"DICM"
    if source.suffix.lower() in (".dcm", ".dicom"):
        return True
    # All other formats are told by their suffix; only files without one are looked into.
    if source.suffix.lower() and not source.suffix[1:].isdigit():
        return False
    with source.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_header(source: Source) -> tuple[int, int, Literal["grey", "rgb"]]:
    """Width and height in pixels, and "grey" or "rgb". Raises UnreadableImage for a file with several frames, or none."""
    dataset = _read(source, pixels=False)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImage("a DICOM file without an image")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableImage(f"a DICOM file of {dataset.NumberOfFrames} frames: one image a file is expected")
    return int(dataset.Columns), int(dataset.Rows), "rgb" if _has_colour(dataset) else "grey"


def open_image(source: Source, window: tuple[float, float] | None) -> Image.Image:
    """The image in mode RGB, or F in 0 (black) to 255: the modality's values, seen through ``window`` or through the file's own.

    A file without a window is shown from its darkest to its brightest value, padding left aside. Until then values keep all their bits.
    """
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    dataset = _read(source, pixels=True)
    stored = pixel_array(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        return Image.fromarray((coloured >> 8).astype(np.uint8) if coloured.dtype == np.uint16 else coloured.astype(np.uint8), "RGB")
    if _has_colour(dataset):
        return Image.fromarray(_to_bytes(stored, int(dataset.BitsStored)), "RGB")
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    if window is not None:
        grey = apply_window(values, window)
    elif "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        grey = _apply_own_window(stored, values, dataset)
    else:
        seen = values[stored != dataset.PixelPaddingValue] if "PixelPaddingValue" in dataset else values
        seen = seen if seen.size else values
        grey = apply_window(values, (float(seen.min()), float(seen.max())))
    return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey)


def apply_window(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """``values`` with the window's first at 0 and its second at 255, as float32."""
    low, high = window
    return np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.float32)


def _apply_own_window(stored: np.ndarray, values: np.ndarray, dataset: Any) -> np.ndarray:  # noqa: ANN401 -- pydicom is an extra
    """The file's first window, or its table, by pydicom; scaled by the darkest and the brightest that it can give."""
    from pydicom.pixels.processing import apply_voi_lut, apply_windowing

    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_window(np.asarray(apply_voi_lut(np.rint(values).astype(np.int32), dataset), np.float32), (0, 2**bits - 1))
    ends = apply_windowing(np.array([-1e9, 1e9], dtype=np.float64), dataset)
    return apply_window(np.asarray(apply_windowing(values.astype(np.float64), dataset), np.float32), (float(ends[0]), float(ends[1])))


def _to_bytes(pixels: np.ndarray, bits: int) -> np.ndarray:
    return pixels.astype(np.uint8) if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)


def _has_colour(dataset: Any) -> bool:  # noqa: ANN401
    return int(dataset.get("SamplesPerPixel") or 1) == 3 or dataset.get("PhotometricInterpretation") in _COLOURED


def _read(source: Source, *, pixels: bool) -> Any:  # noqa: ANN401
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("pydicom", "dicom") from error
    return pydicom.dcmread(source, force=True, stop_before_pixels=not pixels, specific_tags=list(_PIXELS if pixels else _SHAPE))
