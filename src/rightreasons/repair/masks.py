"""The corrective mask of each image: the pixels of its spurious segments (docs/method.md, eq. 7)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.records import Drawing, Segmentation, Selection, Value, Verdict, settle_verdicts


def build_masks(
    segmentation: Segmentation, selection: Selection, verdicts: Iterable[Verdict], *, kind: str, value: Value = "spurious"
) -> Bool[Tensor, "image height width"]:
    """A = sum_j R_j 1[C = j], with R_j = 1 if segment j is judged spurious (or another ``value``); unsure counts as 0.

    ``kind`` "effect" keeps only the pixels that carry the segment's positive effect, "segment" all of it.
    A later verdict on the same segment overrules an earlier one, and a person's overrules any model's.
    """
    position = {index: row for row, index in enumerate(selection.indices.tolist())}
    chosen = torch.zeros(len(selection), segmentation.shares.shape[1], dtype=torch.bool)
    for (index, segment), verdict in settle_verdicts(verdicts).items():
        chosen[position[index], segment] = verdict.value == value
    return mask_segments(segmentation, chosen, kind=kind)


def mask_segments(segmentation: Segmentation, chosen: Bool[Tensor, "image segment"], *, kind: str) -> Bool[Tensor, "image height width"]:
    """The pixels of the chosen segments of every image."""
    masks = torch.zeros(segmentation.segments.shape, dtype=torch.bool)
    for row, segment in chosen.nonzero().tolist():  # image by image, so that memory stays at one byte a pixel
        masks[row] |= segmentation.segments[row] == segment
    return masks.logical_and_(segmentation.effect) if kind == "effect" else masks


def apply_drawings(
    masks: Bool[Tensor, "image height width"],
    selection: Selection,
    drawings: Iterable[Drawing],
    *,
    value: Value = "spurious",
) -> Bool[Tensor, "image height width"]:
    """The masks with what people drew, which goes before the segments: painted pixels are spurious, erased ones are not.

    The masks of what is ``value`` "relevant" lose the painted pixels and gain none: who erases says what is not spurious, and no more.
    """
    row_of = {index: row for row, index in enumerate(selection.indices.tolist())}
    for index, drawing in {drawing.index: drawing for drawing in drawings}.items():
        mask = masks[row_of[index]]
        masks[row_of[index]] = (mask | drawing.painted) & ~drawing.erased if value == "spurious" else mask & ~drawing.painted
    return masks
