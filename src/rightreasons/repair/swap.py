"""Pastes segments into other images and counts how often that changes the answer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rightreasons.common.memory import BATCH_BYTES, LARGEST_BATCH, how_many
from rightreasons.data.loading import Batch, StoredImages
from rightreasons.networks.classifier import model_device


def swap_flip_rate(
    model: nn.Module, hosts: Batch, donors: Batch, masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> float | None:
    """How often pasting a judged-spurious segment of another class onto a held-out image changes its prediction.

    ``masks`` belong to ``donors``. Hosts without a donor of another class are left out; None if no host is left.
    """
    return flip_rate([count_flips(model, hosts, donors.images, donors.labels, masks, generator)])


def count_flips(
    model: nn.Module,
    hosts: Batch,
    donors: Tensor | StoredImages,
    labels: Int[Tensor, " donor"],
    masks: Bool[Tensor, "donor height width"],
    generator: torch.Generator,
) -> tuple[int, int]:
    """How many of one batch of hosts change their prediction, and how many were tried. ``donors`` are images with ``labels`` and ``masks``."""
    usable = masks.flatten(1).any(1)
    pairs = []
    for row, label in enumerate(hosts.labels.tolist()):
        others = (usable & (labels != label)).nonzero()[:, 0]
        if len(others):
            pairs.append((row, int(others[torch.randint(len(others), (), generator=generator)])))
    flips, device = 0, model_device(model)
    model.eval()
    size = how_many(hosts.images[0].nbytes, BATCH_BYTES, LARGEST_BATCH) if pairs else 1
    for start in range(0, len(pairs), size):
        rows, chosen = (torch.tensor(column) for column in zip(*pairs[start : start + size], strict=True))
        clean = hosts.images[rows]
        swapped = torch.where(masks[chosen][:, None], donors[chosen], clean)
        with torch.no_grad():
            before, after = (model(images.to(device)).argmax(1) for images in (clean, swapped))
        flips += int((before != after).sum())
    return flips, len(pairs)


def flip_rate(counts: Iterable[tuple[int, int]]) -> float | None:
    """The flip rate over the counts of all batches; None if nothing was tried."""
    flips, tried = (sum(column) for column in zip(*counts, strict=True))
    return flips / tried if tried else None
