"""SLIC (Achanta et al. 2012): superpixels, by k-means on place and colour. Computed by scikit-image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rightreasons.errors import MissingExtra
from rightreasons.explain.segmenters.pixels import as_rgb

# About how many superpixels, and how much place counts against colour: scikit-image's own value for natural images.
SUPERPIXELS, COMPACTNESS = 50, 10.0


def open_segmenter(_: str) -> Callable[[Tensor], Tensor]:
    """The segmenter. Raises MissingExtra without scikit-image."""
    try:
        from skimage.segmentation import slic  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError as error:
        raise MissingExtra("scikit-image", "segmenters") from error
    return lambda image: _cut(slic, image)


def _cut(slic: Callable[..., Any], image: Float[Tensor, "channel height width"]) -> Int[Tensor, "height width"]:
    return torch.from_numpy(slic(as_rgb(image), n_segments=SUPERPIXELS, compactness=COMPACTNESS, start_label=0, channel_axis=-1)).long()
