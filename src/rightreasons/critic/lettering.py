"""Is there lettering in a picture, such as a patient's name burned into an X-ray? A light look, good for a warning and for nothing more.

Letters are thin strokes of strong contrast, and letters of one line are of one height and stand close together on one base. So: keep what is thinner
than a stroke can be (a top hat, for light letters and for dark ones), cut it into connected parts, and look for a row of at least five parts of
one base and one ink. This is the reasoning of classical text finders (Wu, Manmatha and Riseman 1997), without their learnt steps.

It misses handwriting, slanted and single letters, letters lower than 6 pixels or of little contrast, and letters that touch; regular patterns such as
a ruler's marks may look like a line of text to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageChops, ImageFilter

LONGEST_SIDE = 1024
# In pixels: the widest stroke, and the lowest and highest letter.
STROKE = 9
LETTER = (6, 72)
CONTRAST = 70
FEWEST_LETTERS = 5
# Letters that were burned in are of one grey, give or take what JPEG does to it.
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
    # Light strokes vanish when every pixel takes its darkest neighbour; dark ones are the light ones of the negative.
    for picture in (grey, ImageChops.invert(grey)):
        opened = picture.filter(ImageFilter.MinFilter(STROKE)).filter(ImageFilter.MaxFilter(STROKE))
        strokes = np.asarray(ImageChops.subtract(picture, opened)) >= CONTRAST
        if _has_line([part for part in _connected_parts(strokes, np.asarray(picture)) if _is_letter(part)]):
            return True
    return False


def _is_letter(part: _Part) -> bool:
    """High enough, at most as wide as an M or two letters that touch, and neither a speck nor a solid block."""
    return (
        LETTER[0] <= part.height <= LETTER[1]
        and 0.1 * part.height <= part.width <= 2 * part.height
        and 0.15 <= part.pixels / (part.height * part.width)
    )


def _has_line(letters: list[_Part]) -> bool:
    """Whether at least five letters stand in a row, most of them on one base and of one height."""
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
    """Whether seven in ten share a base and an ink, and the forms differ: one mark repeated is no text."""
    tolerance = max(1.0, 0.12 * float(np.median([part.height for part in line])))
    bases, inks = [part.bottom for part in line], [part.peak for part in line]
    forms = {(part.width, part.height, part.pixels) for part in line}
    return _agree(bases, tolerance) and _agree(inks, SAME_INK) and len(forms) >= 3


def _agree(values: list[int], tolerance: float) -> bool:
    return float((np.abs(np.array(values) - np.median(values)) <= tolerance).mean()) >= 0.7


def _connected_parts(mask: Bool[np.ndarray, "height width"], grey: UInt8[np.ndarray, "height width"]) -> list[_Part]:
    """The eight-connected parts of a mask, from its runs: stretches of a row that touch one of the row above belong together."""
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
