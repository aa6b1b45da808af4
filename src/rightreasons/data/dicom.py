"""DICOM: what the file says of its pixels is applied (rescale, window, photometric interpretation); nothing else of its header is read.

Enhanced objects keep rescale and window in functional groups (PS3.3 C.7.6.16.2.9 and 10); of these two alone are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from rightreasons.data.listing import Source
from rightreasons.data.window import NO_NUMBERS, Window, Windows, apply_window, choose_window
from rightreasons.errors import MissingExtra, UnreadableImage

_COLOURED = ("RGB", "PALETTE COLOR")
# The deflated transfer syntax, and the part of a file in which it is looked for.
_DEFLATED, _HEAD = b"1.2.840.10008.1.2.1.99", 2**16
# The elements that say how pixels are shown. A patient's name, and anything else in a header, is not even read.
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SHOWN = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", *_GROUPS,
)  # fmt: skip
_PIXELS = (
    *_SHOWN,
    *(f"{part}{colour}PaletteColorLookupTable{kind}" for colour in ("Red", "Green", "Blue")
      for part, kind in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))),
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_HOLDERS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class DicomHeader(NamedTuple):
    """Width and height in pixels, whether there are colours, and whether a window is missing that the pixels need."""

    width: int
    height: int
    mode: Literal["grey", "rgb"]
    needs_window: bool


def read_header(source: Source) -> DicomHeader:
    """What the header says. Raises UnreadableImage for a file with several frames, or none."""
    dataset = _read(source, pixels=False)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImage("a DICOM file without an image")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableImage(f"a DICOM file of {dataset.NumberOfFrames} frames: one image a file is expected")
    coloured = _has_colour(dataset)
    return DicomHeader(int(dataset.Columns), int(dataset.Rows), "rgb" if coloured else "grey", not coloured and _needs_window(dataset))


def open_image(source: Source, window: Window | Windows | None) -> Image.Image:
    """The image in mode RGB, or F in 0 (black) to 255: the modality's values, seen through ``window`` or through the file's own.

    A window given as numbers goes before the file's own; one by kind (``Windows``) is for files that have none. Values keep all their bits until
    then. Padding is black, as an image's background is shown. Raises UnreadableImage.
    """
    dataset = _read(source, pixels=True)
    stored = _decode(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return Image.fromarray(_apply_palette(stored, dataset))
    if _has_colour(dataset):
        bits = int(dataset.BitsStored)
        return Image.fromarray(_to_bytes(stored, bits) if bits <= 8 or not isinstance(window, tuple) else _round(apply_window(stored, window)))
    values = _apply_modality(stored, dataset)
    padding = _padding(stored, dataset)
    grey = values
    if isinstance(window, tuple):
        grey = apply_window(values, window)
    elif "VOILUTSequence" in dataset:
        table = _Table.of_item(dataset.VOILUTSequence[0], dataset)
        # Of the bits that the table says, 8 or 16 mostly.
        grey = apply_window(table.look_up(values), (0.0, 2.0**table.bits - 1))
    elif "WindowCenter" in dataset and "WindowWidth" in dataset:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        grey = _apply_own_window(values, _first(dataset.WindowCenter), _first(dataset.WindowWidth), function)
    elif not _needs_window(dataset):
        grey = apply_window(values, (0.0, 2.0 ** int(dataset.BitsStored) - 1))
    else:
        grey = apply_window(values, choose_window(window, "DICOM", _seen(values, padding)))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = 0
    return Image.fromarray(grey)


def read_values(source: Source) -> np.ndarray:
    """The values of a grey image in the modality's units, padding left aside, as a flat array. Raises UnreadableImage."""
    dataset = _read(source, pixels=True)
    stored = _decode(dataset)
    return _seen(_apply_modality(stored, dataset), _padding(stored, dataset))


@dataclass(frozen=True)
class _Table:
    """A look-up table of PS3.3 C.11.1.1 or C.11.2.1.1: its entries, the value of the first one, and the bits that entries have."""

    entries: np.ndarray
    first: int
    bits: int

    @classmethod
    def of_item(cls, item: Any, dataset: Any) -> _Table:  # noqa: ANN401 -- pydicom is an extra
        """The table of a modality's or a VOI LUT's item."""
        return cls.of(item.LUTDescriptor, item.LUTData, dataset)

    @classmethod
    def of(cls, descriptor: Any, data: Any, dataset: Any) -> _Table:  # noqa: ANN401
        """A table by its descriptor: count (0 is 65,536), first value, bits. Entries of 8 bits stand in bytes, or each in a word."""
        count, first, bits = (int(value) for value in descriptor)
        count = count & 0xFFFF or 2**16
        if isinstance(data, bytes):
            order = "<" if dataset.original_encoding[1] else ">"
            packed = bits <= 8 and len(data) < 2 * count
            entries = np.frombuffer(data, np.uint8) if packed else np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
        else:
            entries = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
            if len(entries) * 2 in (count, count + 1) and bits == 8:
                # Two entries of 8 bits in a word, the first one in its low byte.
                entries = entries.astype("<u2").view(np.uint8)
        if len(entries) < count:
            raise UnreadableImage(f"its look-up table has {len(entries)} entries, and {count} are announced")
        entries = entries[:count]
        return cls(entries, first, 16 if bits <= 8 and entries.max() > 255 else bits)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Each value's entry in the table; values below the first get the first entry, values beyond the last get the last."""
        # The first value is unsigned in some files though values are signed: 65,000 stands for -536 then.
        first = self.first - 2**16 if self.first >= 2**15 and values.min() < 0 else self.first
        if not np.isfinite(values).all():
            raise UnreadableImage(NO_NUMBERS)
        return self.entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(self.entries) - 1)]


