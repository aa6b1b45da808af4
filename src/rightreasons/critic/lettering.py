"""Detects printed text in a picture, such as a patient's name burned into an X-ray. It is a rough check, good enough for a warning only.

Letters are thin strokes of strong contrast, and letters of one line have one height and stand close together on one baseline. So this keeps
structures no wider than a stroke (a top-hat filter, for light letters and for dark ones), cuts them into connected parts, and looks for a row of at
least five parts with one baseline and one grey. This is the approach of classical text finders (Wu, Manmatha and Riseman 1997), without their
learnt steps.

It misses handwriting, slanted and single letters, letters lower than 6 pixels or of little contrast, and letters that touch; it may take regular
patterns such as a ruler's marks for a line of text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageChops, ImageFilter

LONGEST_SIDE = 1024
# The widest stroke, and the lowest and highest letter, in pixels.
STROKE = 9
LETTER = (6, 72)
CONTRAST = 70
FEWEST_LETTERS = 5
# The tolerance for one grey: burned-in letters have the same grey except for JPEG's errors.
SAME_INK = 12.0


@dataclass(frozen=True)
class _Part:
    """The box around a connected part, how much of it is filled, and its strongest grey."""

    top: int
    bottom: int
    left: int
    right: int
    pixels: int
    peak: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def has_lettering(pixels: UInt8[np.ndarray, "height width channel"]) -> bool:
    """Whether something in the picture looks like a line of printed text."""
    grey = Image.fromarray(pixels).convert("L")
    grey.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    # Light strokes vanish if every pixel takes its darkest neighbour; dark strokes are the light ones of the negative.
    for picture in (grey, ImageChops.invert(grey)):
        opened = picture.filter(ImageFilter.MinFilter(STROKE)).filter(ImageFilter.MaxFilter(STROKE))
        strokes = np.asarray(ImageChops.subtract(picture, opened)) >= CONTRAST
        if _has_line([part for part in _connected_parts(strokes, np.asarray(picture)) if _is_letter(part)]):
            return True
    return False


def _is_letter(part: _Part) -> bool:
    """Whether a part is as high as a letter, at most as wide as an M or two touching letters, and not sparsely filled."""
    return (
        LETTER[0] <= part.height <= LETTER[1]
        and 0.1 * part.height <= part.width <= 2 * part.height
        and 0.15 <= part.pixels / (part.height * part.width)
    )


def _has_line(letters: list[_Part]) -> bool:
    """Whether at least five letters stand in a row, most of them on one baseline and of one grey."""
    letters = sorted(letters, key=lambda part: part.left)
    lines: list[list[_Part]] = []
    for part in letters:
        line = next((line for line in lines if _follows(line[-1], part)), None)
        if line is None:
            lines.append([part])
        else:
            line.append(part)
    return any(len(line) >= FEWEST_LETTERS and _is_even(line) for line in lines)


def _follows(one: _Part, other: _Part) -> bool:
    overlap = min(one.bottom, other.bottom) - max(one.top, other.top)
    low, high = sorted((one.height, other.height))
    return 0 < other.left - one.right + 2 <= high and overlap >= 0.6 * low and high <= 2 * low


def _is_even(line: list[_Part]) -> bool:
    """Whether at least 70 % share a baseline and a grey, and the forms differ: one repeated mark is not text."""
    tolerance = max(1.0, 0.12 * float(np.median([part.height for part in line])))
    bases, inks = [part.bottom for part in line], [part.peak for part in line]
    forms = {(part.width, part.height, part.pixels) for part in line}
    return _agree(bases, tolerance) and _agree(inks, SAME_INK) and len(forms) >= 3


def _agree(values: list[int], tolerance: float) -> bool:
    return float((np.abs(np.array(values) - np.median(values)) <= tolerance).mean()) >= 0.7


def _connected_parts(mask: Bool[np.ndarray, "height width"], grey: UInt8[np.ndarray, "height width"]) -> list[_Part]:
    """The eight-connected parts of a mask, from its runs: stretches of a row that touch a stretch of the row above belong together."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    left, right = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, below = first[row - 1], first[row]
        while above < first[row] and below < first[row + 1]:
            if left[above] <= right[below] and left[below] <= right[above]:
                parent[root(below)] = root(above)
            if right[above] < right[below]:
                above += 1
            else:
                below += 1
    boxes: dict[int, list[int]] = {}
    for run, row in enumerate(rows.tolist()):
        box = boxes.setdefault(root(run), [row, row, left[run], right[run], 0])
        box[1], box[2], box[3], box[4] = row, min(box[2], left[run]), max(box[3], right[run]), box[4] + right[run] - left[run]
    return [
        _Part(top, bottom + 1, west, east, pixels, int(grey[top : bottom + 1, west:east].max())) for top, bottom, west, east, pixels in boxes.values()
    ]
