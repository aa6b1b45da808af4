"""What the pages draw: segments as outlines that can be pointed at, heatmaps and masks as transparent pictures."""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

# The end of a heatmap's colours: this share of its pixels lies below it, so that a single hot pixel does not make all others pale.
SCALE_QUANTILE = 0.995


def outline_segments(segments: Int[Tensor, "height width"], count: int) -> list[tuple[str, str]]:
    """For each segment the SVG path of its pixels and that of their rim, in units of pixels."""
    labels = segments.numpy()
    return [(fill_path(labels == segment), rim_path(labels == segment)) for segment in range(count)]


def fill_path(mask: np.ndarray) -> str:
    """The marked pixels of a (height, width) mask as an SVG path: a rectangle for each run in a row."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return "".join(f"M{x} {y}h{end - x}v1h-{end - x}z" for y, x, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def rim_path(mask: np.ndarray) -> str:
    """The rim of the marked pixels as an SVG path: a line for each straight piece between marked and unmarked pixels."""
    padded = np.pad(mask, 1)
    across, down = padded[1:, 1:-1] != padded[:-1, 1:-1], padded[1:-1, 1:] != padded[1:-1, :-1]
    return _lines(across, "M{start} {line}H{end}") + _lines(down.T, "M{line} {start}V{end}")


def _lines(edges: np.ndarray, form: str) -> str:
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return "".join(form.format(line=a, start=b, end=c) for a, b, c in zip(lines.tolist(), starts.tolist(), ends.tolist(), strict=True))


def heatmap_scale(heatmap: Float[Tensor, "height width"]) -> float:
    """The effect at which a heatmap's colours end."""
    return max(float(np.quantile(np.abs(heatmap.numpy()), SCALE_QUANTILE)), 1e-12)


def heatmap_png(heatmap: Float[Tensor, "height width"], scale: float) -> bytes:
    """A heatmap as PNG: red where the effect is positive, blue where it is negative, the stronger the less transparent."""
    strength = (heatmap / scale).clamp(-1, 1).numpy()
    pixels = np.zeros((*strength.shape, 4), dtype=np.uint8)
    pixels[strength > 0, :3] = (214, 39, 28)
    pixels[strength < 0, :3] = (26, 98, 201)
    pixels[..., 3] = (np.sqrt(np.abs(strength)) * 255).astype(np.uint8)
    return _png(pixels)


def mask_png(mask: Bool[Tensor, "height width"]) -> bytes:
    """A mask as PNG: orange where it is marked, transparent elsewhere."""
    return _png(np.where(mask.numpy()[..., None], np.array([230, 120, 0, 255], np.uint8), np.zeros(4, np.uint8)))


def mark_rectangle(mask: Bool[Tensor, "height width"], left: int, top: int, right: int, bottom: int) -> Bool[Tensor, "height width"]:
    """A copy of the mask with a rectangle marked; the edges are counted from 0, and both ends belong to it."""
    marked = torch.clone(mask)
    marked[top : bottom + 1, left : right + 1] = True
    return marked


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
