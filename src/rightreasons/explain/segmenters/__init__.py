"""Segmenters of what an image shows, which know no heatmap. They are for comparison: PPEPS-WGM (segment.py) cuts the heatmap itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from rightreasons.config import SegmentConfig
from rightreasons.explain.segmenters import felzenszwalb, grid, sam, slic

# From one image to the number of the region that each pixel belongs to, from 0 on.
Segmenter = Callable[[Float[Tensor, "channel height width"]], Int[Tensor, "height width"]]

# Each opens a segmenter. The argument is the folder or name of its weights, which only SAM has.
_SEGMENTERS: dict[str, Callable[[str], Segmenter]] = {
    "felzenszwalb": felzenszwalb.open_segmenter,
    "grid": grid.open_segmenter,
    "sam": sam.open_segmenter,
    "slic": slic.open_segmenter,
}


def open_segmenter(config: SegmentConfig, *, root: Path) -> Segmenter | None:
    """The segmenter that ``[segment] method`` names; None for PPEPS-WGM and for given segments. Weights in a folder are looked for from ``root`` on.

    Raises MissingExtra if its package is not installed, and ModelError if its weights cannot be loaded.
    """
    if config.method in ("ppeps-wgm", "given"):
        return None
    weights = config.weights or ""
    return _SEGMENTERS[config.method](str(root / weights) if (root / weights).is_dir() else weights)
