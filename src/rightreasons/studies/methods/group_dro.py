"""GroupDRO (Sagawa et al. 2020): groups with a high loss weigh more at every step. Labels used: groups of all images.

The paper trains from ImageNet weights; here every rival starts from the shortcut model, with the epochs, steps, batches and learning rate of ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.data.loading import Batch
from rightreasons.studies.methods.labels import TrainGroups
from rightreasons.studies.methods.method import WORST_GROUP, Bench, Method
from rightreasons.studies.methods.training import drawn_per_epoch, fine_tune_equally, worst_group_accuracy

# The paper's step size of the weights.
STEP = 0.01


class GroupLoss:
    """The loss of a batch, with the groups' weights q, which move at every call; they begin equal.

    ``groups`` has the group of each image of the dataset, as numbers from 0.
    """

    def __init__(self, groups: Int[Tensor, " image"]) -> None:
        self.groups = groups
        count = int(groups.max()) + 1
        self.weights = torch.full((count,), 1 / count)

    def __call__(self, batch: Batch, logits: Float[Tensor, "image class"]) -> Tensor:
        """Equation 15: the sum of q_g times the mean loss of group g, after the step of q. A group without an image in the batch has loss 0."""
        losses = F.cross_entropy(logits, batch.labels.to(logits.device), reduction="none")
        members = F.one_hot(self.groups[batch.indices], len(self.weights)).to(losses)
        means = losses @ members / members.sum(0).clamp(min=1)
        raised = self.weights.to(means) * torch.exp(STEP * means.detach())
        self.weights = raised / raised.sum()
        return (self.weights * means).sum()


def train(bench: Bench, labels: TrainGroups) -> nn.Module:
    """Fine-tunes on batches in which groups are equally likely. Raises ConfigError if a group has no training image."""
    labels.check_complete()
    groups, held_out = labels.train_groups, labels.held_out

    def draw(generator: torch.Generator) -> Int[Tensor, " drawn"]:
        return draw_balanced(groups, drawn_per_epoch(bench.run), generator)

    return fine_tune_equally(
        bench,
        draw,
        judge=lambda model: worst_group_accuracy(model, held_out.validation, held_out.validation_groups),
        loss=GroupLoss(groups),
    )


def draw_balanced(groups: Int[Tensor, " image"], count: int, generator: torch.Generator) -> Int[Tensor, " drawn"]:
    """``count`` dataset indices, drawn with replacement: each group is as likely as any other, and so is each image within its group."""
    chances = 1 / groups.bincount()[groups].double()
    return torch.multinomial(chances, count, replacement=True, generator=generator)


METHOD = Method(train, TrainGroups, WORST_GROUP)
