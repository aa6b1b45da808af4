"""The one training loop: plain training, right-reasons fine-tuning and every baseline go through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.models import model_device
from rightreasons.progress import Advance
from rightreasons.runs import write_atomically
from rightreasons.seeds import seeded


@dataclass(frozen=True)
class Recipe:
    """How long and how fast. Adam; the learning rate falls to zero along a half cosine; ``gamma`` weighs the L2 norm of the weights."""

    epochs: int
    learning_rate: float
    gamma: float = 0.0


def train_model(
    model: nn.Module,
    *,
    batches: Callable[[torch.Generator], Iterator[Batch]],
    steps_per_epoch: int,
    loss: Callable[[Batch, torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
    freeze_statistics: bool = False,
    checkpoint: Path | None = None,
    progress: Advance | None = None,
) -> None:
    """Trains ``model`` in place. ``batches`` gives one epoch from a generator, ``loss`` a scalar for one batch.

    Each epoch draws from generators of its own, and ``checkpoint`` is written after each: stopped at any moment and called
    again, training ends at the same weights as in one go. ``freeze_statistics`` keeps BatchNorm as it is, so that images of one
    batch do not leak into one another.
    """
    # gamma ||theta||^2 has the gradient 2 gamma theta.
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=2 * recipe.gamma)
    steps = recipe.epochs * steps_per_epoch
    first = _resume(model, optimizer, checkpoint)
    for epoch in range(first, recipe.epochs):
        model.train()
        if freeze_statistics:
            _freeze_statistics(model)
        generator = seeded(seed, "epoch", epoch)
        # Dropout draws from torch's global state, which is put back afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            for step, batch in enumerate(batches(generator), start=epoch * steps_per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.zero_grad(set_to_none=True)
                value = loss(batch, generator)
                value.backward()
                optimizer.step()
        if checkpoint is not None:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            write_atomically(checkpoint, lambda part, state=state: torch.save(state, part))
        if progress is not None:
            progress(epoch + 1, recipe.epochs)
    model.eval()


def train_plainly(
    model: nn.Module, dataset: Dataset, *, recipe: Recipe, batch_size: int, seed: int, checkpoint: Path | None = None, progress: Advance | None = None
) -> None:
    """Cross-entropy on shuffled batches: ERM."""
    count = count_images(dataset)
    device = model_device(model)

    def shuffled(generator: torch.Generator) -> Iterator[Batch]:
        return read_batches(dataset, indices=torch.randperm(count, generator=generator), batch_size=batch_size)

    def cross_entropy(batch: Batch, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(model(batch.images.to(device)), batch.labels.to(device))

    train_model(
        model,
        batches=shuffled,
        steps_per_epoch=math.ceil(count / batch_size),
        loss=cross_entropy,
        recipe=recipe,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )


def _freeze_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 -- the only name that BatchNorm1d to 3d and SyncBatchNorm share
            module.eval()


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=model_device(model), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])
