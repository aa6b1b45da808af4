"""One item of somebody's own dataset, whatever its form, as an image in 0 to 1 and a label; or a DataError that says what came and what to do.

Taken: pairs, pairs with more behind them, and mappings, if it is clear which part is the image and which the label; PIL pictures, bytes of
0 to 255, arrays with the channels last; one-hot labels and whole numbers of any type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rightreasons.errors import DataError

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "pixels")
LABEL_KEYS = ("label", "labels", "target", "targets", "class")
# Resizing with a bicubic filter, or added noise, takes values a little past 0 and 1; a normalisation takes those of some image far past.
LOWEST, HIGHEST = -0.9, 2.0
# A map-style dataset in one line of Python, to be copied from an error.
WRAPPER = (
    "class Pairs(torch.utils.data.Dataset): __len__ = lambda self: len(data); __getitem__ = lambda self, i: ({image}, {label})"
    "  # and pass Pairs() in place of data"
)


def check_dataset(dataset: Dataset | DataLoader) -> None:
    """Raises DataError for a DataLoader: batches cannot be read in another order, and its dataset can."""
    if isinstance(dataset, DataLoader):
        raise DataError("a DataLoader came, and a dataset of single images is needed: pass the loader's own, loader.dataset")


def read_item(item: object, index: int) -> tuple[Float[Tensor, "channel height width"], int]:
    """Image and label of what ``dataset[index]`` gave. Raises DataError unless both are clear."""
    image, label = _split(item, index)
    return _read_image(image, index), _read_label(label, index)


def _split(item: object, index: int) -> tuple[object, object]:
    if isinstance(item, Mapping):
        found = [[key for key in item if key in keys] for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if [len(keys) for keys in found] == [1, 1]:
            return item[found[0][0]], item[found[1][0]]
        raise _wrong(index, f"a mapping with the keys {list(item)}", "data[i]['IMAGE']", "data[i]['LABEL']")
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        image, label, *more = item
        if not any(_is_number(part) for part in more):
            return image, label
        raise _wrong(index, f"{len(item)} parts ({_types(item)}), more than one of which could be the label", "data[i][0]", "data[i][1]")
    if isinstance(item, (tuple, list)):
        raise _wrong(index, f"{len(item)} part(s) ({_types(item)})", "data[i][0]", "labels[i]")
    raise _wrong(index, f"a {type(item).__name__}", "data[i]", "labels[i]")


def _read_image(image: object, index: int) -> Float[Tensor, "channel height width"]:
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(_opaque(image, index)))
    elif isinstance(image, (Tensor, np.ndarray)):
        pixels = torch.as_tensor(image)
    else:
        raise _wrong(index, f"a {type(image).__name__} as the image", "torchvision.io.decode_image(paths[i])", "labels[i]")
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise _wrong(index, f"an image of shape {tuple(pixels.shape)}, and (channel, height, width) is expected", "images[i]", "labels[i]")
    if pixels.shape[2] in (1, 3) and pixels.shape[0] > 4:  # the channels are last
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    pixels = pixels.float()
    low, high = (float(end) for end in pixels.aminmax())
    # Values that are not finite are reported by the stage that they would harm.
    if LOWEST <= low and high <= HIGHEST or not (math.isfinite(low) and math.isfinite(high)):
        return pixels
    raise DataError(f"image {index} has values from {low:.4g} to {high:.4g}, and 0 to 1 is expected: {_explain_range(low, high)}")


def _explain_range(low: float, high: float) -> str:
    if low < LOWEST:
        return (
            "it looks normalised. Leave the normalisation out of the dataset, and state it: find_shortcuts(..., "
            "preset=rr.Preset(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))) with the values that the model was trained with"
        )
    return "bytes are divided by 255 if they come as uint8; divide others in the dataset"


def _opaque(image: Image.Image, index: int) -> Image.Image:
    """The picture in grey or RGB. Raises DataError for a mode whose conversion is not clear."""
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("RGB", "P") and "transparency" not in image.info:
        return image.convert("RGB")
    raise DataError(
        f"image {index} is a PIL picture of mode {image.mode!r}, transparent or of another depth than 8 bits: convert it in the dataset as the "
        "model was trained, for example with image.convert('RGB')"
    )


def _read_label(label: object, index: int) -> int:
    if isinstance(label, str):
        came = f"the name {label!r} as its label, and the number of its class is expected, counted from 0"
        raise _wrong(index, came, "data[i][0]", "names.index(data[i][1])")
    try:
        values = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        raise _wrong(index, f"a {type(label).__name__} as its label", "data[i][0]", "int(labels[i])") from None
    if values.numel() == 1 and not values.is_complex() and float(values).is_integer():
        return int(values)
    if values.ndim == 1 and ((values == 0) | (values == 1)).all() and int(values.sum()) == 1:
        return int(values.argmax())
    came = f"{float(values):.4g}" if values.numel() == 1 else f"{label!r}"[:80]
    raise _wrong(index, f"{came} as its label, and the number of one class is expected", "data[i][0]", "int(labels[i])")


def _is_number(part: object) -> bool:
    """Whether a further part of an item could be the label as well."""
    return isinstance(part, (int, np.integer)) or (isinstance(part, Tensor) and part.numel() == 1 and not part.is_floating_point())


def _types(item: tuple | list) -> str:
    return ", ".join(type(part).__name__ for part in item)


def _wrong(index: int, came: str, image: str, label: str) -> DataError:
    return DataError(f"item {index} of the dataset has {came}. A pair (image, label) is expected: {WRAPPER.format(image=image, label=label)}")
