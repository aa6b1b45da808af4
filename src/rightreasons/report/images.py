"""Pictures for the page, as data that stand in it: what the critic saw, heatmaps, and images in which one shortcut is lit."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

# The longer side in pixels of a picture on the page and of one in a gallery, and the most bytes that a PNG may have before it becomes a JPEG.
PAGE_SIDE, THUMB_SIDE = 600, 240
MOST_BYTES = 100_000
# How bright what does not belong to a shortcut is left, of 1.
DIMMED = 0.35
_LIGHT = (255, 221, 0)


def picture_url(png: bytes) -> str:
    """A picture of the critic's for the page; a photograph becomes a smaller JPEG, so that a page of many images can be sent by mail."""
    if len(png) <= MOST_BYTES:
        return _data_url(png)
    picture = Image.open(io.BytesIO(png))
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE))
    return _jpeg_url(picture)


def heatmap_url(heatmap: Float[Tensor, "height width"]) -> str:
    """Colours of a heatmap: red where the effect is positive, blue where it is negative, white where it is zero; 1 is the end of the scale."""
    strength = heatmap.clamp(-1, 1).numpy()
    fade = 1 - np.abs(strength)
    pixels = np.stack([np.where(strength > 0, 1, fade), fade, np.where(strength < 0, 1, fade)], -1)
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    image.thumbnail((PAGE_SIDE, PAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue())


def lit_url(png: bytes, mask: Bool[Tensor, "height width"]) -> str:
    """An image in which the pixels of ``mask``, which covers it, are as they are, framed in yellow, and all others are dimmed."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
    # The mask is enlarged with hard edges: each pixel of the network stays a square.
    lit = np.asarray(Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)) > 0
    pixels = np.where(lit[..., None], np.asarray(picture), (np.asarray(picture) * DIMMED).astype(np.uint8))
    pixels[_grow(lit, 2) & ~lit] = _LIGHT
    return _jpeg_url(Image.fromarray(pixels))


def proportions(png: bytes) -> str:
    """Width and height as CSS has them."""
    return " / ".join(map(str, Image.open(io.BytesIO(png)).size))


def _grow(marks: np.ndarray, by: int) -> np.ndarray:
    grown = np.pad(marks, by)
    grown = np.any([np.roll(grown, (row, column), (0, 1)) for row in range(-by, by + 1) for column in range(-by, by + 1)], axis=0)
    return grown[by:-by, by:-by]


def _jpeg_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
