"""SUBG (Idrissi et al. 2022): plain training on as many images of every group as the smallest has. Labels used: groups of all images.

The paper trains from ImageNet weights; here every rival starts from the shortcut model, with the epochs, steps, batches and learning rate of ours.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rightreasons.common.seeds import seeded
from rightreasons.studies.methods.labels import TrainGroups
from rightreasons.studies.methods.method import WORST_GROUP, Bench, Method
from rightreasons.studies.methods.training import draw_in_passes, drawn_per_epoch, fine_tune_equally, worst_group_accuracy


def train(bench: Bench, labels: TrainGroups) -> nn.Module:
    """Fine-tunes on one balanced subsample. Raises ConfigError if a group has no training image."""
    labels.check_complete()
    kept = subsample_groups(labels.train_groups, seeded(bench.run.config.run.seed, "subg"))
    held_out = labels.held_out
    return fine_tune_equally(
        bench,
        partial(draw_in_passes, kept, drawn_per_epoch(bench.run)),
        judge=lambda model: worst_group_accuracy(model, held_out.validation, held_out.validation_groups),
    )


def subsample_groups(groups: Int[Tensor, " image"], generator: torch.Generator) -> Int[Tensor, " kept"]:
    """The indices of random images, as many of each group as the smallest has (equation 14)."""
    members = [(groups == group).nonzero().flatten() for group in groups.unique()]
    smallest = min(len(images) for images in members)
    return torch.cat([images[torch.randperm(len(images), generator=generator)[:smallest]] for images in members])


METHOD = Method(train, TrainGroups, WORST_GROUP)
