"""Pastes segments into other images and counts how often that changes the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rightreasons.common.memory import BATCH_BYTES, LARGEST_BATCH, how_many
from rightreasons.data.loading import Batch, StoredImages
from rightreasons.networks.classifier import model_device


@dataclass(frozen=True)
class Pasted:
    """The answers on held-out images of these ``labels``: as they are, and with a judged-spurious segment of another class pasted in."""

    labels: Int[Tensor, " host"]
    clean: Int[Tensor, " host"]
    swapped: Int[Tensor, " host"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def changed(self) -> Bool[Tensor, " host"]:
        """Which answers the segment changes."""
        return self.clean != self.swapped

    @property
    def flip_rate(self) -> float | None:
        """The share of the answers that the segment changes; None if nothing was tried."""
        return int(self.changed.sum()) / len(self) if len(self) else None


def join_pasted(parts: Sequence[Pasted]) -> Pasted:
    """The answers of all batches together."""
    return Pasted(*(torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "clean", "swapped")))


def swap_flip_rate(
    model: nn.Module, hosts: Batch, donors: Batch, masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> float | None:
    """How often pasting a judged-spurious segment of another class onto a held-out image changes its prediction.

    ``masks`` belong to ``donors``. Hosts without a donor of another class are left out; None if no host is left.
    """
    return paste_into(model, hosts, donors.images, donors.labels, masks, generator).flip_rate


def paste_into(
    model: nn.Module,
    hosts: Batch,
    donors: Tensor | StoredImages,
    labels: Int[Tensor, " donor"],
    masks: Bool[Tensor, "donor height width"],
    generator: torch.Generator,
) -> Pasted:
    """The answers on one batch of hosts; hosts without a donor of another class are left out. ``donors`` are images with ``labels`` and ``masks``."""
    usable = masks.flatten(1).any(1)
    pairs = []
    for row, label in enumerate(hosts.labels.tolist()):
        others = (usable & (labels != label)).nonzero()[:, 0]
        if len(others):
            pairs.append((row, int(others[torch.randint(len(others), (), generator=generator)])))
    device = model_device(model)
    answers = [torch.zeros(2, 0, dtype=torch.int64)]
    model.eval()
    size = how_many(hosts.images[0].nbytes, BATCH_BYTES, LARGEST_BATCH) if pairs else 1
    for start in range(0, len(pairs), size):
        rows, chosen = (torch.tensor(column) for column in zip(*pairs[start : start + size], strict=True))
        clean = hosts.images[rows]
        swapped = torch.where(masks[chosen][:, None], donors[chosen], clean)
        with torch.no_grad():
            answers.append(torch.stack([model(images.to(device)).argmax(1).cpu() for images in (clean, swapped)]))
    before, after = torch.cat(answers, 1)
    return Pasted(hosts.labels[torch.tensor([row for row, _ in pairs], dtype=torch.int64)], before, after)
