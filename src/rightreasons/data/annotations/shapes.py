"""Pixels inside polygons, rectangles and ellipses. A pixel is inside if its centre is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

# JSON may write either.
Number = int | float
Points = Sequence[Sequence[Number]]


def fill_polygon(points: Points, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The pixels inside a closed polygon of (x, y), by the even-odd rule. Raises ValueError unless it has three points, all of them finite."""
    corners = np.array(points, dtype=np.float64).reshape(-1, 2)
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(f"a polygon of {len(corners)} points; expected three or more, all of them finite")
    height, width = size
    ends = np.roll(corners, -1, 0)
    centres, inside = np.arange(width) + 0.5, np.zeros(size, dtype=bool)
    low, high = max(0, math.floor(corners[:, 1].min())), min(height, math.ceil(corners[:, 1].max()))
    for row in range(low, high):
        y = row + 0.5
        crossing = (corners[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = corners[crossing].T, ends[crossing].T
        crossings = np.sort(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        inside[row] = np.searchsorted(crossings, centres, side="right") % 2 == 1
    return torch.from_numpy(inside)


def fill_rectangle(
    left: Number, top: Number, width: Number, height: Number, size: tuple[int, int], *, turn: Number = 0.0, centred: bool = False
) -> Tensor:
    """The pixels inside a rectangle that is turned clockwise by ``turn`` degrees about its top left corner, or about its middle if ``centred``."""
    sine, cosine = math.sin(math.radians(turn)), math.cos(math.radians(turn))
    x, y = (left + width / 2, top + height / 2) if centred else (left, top)
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    return fill_polygon([(x + (px - x) * cosine - (py - y) * sine, y + (px - x) * sine + (py - y) * cosine) for px, py in corners], size)


def fill_ellipse(
    x: Number, y: Number, radius_x: Number, radius_y: Number, size: tuple[int, int], *, turn: Number = 0.0
) -> Bool[Tensor, "height width"]:
    """The pixels inside an ellipse around (x, y) that is turned clockwise by ``turn`` degrees. Raises ValueError unless both radii are positive."""
    if not (radius_x > 0 and radius_y > 0 and all(map(math.isfinite, (x, y, radius_x, radius_y, turn)))):
        raise ValueError(f"an ellipse with the radii {radius_x:g} and {radius_y:g}; expected finite numbers above 0")
    sine, cosine = math.sin(math.radians(turn)), math.cos(math.radians(turn))
    across, down = torch.arange(size[1]) + 0.5 - x, (torch.arange(size[0]) + 0.5 - y)[:, None]
    along, beside = across * cosine + down * sine, down * cosine - across * sine
    return (along / radius_x).square() + (beside / radius_y).square() <= 1
