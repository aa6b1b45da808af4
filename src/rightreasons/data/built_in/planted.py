"""Shared by tasks with a planted shortcut: the splits that have one, which images carry it, and the names of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rightreasons.common.seeds import seeded

UNBIASED = "unbiased train"
# Renderings of three disjoint sets of photographs, and whether the shortcut goes with the class in them.
PLANS = {
    "train": ("train", True),
    "validation": ("validation", True),
    "balanced validation": ("validation", False),
    "test": ("test", False),
    UNBIASED: ("train", False),
}


def draw_carriers(labels: Int[Tensor, " image"], shares: Mapping[str, float], seed: int, *purpose: str) -> Bool[Tensor, " image"]:
    """Which images carry the shortcut: exactly this share of each class. ``shares`` are by the classes' names, in the order of the labels."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.values()):
        members = (labels == label).nonzero()[:, 0]
        order = members[torch.randperm(len(members), generator=seeded(seed, *purpose, label))]
        drawn[order[: round(share * len(members))]] = True
    return drawn


def name_groups(classes: Sequence[str], labels: Int[Tensor, " image"], attributes: Sequence[str]) -> list[str]:
    """Class and attribute of each image."""
    return [f"{classes[label]}, {attribute}" for label, attribute in zip(labels.tolist(), attributes, strict=True)]
