"""An image as libraries for pictures have it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor


def as_rgb(image: Float[Tensor, "channel height width"]) -> Float[np.ndarray, "height width 3"]:
    """The image as red, green and blue in 0 to 1. Of more than three channels the first three are taken, of two the first."""
    colours = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray(colours.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy())
