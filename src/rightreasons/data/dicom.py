"""DICOM: what the file says of its pixels is applied (rescale, window, photometric interpretation); nothing else of its header is read."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from rightreasons.data.listing import Source
from rightreasons.errors import MissingExtra, UnreadableImage

NO_NUMBERS = "it has pixels that are not numbers"
_COLOURED = ("RGB", "PALETTE COLOR")
# A transfer syntax, and where in a file it is looked for.
_DEFLATED, _HEAD = b"1.2.840.10008.1.2.1.99", 2**16
# What tells how pixels are shown. A patient's name, and whatever else a header has, is not even read.
_SHAPE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation")
_PIXELS = (
    *_SHAPE, "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit",
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
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

    dataset = _read(source, pixels=True)
    stored = _decode(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        return Image.fromarray(_to_bytes(coloured, 8 * coloured.itemsize))
    if _has_colour(dataset):
        return Image.fromarray(_to_bytes(stored, int(dataset.BitsStored)))
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    if window is not None:
        grey = apply_window(values, window)
    elif "VOILUTSequence" in dataset:
        # Of the bits that the table says, 8 or 16 mostly.
        top = 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        grey = apply_window(np.asarray(apply_voi(np.rint(values).astype(np.int32), dataset), np.float32), (0.0, top))
    elif "WindowCenter" in dataset and "WindowWidth" in dataset:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        grey = _apply_own_window(values, _first(dataset.WindowCenter), _first(dataset.WindowWidth), function)
    else:
        seen = values[~_padding(stored, dataset)]
        seen = seen if seen.size else values
        grey = apply_window(values, (float(seen.min()), float(seen.max())))
    return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey)


def apply_window(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """``values`` with the window's first at 0 and its second at 255, as float32. Raises UnreadableImage for values that are not numbers."""
    low, high = window
    if not np.isfinite(values).all():
        raise UnreadableImage(NO_NUMBERS)
    return np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.float32)


def _apply_own_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """DICOM PS3.3, C.11.2.1.2 (linear) and C.11.2.1.3 (the others), from black at 0 to white at 255."""
    if width < 1 if function == "LINEAR" else width <= 0:
        raise UnreadableImage(f"its window is {width:g} wide: say what is black and what is white, [data] window = [BLACK, WHITE]")
    if function == "SIGMOID":
        if not np.isfinite(values).all():
            raise UnreadableImage(NO_NUMBERS)
        # An exponent of 80 is black within less than a float32 can tell.
        return (255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80)))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return apply_window(values, (center - width / 2, center + width / 2))
    if function != "LINEAR":
        raise UnreadableImage(f"its VOI LUT function is {function}: LINEAR, LINEAR_EXACT and SIGMOID are known")
    return apply_window(values, (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2))


def _decode(dataset: Any) -> np.ndarray:  # noqa: ANN401 -- pydicom is an extra
    """The stored values. Raises UnreadableImage where nothing here can decompress them."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "PixelData" not in dataset:
        raise UnreadableImage("a DICOM file without pixels")
    # Files from before there were preambles say nothing of their transfer syntax, and files are read as what they turn out to be.
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
    try:
        return pixel_array(dataset)
    except (NotImplementedError, RuntimeError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
            raise
        words = " ".join(str(error).split())
        raise UnreadableImage(f"its pixels are compressed as {syntax.name}, and nothing here could decompress them: {words}") from error


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Where there is no image, between the two values of the header, or at the one."""
    if "PixelPaddingValue" not in dataset:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))))
    return (stored >= low) & (stored <= high)


def _first(value: Any) -> float:  # noqa: ANN401 -- one number, or several: the first is the one that is shown
    from pydicom.multival import MultiValue

    return float(value[0] if isinstance(value, MultiValue) else value)


def _to_bytes(pixels: np.ndarray, bits: int) -> np.ndarray:
    return pixels.astype(np.uint8) if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)


def _has_colour(dataset: Any) -> bool:  # noqa: ANN401
    return int(dataset.get("SamplesPerPixel") or 1) == 3 or dataset.get("PhotometricInterpretation") in _COLOURED


def _read(source: Source, *, pixels: bool) -> Any:  # noqa: ANN401
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("pydicom", "dicom") from error
    if _DEFLATED in _head(source):
        raise UnreadableImage("a deflated DICOM file, whose size cannot be told before it is unpacked: store it another way")
    dataset = pydicom.dcmread(source, force=True, stop_before_pixels=not pixels, specific_tags=list(_PIXELS if pixels else _SHAPE))
    # An element without a value says as much as none.
    for element in list(dataset):
        if element.is_empty:
            del dataset[element.tag]
    return dataset


def _head(source: Source) -> bytes:
    if isinstance(source, BytesIO):
        return bytes(source.getbuffer()[:_HEAD])
    with source.open("rb") as file:
        return file.read(_HEAD)
