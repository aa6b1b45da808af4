"""The one training loop: plain training, right-reasons fine-tuning and every baseline go through it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.config import Flips
from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.models import model_device
from rightreasons.progress import Advance
from rightreasons.runs import write_atomically
from rightreasons.seeds import seeded

# A step's gradient is never longer than this: one bad batch must not undo pretrained weights.
LONGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and what. Adam; the learning rate falls to zero along a half cosine; ``gamma`` weighs the L2 norm of the weights.

    Over the first ``warm_up`` steps the learning rate rises from zero: Adam's first steps are as long as its rate, whatever the gradient.
    ``layers`` train and the rest stays as it is: "all", the "last-blocks" (the later half of the layers that have weights), or the "head".
    """

    epochs: int
    learning_rate: float
    gamma: float = 0.0
    layers: str = "all"
    warm_up: int = 0


def train_model(
    model: nn.Module,
    *,
    batches: Callable[[torch.Generator], Iterator[Batch]],
    steps_per_epoch: int,
    loss: Callable[[Batch, torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
    freeze_statistics: bool = False,
    judge_epoch: Callable[[nn.Module], float] | None = None,
    slack: float = 0.0,
    checkpoint: Path | None = None,
    progress: Advance | None = None,
) -> None:
    """Trains ``model`` in place. ``batches`` gives one epoch from a generator, ``loss`` a scalar for one batch.

    Each epoch draws from generators of its own, and ``checkpoint`` is written after each: stopped at any moment and called
    again, training ends at the same weights as in one go. ``freeze_statistics`` keeps BatchNorm as it is, so that images of one
    batch do not leak into one another. With ``judge_epoch`` the model ends as it was after its best epoch: the latest that is no more than
    ``slack`` below the highest.
    Where the device is CUDA, the forward pass runs in half precision.
    """
    chosen = [parameter for layer in _layers_to_train(model, recipe.layers) for parameter in layer.parameters(recurse=False)]
    # gamma ||theta||^2 has the gradient 2 gamma theta.
    optimizer = torch.optim.Adam(chosen, lr=recipe.learning_rate, weight_decay=2 * recipe.gamma)
    precision = _Precision(model_device(model))
    steps = recipe.epochs * steps_per_epoch
    first, best = _resume(model, optimizer, precision, checkpoint)
    with _only_trainable(model, chosen):
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
                        group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 * min(1, (step + 1) / max(1, recipe.warm_up))
                    optimizer.zero_grad(set_to_none=True)
                    with precision.forward():
                        value = loss(batch, generator)
                    precision.step(value, optimizer, chosen)
            if judge_epoch is not None:
                merit = judge_epoch(model)
                if best is None or merit >= best[0] - slack:
                    highest = merit if best is None else max(merit, best[0])
                    best = (highest, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
            if checkpoint is not None:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": precision.scaler.state_dict(), "best": best}
                write_atomically(checkpoint, lambda part, state={**state, "epoch": epoch + 1}: torch.save(state, part))
            if progress is not None:
                progress(epoch + 1, recipe.epochs)
    if best is not None:
        model.load_state_dict(best[1])
    model.eval()


def train_plainly(
    model: nn.Module,
    dataset: Dataset,
    *,
    recipe: Recipe,
    batch_size: int,
    seed: int,
    flips: Flips = "off",
    checkpoint: Path | None = None,
    progress: Advance | None = None,
) -> None:
    """Cross-entropy on shuffled batches: ERM."""
    count = count_images(dataset)
    device = model_device(model)

    def shuffled(generator: torch.Generator) -> Iterator[Batch]:
        return read_batches(dataset, indices=torch.randperm(count, generator=generator), batch_size=batch_size)

    def cross_entropy(batch: Batch, generator: torch.Generator) -> Tensor:
        (images,) = flip_together(flips, generator, batch.images)
        return F.cross_entropy(model(images.to(device)).float(), batch.labels.to(device))

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


def flip_together(flips: Flips, generator: torch.Generator, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Half of the rows mirrored left to right, with "both" also half of them upside down; the same rows of every tensor (row, ..., height, width)."""
    for axis in _FLIPPED_AXES[flips]:
        chosen = torch.rand(len(tensors[0]), generator=generator) < 0.5
        tensors = tuple(torch.where(chosen.view(-1, *[1] * (part.ndim - 1)), part.flip(axis), part) for part in tensors)
    return tensors


_FLIPPED_AXES: dict[Flips, tuple[int, ...]] = {"off": (), "horizontal": (-1,), "both": (-1, -2)}


class _Precision:
    """Mixed precision on CUDA: bfloat16 where the device has it, else float16 with a scaled loss. Plain float32 everywhere else."""

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self.kind = torch.bfloat16 if self.enabled and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.enabled and self.kind == torch.float16)

    def forward(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast("cuda", dtype=self.kind) if self.enabled else contextlib.nullcontext()

    def step(self, value: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.scaler.scale(value).backward()
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        self.scaler.step(optimizer)
        self.scaler.update()


def _layers_to_train(model: nn.Module, which: str) -> list[nn.Module]:
    """The modules that have weights of their own, in order, from the first that trains."""
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    first = {"all": 0, "last-blocks": len(layers) // 2, "head": len(layers) - 1}[which]
    return layers[first:]


@contextlib.contextmanager
def _only_trainable(model: nn.Module, chosen: list[nn.Parameter]) -> Iterator[None]:
    """No gradients are computed for what does not train."""
    kept = {id(parameter) for parameter in chosen}
    frozen = [parameter for parameter in model.parameters() if id(parameter) not in kept and parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _freeze_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 -- the only name that BatchNorm1d to 3d and SyncBatchNorm share
            module.eval()


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, precision: _Precision, checkpoint: Path | None
) -> tuple[int, tuple[float, dict[str, Tensor]] | None]:
    """The epoch to go on with, and the best so far."""
    if checkpoint is None or not checkpoint.exists():
        return 0, None
    state = torch.load(checkpoint, map_location=model_device(model), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    precision.scaler.load_state_dict(state["scaler"])
    return int(state["epoch"]), state["best"]
