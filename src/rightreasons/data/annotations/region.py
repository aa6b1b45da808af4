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


def check_upright(drawn: tuple[int, int], own: tuple[int, int] | None) -> None:
    """Raises ValueError for a mark on a picture that lies on its side: ``drawn`` is its (height, width), ``own`` that of the image as it is shown.

    A program that does not apply EXIF's rotation marks a file as it is stored; stretched to the image, such a mark would lie elsewhere.
    """
    if own is not None and not _proportional(drawn, own) and _proportional(drawn, (own[1], own[0])):
        raise ValueError(
            f"the mark is on a picture of {drawn[1]} x {drawn[0]} pixels, and the image as it is shown, with EXIF's rotation if it has one, has "
            f"{own[1]} x {own[0]}: mark it in a program that shows pictures upright, or turn the marks and the sizes in the file"
        )


def _proportional(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same proportions, but for rounding."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
