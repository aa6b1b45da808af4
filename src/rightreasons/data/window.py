"""What is black and what is white in images of more than 8 bits that do not say so: guessed once for a whole data set, never file by file.

A guess for each file would show the same grey differently in each, and one burnt-in tag or hot pixel would darken all of its image: a shortcut that
the reader itself has made. Here files are looked at together, and few far extremes do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

from rightreasons.errors import UnreadableImage

Window = tuple[float, float]
# The kinds of files that need a window from elsewhere.
Kind = Literal["whole numbers", "floating point", "DICOM"]
KINDS: tuple[Kind, ...] = ("whole numbers", "floating point", "DICOM")
Windows = Mapping[Kind, Window]

NO_NUMBERS = "it has pixels that are not numbers"
# Bits that sensors have: white is the most that the fewest of them hold which hold the data.
BITS = (8, 10, 12, 14, 16)
# Resampling overshoots, and sensors do by an offset: by so much the data may pass white.
OVERSHOOT = 1.05
# At most this many pixels of one file are read for the guess.
MOST_PIXELS = 2**16
# One grey that stands apart is a tag or a broken pixel, if at most this share of an image has it.
LONE_SHARE = 0.02
# Beyond these percentiles of the data set's pixels, values count only as far as half of the range between them.
PERCENTILES = (0.1, 99.9)


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """``values`` with the window's first at 0 and its second at 255, as float32. Raises UnreadableImage for values that are not numbers."""
    low, high = window
    if not np.isfinite(values).all():
        raise UnreadableImage(NO_NUMBERS)
    return np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.float32)


def choose_window(window: Window | Windows | None, kind: Kind, values: np.ndarray) -> Window:
    """The window of one file: the given one, the data set's for files of its kind, or with None a guess from the file alone.

    Raises UnreadableImage for a kind of which no file was seen when the data set was opened, and as ``guess_window`` does.
    """
    if window is None:
        return guess_window(kind, [thin_out(values)])
    if isinstance(window, Mapping):
        if kind not in window:
            raise UnreadableImage(
                f"an image of {describe_kind(kind)} among images of another kind, with no word on what is black and white: set [data] window"
            )
        return window[kind]
    return window


def thin_out(values: np.ndarray) -> Float32[np.ndarray, " value"]:
    """Up to 65,536 of an image's values, evenly over it, without lone extremes. Raises UnreadableImage for values that are not numbers."""
    # An odd step, so that it does not fall on the same columns of every row.
    step = max(1, -(-values.size // MOST_PIXELS)) | 1
    some = values.ravel()[::step].astype(np.float32)
    if not np.isfinite(some).all():
        raise UnreadableImage(NO_NUMBERS)
    return _without_lone_extremes(some)


def guess_window(kind: Kind, images: Sequence[np.ndarray]) -> Window:
    """The window for images of one kind, of which ``images`` holds values as ``thin_out`` gives them.

    Whole numbers: from 0 to the most that the fewest of 8, 10, 12, 14 or 16 bits hold. Floating point: 0 to 1, or as whole numbers. DICOM: from the
    darkest to the brightest. Raises UnreadableImage if values fit none of these.
    """
    low, high = _find_range(np.concatenate(list(images)))
    if kind == "DICOM":
        return low, high
    if kind == "floating point" and low >= -0.1 * high and high <= 1.1:
        return 0.0, 1.0
    # Floating-point numbers up to 7 are neither 0 to 1 nor 0 to 255: as bytes they would be black.
    if low >= (-0.1 * high if kind == "floating point" else 0) and not (kind == "floating point" and 10 * high < 255):
        for bits in BITS:
            if high <= OVERSHOOT * (2**bits - 1):
                return 0.0, float(2**bits - 1)
    raise UnreadableImage(f"its values are {low:g} to {high:g}: say what is black and what is white, [data] window = [{low:g}, {high:g}]")


def describe_kind(kind: Kind) -> str:
    """The kind of an image, in words."""
    words = {"whole numbers": "more than 8 bits", "floating point": "floating-point numbers", "DICOM": "DICOM without a window of its own"}
    return words[kind]


def _without_lone_extremes(values: np.ndarray) -> np.ndarray:
    """Without the brightest grey, if few pixels have it and the next one is far; then the same for the darkest."""
    for sign in (1, -1):
        signed = sign * values
        top = signed.max()
        rest = signed[signed < top]
        few = 0 < rest.size and signed.size - rest.size <= LONE_SHARE * signed.size
        if few and top - rest.max() > (rest.max() - rest.min()) / 2:
            values = sign * rest
    return values


def _find_range(values: np.ndarray) -> Window:
    """The least and the greatest value, those far beyond nearly all others left aside."""
    low, high = np.percentile(values, PERCENTILES)
    reach = (high - low) / 2
    inside = values[(values >= low - reach) & (values <= high + reach)]
    return float(inside.min()), float(inside.max())
