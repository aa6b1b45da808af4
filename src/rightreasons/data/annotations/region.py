"""Region: what every format is read into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from rightreasons.data.decode import MAX_PIXELS


@dataclass(frozen=True)
class Region:
    """What somebody marked on an image, under the name that the image has there. ``where`` says in which part of the file, for errors.

    ``draw`` gives the pixels, (height, width) of the image as the program knows it, and raises ValueError for pixels that are none; it is None for
    a mark that has no area. ``segment`` is the segment that the mark names ("S2"), if it names one.
    """

    image: str
    label: str
    where: str
    draw: Callable[[], Bool[Tensor, "height width"]] | None = None
    segment: str | None = None


@dataclass(frozen=True)
class Annotations:
    """The marks in a file, and the ``format`` as which it was read."""

    format: str
    regions: Sequence[Region]


def check_size(height: object, width: object) -> tuple[int, int]:
    """Height and width of an image as whole numbers. Raises ValueError for a size that no image has."""
    sides = []
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, int | float) or not side == side // 1 or side < 1:
            raise ValueError(f"the image has {width!r} x {height!r} pixels; expected whole numbers from 1 on")
        sides.append(int(side))
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"the image has {sides[1]} x {sides[0]} pixels, more than the {MAX_PIXELS // 10**6} megapixels that are read")
    return sides[0], sides[1]
