"""Felzenszwalb and Huttenlocher (2004): regions that grow together where they differ less than within. Computed by scikit-image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rightreasons.errors import MissingExtra
from rightreasons.explain.segmenters.pixels import as_rgb

# How readily regions grow together, and the Gaussian (in pixels) that smooths the picture before.
SCALE, SIGMA = 100.0, 0.5
# The smallest region, as a share of the picture: about the 4x4 patch of a 28x28 digit.
SMALLEST = 0.02


def open_segmenter(_: str) -> Callable[[Tensor], Tensor]:
    """The segmenter. Raises MissingExtra without scikit-image."""
    try:
        from skimage.segmentation import felzenszwalb  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError as error:
        raise MissingExtra("scikit-image", "segmenters") from error
    return lambda image: _cut(felzenszwalb, image)


def _cut(felzenszwalb: Callable[..., Any], image: Float[Tensor, "channel height width"]) -> Int[Tensor, "height width"]:
    smallest = max(1, round(SMALLEST * image[0].numel()))
    return torch.from_numpy(felzenszwalb(as_rgb(image), scale=SCALE, sigma=SIGMA, min_size=smallest, channel_axis=-1)).long()
