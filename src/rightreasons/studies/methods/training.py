"""Fine-tuning of the shortcut model with the budget that every method has: ours' epochs, steps, batch size, learning rate and trained layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.networks.classifier import copy_model, model_device
from rightreasons.networks.predictions import predict_labels
from rightreasons.networks.training import Recipe, flip_together, train_model
from rightreasons.repair.align import WARM_UP, split_batch
from rightreasons.run import Run
from rightreasons.studies.methods.method import Bench

# The loss of one batch from its logits, for instance with a weight for each image.
BatchLoss = Callable[[Batch, Float[Tensor, "image class"]], Tensor]


def steps_per_epoch(run: Run) -> int:
    """The number of steps in an epoch of ours: ceil(n_train / (batch - alignment part))."""
    return math.ceil(count_images(run.train) / split_batch(run.config.align)[1])


def drawn_per_epoch(run: Run) -> int:
    """How many images an epoch shows: whole batches."""
    return steps_per_epoch(run) * run.config.align.batch_size


def draw_in_passes(indices: Int[Tensor, " kept"], count: int, generator: torch.Generator) -> Int[Tensor, " drawn"]:
    """``count`` of the ``indices`` in passes: all of them in random order, then all of them in another, until there are enough."""
    passes = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(math.ceil(count / len(indices)))]
    return torch.cat(passes)[:count]


def fine_tune_equally(
    bench: Bench,
    draw: Callable[[torch.Generator], Int[Tensor, " drawn"]],
    *,
    judge: Callable[[nn.Module], float] | None = None,
    dataset: Dataset | None = None,
    loss: BatchLoss | None = None,
    model: nn.Module | None = None,
    epochs: int | None = None,
) -> nn.Module:
    """The shortcut model, or a copy of ``model``, fine-tuned on the training images, or ``dataset``, that ``draw`` names for each epoch.

    ``draw`` gives ``steps_per_epoch * batch_size`` dataset indices, an image as often as it should be shown. ``judge`` is the merit by which the
    epoch is chosen: the latest of the best; without it, the last. ``loss`` is the mean cross-entropy unless it is given.
    """
    run = bench.run
    config, tuned = run.config.align, copy_model(run.model if model is None else model)
    data, measure = run.train if dataset is None else dataset, loss or _cross_entropy
    device = model_device(tuned)

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        return read_batches(data, indices=draw(generator), batch_size=config.batch_size)

    def batch_loss(batch: Batch, generator: torch.Generator) -> Tensor:
        (images,) = flip_together(run.config.data.flips, generator, batch.images)
        return measure(batch, tuned(images.to(device)).float())

    with bench.reporter.stage("train") as advance:
        train_model(
            tuned,
            batches=batches,
            steps_per_epoch=steps_per_epoch(run),
            loss=batch_loss,
            recipe=Recipe(config.epochs if epochs is None else epochs, config.learning_rate, config.gamma, config.layers, WARM_UP),
            seed=run.config.run.seed,
            freeze_statistics=True,
            judge_epoch=None if judge is None else lambda model, epoch: judge(model),
            progress=advance,
        )
    return tuned


def fine_tune_plainly(bench: Bench, *, epochs: int | None = None) -> nn.Module:
    """The shortcut model fine-tuned on all training images alike; the epoch is chosen by accuracy on the held-out images."""
    run = bench.run
    return fine_tune_equally(
        bench,
        partial(draw_in_passes, torch.arange(count_images(run.train)), drawn_per_epoch(run)),
        judge=lambda model: predict_labels(model, read_batches(run.validation)).correct.double().mean().item(),
        epochs=epochs,
    )


def worst_group_accuracy(model: nn.Module, dataset: Dataset, groups: Int[Tensor, " image"]) -> float:
    """The lowest accuracy over the groups that have images; ``groups`` numbers them by dataset index."""
    answers = predict_labels(model, read_batches(dataset))
    correct, members = answers.correct.double(), groups[answers.indices]
    return min(correct[members == group].mean().item() for group in members.unique())


def _cross_entropy(batch: Batch, logits: Float[Tensor, "image class"]) -> Tensor:
    return F.cross_entropy(logits, batch.labels.to(logits.device))
