"""SAM (Kirillov et al. 2023): masks of everything in a picture, from weights that lie on this machine. Computed by transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from rightreasons.common.device import best_device
from rightreasons.errors import MissingExtra, ModelError
from rightreasons.explain.segmenters.pixels import as_rgb


def open_segmenter(weights: str) -> Callable[[Tensor], Tensor]:
    """The segmenter with the weights of a folder, or of that name in Hugging Face's cache. Nothing is downloaded.

    Raises MissingExtra without transformers, and ModelError where the weights are not, or are no SAM.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline
    except ImportError as error:
        raise MissingExtra("transformers", "models") from error
    try:
        model = AutoModelForMaskGeneration.from_pretrained(weights, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(weights, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"[segment] weights = {weights!r}: no SAM could be loaded from there ({str(error).splitlines()[0]}); name a folder that save_pretrained "
            "wrote, or a model that is in Hugging Face's cache. Nothing is downloaded"
        ) from error
    generate = pipeline("mask-generation", model=model, image_processor=processor, device=best_device())
    return lambda image: _cut(generate, image)


def _cut(generate: Callable[..., Any], image: Float[Tensor, "channel height width"]) -> Int[Tensor, "height width"]:
    picture = Image.fromarray((as_rgb(image) * 255).round().astype(np.uint8))
    return lay_masks([torch.as_tensor(mask, dtype=torch.bool).cpu() for mask in generate(picture)["masks"]], image.shape[1:])


def lay_masks(masks: Sequence[Bool[Tensor, "height width"]], shape: torch.Size) -> Int[Tensor, "height width"]:
    """Masks that may overlap as regions that do not: smaller ones lie on top. Pixels of no mask are region 0."""
    regions = torch.zeros(shape, dtype=torch.int64)
    for number, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum())), start=1):
        regions[mask] = number
    return regions
