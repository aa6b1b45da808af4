"""What a mask's file marks, by rules that are written down in docs/data.md; a file that several of them could read is refused, with the rule.

People keep masks as black and white, as label numbers, by palettes, in colours and on transparent layers. Turned to grey and cut at half, a void
border becomes the mask, and a black drawing on a transparent layer nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from rightreasons.data.window import NO_NUMBERS
from rightreasons.errors import UnreadableImage

# The highest label number, and the most label numbers that an image may have.
MOST_LABELS = 32
# This value, beside label numbers, marks pixels that are neither object nor background.
VOID = 255
# Black in a compressed file, as a share of its brightest: what lies between this and its opposite is an edge, or not black and white at all.
DARK = 0.25
# A two-level mask that was compressed is at least so bright, in 0 to 255; label numbers do not survive that.
BRIGHT = 64
_BLACK = 32
_RULE = "a mask is black where nothing is marked and one brightness elsewhere, or has label numbers from 0, or a palette, or an alpha channel"


def read_mask(image: Image.Image, *, lossy: bool) -> Bool[np.ndarray, "height width"]:
    """What an opened file marks. ``lossy`` says that its format changes values. Raises UnreadableImage if that cannot be told."""
    if image.has_transparency_data and (marked := _read_alpha(image)) is not None:
        return marked
    if image.mode in ("P", "PA"):
        return _read_palette(image.convert("P") if image.mode == "PA" else image)
    if image.mode == "1":
        return np.array(image)
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return _read_levels(np.array(image), lossy=lossy)
    if image.mode in ("LA", "La"):
        return _read_levels(np.array(image.convert("LA"))[..., 0], lossy=lossy)
    return _read_colours(np.array(image.convert("RGB")), lossy=lossy)


def shrink_mask(mask: Bool[Tensor, "height width"], size: tuple[int, int]) -> Bool[Tensor, "new_height new_width"]:
    """A mask at another size: where more than half of a pixel is covered, and wherever there is a part too thin for that.

    Thin is what a square as wide as one of the new pixels does not fit into: lines and lettering stay, and large areas do not grow.
    """
    shares = F.interpolate(mask[None, None].float(), size, mode="area")
    wide = [math.ceil(old / new) for old, new in zip(mask.shape, size, strict=True)]
    if max(wide) == 1:
        return shares[0, 0] > 0.5
    thin = mask & ~_open(mask, wide)
    return ((shares > 0.5) | (F.adaptive_max_pool2d(thin[None, None].float(), size) > 0))[0, 0]


def _open(mask: Bool[Tensor, "height width"], wide: list[int]) -> Bool[Tensor, "height width"]:
    """The pixels of a mask that some rectangle of ``wide`` (height, width) within it covers."""
    height, width = wide
    if height > mask.shape[0] or width > mask.shape[1]:
        return torch.zeros_like(mask)
    inside = 1 - F.max_pool2d(1 - mask[None, None].float(), (height, width), 1)
    padded = F.pad(inside, (width - 1, width - 1, height - 1, height - 1))
    return F.max_pool2d(padded, (height, width), 1)[0, 0] > 0


def _read_alpha(image: Image.Image) -> Bool[np.ndarray, "height width"] | None:
    """What is opaque; None where opacity is the same everywhere, and says nothing."""
    pixels = np.array(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() == alpha.max():
        if alpha.max() == 0 and (pixels[..., :3] != pixels[0, 0, :3]).any():
            raise UnreadableImage(f"it is wholly transparent, and has colours below that: save it without its alpha channel ({_RULE})")
        return None if alpha.max() else np.zeros(alpha.shape, bool)
    opaque = alpha >= 128
    black = pixels[opaque][:, :3].max(-1, initial=0) < _BLACK
    if black.size and 0.01 < black.mean() < 0.99:
        raise UnreadableImage(
            "what is opaque in it is black in part: the mask may be what is opaque, or what is not black; save it without its alpha channel, or draw "
            f"with one colour on a transparent layer ({_RULE})"
        )
    return opaque


def _read_palette(image: Image.Image) -> Bool[np.ndarray, "height width"]:
    """By index, not by colour: every index but the background's and the void's 255. A palette of greys is read as the greys."""
    indices = np.array(image)
    used = np.unique(indices)
    palette = np.array(image.getpalette("RGB") or [], int).reshape(-1, 3)
    colours = np.zeros((256, 3), int)
    colours[: len(palette)] = palette
    shown = colours[used]
    if (shown == shown[:, :1]).all() and len(np.unique(shown[:, 0])) == len(used):
        return _read_levels(colours[indices, 0].astype(np.uint8), lossy=False)
    if len(used) > MOST_LABELS:
        raise UnreadableImage(f"it has a palette with {len(used)} colours in use, as a photograph has: a mask has at most {MOST_LABELS} ({_RULE})")
    objects = used[used != VOID] if (used < VOID).any() else used
    black = [int(index) for index in objects if not colours[index].any()]
    ground = black[0] if len(black) == 1 else 0
    if ground not in objects and len(used) > 1:
        raise UnreadableImage(f"its palette has no black and index 0 is not in use: which colour is the background cannot be told ({_RULE})")
    if VOID in used and not (objects != ground).any():
        raise UnreadableImage(
            f"beside the background it has index {VOID} alone, which is void in masks with palettes: give the object index 1 ({_RULE})"
        )
    return (indices != ground) & ((indices != VOID) | (used == VOID).all())


def _read_levels(values: np.ndarray, *, lossy: bool) -> Bool[np.ndarray, "height width"]:
    """Greys: one value beside black, label numbers, or black and white with soft edges."""
    if not np.isfinite(values).all():
        raise UnreadableImage(NO_NUMBERS)
    levels = np.unique(values)
    low, high = float(levels[0]), float(levels[-1])
    if low < 0:
        raise UnreadableImage(f"it has values below 0, down to {low:g} ({_RULE})")
    if len(levels) == 1:
        return values > 0
    if low > DARK * high:
        raise UnreadableImage(f"its values are {low:g} to {high:g}, and none is black: which of them is the background cannot be told ({_RULE})")
    if lossy and high < BRIGHT:
        raise UnreadableImage(
            f"its brightest pixel is {high:g} of 255, and it is compressed with loss: label numbers do not survive that; save it as PNG"
        )
    if not lossy:
        if len(levels) == 2 and low == 0:
            return values > 0
        labels = levels[levels != VOID]
        whole = (labels == np.rint(labels)).all()
        if low == 0 and whole and len(labels) > 1 and labels[-1] <= MOST_LABELS and len(labels) <= MOST_LABELS:
            return (values > 0) & (values != VOID)
    return _cut_in_two(values / high)


def _read_colours(pixels: np.ndarray, *, lossy: bool) -> Bool[np.ndarray, "height width"]:
    """Colours on black: every pixel that is not black. Greys in three channels are read as greys."""
    brightest = pixels.max(-1)
    if int((brightest - pixels.min(-1)).max()) <= (_BLACK if lossy else 0):
        return _read_levels(brightest, lossy=lossy)
    packed = pixels.astype(np.int64) @ np.array([2**16, 2**8, 1])
    used = np.unique(packed)
    if not lossy and len(used) <= MOST_LABELS:
        if used[0] != 0:
            raise UnreadableImage(f"it has {len(used)} colours, and none is black: which of them is the background cannot be told ({_RULE})")
        return packed > 0
    if int(brightest.max()) < BRIGHT:
        raise UnreadableImage(f"its brightest pixel is {brightest.max()} of 255: save it with brighter colours, as PNG ({_RULE})")
    return _cut_in_two(brightest / float(brightest.max()))


def _cut_in_two(shares: np.ndarray) -> Bool[np.ndarray, "height width"]:
    """Where shares of the brightest are above half. Raises UnreadableImage if much lies between dark and bright that is no edge."""
    between = torch.from_numpy((shares > DARK) & (shares < 1 - DARK))
    solid = int(_open(between, [5, 5]).sum())
    if solid > 0.005 * int((shares > DARK).sum()) or not (shares < DARK).any():
        raise UnreadableImage(f"{solid} of its pixels are neither dark nor bright, and no edge: save it as black and white ({_RULE})")
    return shares > 0.5
