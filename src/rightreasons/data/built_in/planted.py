"""Shared by tasks with a planted shortcut: the splits that have one, which images carry it, and the names of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.errors import DataError

UNBIASED = "unbiased train"
# Renderings of three disjoint sets of photographs, and whether the shortcut goes with the class in them.
PLANS = {
    "train": ("train", True),
    "validation": ("validation", True),
    "balanced validation": ("validation", False),
    "test": ("test", False),
    UNBIASED: ("train", False),
}


# The word of a variant for a try, and the part of a task's images that it keeps: one in so many.
FEW, KEPT = "few", 4


def choose_sizes(sizes: Mapping[str, int], variant: Sequence[str]) -> dict[str, int]:
    """How many photographs of each class go into each split: ``sizes``, or a fourth of them where the ``variant`` has few."""
    return {split: max(1, count // KEPT) if FEW in variant else count for split, count in sizes.items()}


# The word of a variant that says which share of the training images contradicts the shortcut: "solar:exceptions=0.01".
_EXCEPTIONS = "exceptions="


def read_exceptions(task: str, variant: Sequence[str]) -> tuple[tuple[str, ...], float | None]:
    """The other words of a task's variant, and the share of images that contradict its shortcut, where ``exceptions=SHARE`` states it.

    Raises DataError for a share that is no number from 0 to 0.5 (where half contradict it, a shortcut tells nothing), or for two of them.
    """
    stated = [word for word in variant if word.startswith(_EXCEPTIONS)]
    rest = tuple(word for word in variant if word not in stated)
    if not stated:
        return rest, None
    try:
        (share,) = (float(word.removeprefix(_EXCEPTIONS)) for word in stated)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.5:
        raise DataError(
            f"[data] path = {':'.join((task, *variant))!r}: {', '.join(stated)} was stated, and one share from 0 to 0.5 was expected, "
            f"such as {task}:{_EXCEPTIONS}0.05"
        )
    return rest, share


def draw_exceptions(labels: Int[Tensor, " image"], share: float, seed: int, *purpose: str) -> Bool[Tensor, " image"]:
    """Which images contradict the shortcut: exactly this share of each class."""
    classes = int(labels.max()) + 1
    return draw_carriers(labels, dict.fromkeys(map(str, range(classes)), share), seed, *purpose)


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