def _apply_modality(stored: np.ndarray, dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Stored values to the modality's (PS3.3 C.11.1), as float32: by a table, or by slope and intercept."""
    if "ModalityLUTSequence" in dataset:
        return _Table.of_item(dataset.ModalityLUTSequence[0], dataset).look_up(stored).astype(np.float32)
    slope, intercept = _rescale(dataset)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32) if (slope, intercept) != (1.0, 0.0) else stored.astype(np.float32)


def _rescale(dataset: Any) -> tuple[float, float]:  # noqa: ANN401
    """Slope and intercept. PS3.3 C.11.1 wants both or neither; where one is missing it is the one that changes nothing, 1 or 0."""
    return float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))


def _apply_palette(stored: np.ndarray, dataset: Any) -> np.ndarray:  # noqa: ANN401
    """The colours of a palette (PS3.3 C.7.6.3.1.5 and 6), as bytes."""
    if "RedPaletteColorLookupTableData" not in dataset:
        from pydicom.pixels.processing import apply_color_lut

        descriptor = dataset.get("RedPaletteColorLookupTableDescriptor") or (0, 0, 0)
        if descriptor[2] == 8 and not 0 < descriptor[0] <= 256:
            raise UnreadableImage("its palette is segmented and has more than 256 entries of 8 bits, which is not read: store it as RGB")
        coloured = apply_color_lut(stored, dataset)
        return _to_bytes(coloured, 8 * coloured.itemsize)
    planes = []
    for colour in ("Red", "Green", "Blue"):
        data, descriptor = (dataset.get(f"{colour}PaletteColorLookupTable{part}") for part in ("Data", "Descriptor"))
        if data is None or descriptor is None:
            raise UnreadableImage(f"its palette has no {colour.lower()}")
        table = _Table.of(descriptor, data, dataset)
        planes.append(_to_bytes(table.look_up(stored), table.bits))
    return np.stack(planes, -1)


def _needs_window(dataset: Any) -> bool:  # noqa: ANN401
    """Whether nothing says how values are shown. Unsigned values of up to 8 bits without a rescale are shown as they are."""
    if "VOILUTSequence" in dataset or ("WindowCenter" in dataset and "WindowWidth" in dataset):
        return False
    rescaled = _rescale(dataset) != (1.0, 0.0) or "ModalityLUTSequence" in dataset
    return rescaled or not 0 < int(dataset.get("BitsStored") or 0) <= 8 or int(dataset.get("PixelRepresentation") or 0) == 1


def _seen(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    seen = values[~padding]
    return seen if seen.size else values.ravel()


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
    """The stored values. Raises UnreadableImage if nothing here can decompress them."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not any(holder in dataset for holder in _HOLDERS):
        raise UnreadableImage("a DICOM file without pixels")
    stored, high = int(dataset.get("BitsStored") or 0), dataset.get("HighBit")
    if "PixelData" in dataset and high is not None and int(high) != stored - 1:
        raise UnreadableImage(
            f"its header says that {stored} bits are stored below bit {high} (HighBit), where {stored - 1} is the only one that DICOM allows: "
            f"which bits are the image cannot be told; write the file anew with HighBit {stored - 1}"
        )
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
        raise UnreadableImage(
            f"its pixels are compressed as {syntax.name}, and nothing here could decompress them; store it uncompressed, as `gdcmconv --raw` and "
            f"`dcmdjpeg` do: {words}"
        ) from error


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray:  # noqa: ANN401
    """Where there is no image, between the two values of the header, or at the one."""
    if "FloatPixelPaddingValue" in dataset:
        return stored == np.float32(dataset.FloatPixelPaddingValue)
    if "PixelPaddingValue" not in dataset:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))))
    return (stored >= low) & (stored <= high)


def _first(value: Any) -> float:  # noqa: ANN401 -- one number, or several: the first is the one that is shown
    from pydicom.multival import MultiValue

    return float(value[0] if isinstance(value, MultiValue) else value)


def _to_bytes(pixels: np.ndarray, bits: int) -> np.ndarray:
    return pixels.astype(np.uint8) if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)


def _round(grey: np.ndarray) -> np.ndarray:
    return np.rint(grey).astype(np.uint8)


def _has_colour(dataset: Any) -> bool:  # noqa: ANN401
    return int(dataset.get("SamplesPerPixel") or 1) == 3 or dataset.get("PhotometricInterpretation") in _COLOURED


def _read(source: Source, *, pixels: bool) -> Any:  # noqa: ANN401
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("pydicom", "dicom") from error
    if _DEFLATED in _head(source):
        raise UnreadableImage("a deflated DICOM file, whose size cannot be told before it is unpacked: store it another way")
    dataset = pydicom.dcmread(source, force=True, stop_before_pixels=not pixels, specific_tags=list(_PIXELS if pixels else _SHOWN))
    _flatten_groups(dataset)
    # An element without a value counts as missing.
    for element in list(dataset):
        if element.is_empty:
            del dataset[element.tag]
    return dataset


def _flatten_groups(dataset: Any) -> None:  # noqa: ANN401
    """Takes rescale and window of the one frame out of the functional groups, as if they stood in the file itself; the groups are dropped."""
    for name in _GROUPS:
        groups = dataset.get(name)
        for group in list(groups or ())[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in list(group.get(macro) or ())[:1]:
                    for element in item:
                        if element.keyword in _SHOWN:
                            dataset[element.tag] = element
        if name in dataset:
            delattr(dataset, name)


def _head(source: Source) -> bytes:
    if isinstance(source, BytesIO):
        return bytes(source.getbuffer()[:_HEAD])
    with source.open("rb") as file:
        return file.read(_HEAD)
