"""The one training loop: plain training, right-reasons fine-tuning and every baseline go through it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the only name that BatchNorm1d to 3d and SyncBatchNorm share
from torch.utils.data import Dataset

from rightreasons.common.files import write_atomically
from rightreasons.common.progress import Advance
from rightreasons.common.seeds import seeded
from rightreasons.config import Flips
from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.errors import ModelError
from rightreasons.networks.classifier import Classifier, check_finite, copy_model, model_device
from rightreasons.networks.optimizers import open_optimizer
from rightreasons.networks.team import add_up_gradients, by_rows, helped_by, own_number, processes, step_together

# A step's gradient is clipped to this length, so that one bad batch cannot undo pretrained weights.
LONGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class Recipe:
    """Settings of training with Adam. The learning rate falls to zero along a half cosine; ``gamma`` weighs the squared L2 norm of the weights.

    Over the first ``warm_up`` steps the learning rate rises from zero: Adam's first steps are as long as its rate, whatever the gradient.
    Only ``layers`` are trained: "all", the "last-blocks" (the later half of the layers that have weights, in the order in which the model calls
    them), or the "head", which is the last of them. Weights among these that the user froze stay frozen, unless all of them are frozen.
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
    judge_epoch: Callable[[nn.Module, int], float] | None = None,
    slack: float = 0.0,
    checkpoint: Path | None = None,
    progress: Advance | None = None,
) -> None:
    """Trains ``model`` in place. ``batches`` gives one epoch from a generator, ``loss`` a scalar for one batch.

    Each epoch draws from generators of its own, and ``checkpoint`` is written after each: if training is stopped at any moment and called
    again, it ends at the same weights as in one go. ``freeze_statistics`` keeps BatchNorm's statistics fixed, so that images of one
    batch do not influence one another. With ``judge_epoch``, a merit from the model and the epoch's number from 1, the model ends with the weights
    of its best epoch: the latest whose merit is no more than ``slack`` below the highest. On CUDA, the forward pass runs in half precision.

    Helpers of a team (``networks.team``) walk through each epoch in step, with state that this process gives them; ``loss`` and ``batches`` are sent
    to them. A network whose BatchNorm takes its statistics from the batch is trained by this process alone.

    Raises ModelError if the model has no weights to train, and if training diverges: the weights are then those before that step.
    """
    chosen = _weights_to_train(model, recipe.layers, lambda: next(batches(seeded(seed, "layers"))))
    optimizer, precision = _optimizer(chosen, recipe), _Precision(model_device(model))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(weight)] for weight in chosen]
    together = processes() > 1 and (freeze_statistics or not _has_batch_statistics(model))
    layout = _quick_layout(model, lambda: next(batches(seeded(seed, "layout"))), freeze_statistics=freeze_statistics)
    first, best = _resume(model, optimizer, precision, checkpoint)
    with _only_trainable(model, chosen):
        for epoch in range(first, recipe.epochs):
            course = _Course(epoch, steps_per_epoch, recipe, batches, loss, seed, freeze_statistics, layout)
            if together:
                with helped_by(_help_through, model, names, optimizer.state_dict(), precision.scaler.state_dict(), course), step_together():
                    _walk_through(model, chosen, optimizer, precision, course)
            else:
                _walk_through(model, chosen, optimizer, precision, course)
            if judge_epoch is not None:
                merit = judge_epoch(model, epoch + 1)
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


@dataclass(frozen=True)
class _Course:
    """One epoch, from 0, of so many steps."""

    epoch: int
    steps: int
    recipe: Recipe
    batches: Callable[[torch.Generator], Iterator[Batch]]
    loss: Callable[[Batch, torch.Generator], Tensor]
    seed: int
    freeze_statistics: bool
    layout: torch.memory_format


def _walk_through(model: nn.Module, chosen: list[Tensor], optimizer: torch.optim.Optimizer, precision: _Precision, course: _Course) -> None:
    """Takes the steps of one epoch."""
    model.train()
    if course.freeze_statistics:
        _freeze_statistics(model)
    recipe, generator = course.recipe, seeded(course.seed, "epoch", course.epoch)
    steps = recipe.epochs * course.steps
    # Dropout draws from torch's global state, which is put back afterwards. Processes in step draw differently, since their images differ.
    with torch.random.fork_rng(), _laid_out(model, course.layout):
        torch.manual_seed(generator.initial_seed() + own_number())
        for step, batch in enumerate(course.batches(generator), start=course.epoch * course.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 * min(1, (step + 1) / max(1, recipe.warm_up))
            for weight in chosen:
                weight.grad = None
            with precision.forward():
                value = course.loss(batch, generator)
            if not precision.step(value, optimizer, chosen):
                raise _divergence(model, chosen, batch, course.epoch, value.item())


def _help_through(model: nn.Module, names: list[str], optimizer_state: dict, scaler_state: dict, course: _Course) -> None:
    """Takes the steps of one epoch in a helper, which forgets all of it afterwards."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    chosen = [weights[name] for name in names]
    optimizer, precision = _optimizer(chosen, course.recipe), _Precision(model_device(model))
    optimizer.load_state_dict(optimizer_state)
    precision.scaler.load_state_dict(scaler_state)
    with _only_trainable(model, chosen), step_together():
        _walk_through(model, chosen, optimizer, precision, course)


def _quick_layout(model: nn.Module, read: Callable[[], Batch], *, freeze_statistics: bool) -> torch.memory_format:
    """How images should lie in memory: on a CPU, convolutions learn quicker with the channels last (docs/log.md).

    Networks with layer norms, which move the channels themselves, do not. A network that asks for a view which other images do not have cannot: it
    is tried as it answers, and a copy as it is trained.
    """
    kinds = [type(module) for module in model.modules()]
    if not isinstance(model, Classifier) or model_device(model).type != "cpu" or nn.Conv2d not in kinds or nn.LayerNorm in kinds:
        return torch.preserve_format
    images = read().images[:2]
    model.eval()
    with torch.no_grad():
        expected = model(images)
        try:
            with _laid_out(model, torch.channels_last), torch.random.fork_rng():
                same = torch.allclose(model(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
                learner = copy_model(model).train()
                if freeze_statistics:
                    _freeze_statistics(learner)
                learner(images)
        except (RuntimeError, ValueError):
            return torch.preserve_format
    return torch.channels_last if same else torch.preserve_format


@contextlib.contextmanager
def _laid_out(model: nn.Module, layout: torch.memory_format) -> Iterator[None]:
    """Within this context the network gets images in this layout; a model that is no ``Classifier`` gets them as they are."""
    if not isinstance(model, Classifier):
        yield
        return
    kept, model.layout = model.layout, layout
    try:
        yield
    finally:
        model.layout = kept


def _optimizer(chosen: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    # On a CPU all weights are changed in one call; a GPU has as few by default. gamma ||theta||^2 has the gradient 2 gamma theta.
    # It takes a weight for one piece of memory, so that it would change others' than those of a weight with gaps.
    fused = True if all(weight.device.type == "cpu" and weight.untyped_storage().nbytes() == weight.nbytes for weight in chosen) else None
    return open_optimizer(torch.optim.Adam, chosen, lr=recipe.learning_rate, weight_decay=2 * recipe.gamma, fused=fused)


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
    """Trains by cross-entropy on shuffled batches (ERM). A last batch of one image, on which BatchNorm cannot train, joins the one before."""
    train_model(
        model,
        batches=_Shuffled(dataset, batch_size),
        steps_per_epoch=max(1, math.ceil((count_images(dataset) - 1) / batch_size)),
        loss=_CrossEntropy(model, flips),
        recipe=recipe,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )


@dataclass(frozen=True)
class _Shuffled:
    """All images in a new order, ``batch_size`` at a time."""

    dataset: Dataset
    batch_size: int

    def __call__(self, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(count_images(self.dataset), generator=generator)
        return _join_single(read_batches(self.dataset, indices=order, batch_size=self.batch_size))


@dataclass(frozen=True)
class _CrossEntropy:
    """The cross-entropy of a batch, mirrored by ``flips``."""

    model: nn.Module
    flips: Flips

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        (images,), device = flip_together(self.flips, generator, batch.images), model_device(self.model)
        logits = by_rows(lambda rows: self.model(images[rows].to(device)).float(), len(images))
        return F.cross_entropy(logits, batch.labels.to(device))


def _join_single(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, with each batch of a single image joined to its neighbour."""
    held: Batch | None = None
    for batch in batches:
        if held is not None and 1 in (len(held), len(batch)):
            held = Batch(*(torch.cat([getattr(part, name) for part in (held, batch)]) for name in ("indices", "images", "labels")))
            continue
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield held


def flip_together(flips: Flips, generator: torch.Generator, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Mirrors half of the rows left to right and, with "both", half of them upside down; the same rows of every tensor (row, ..., height, width)."""
    for axis in _FLIPPED_AXES[flips]:
        chosen = torch.rand(len(tensors[0]), generator=generator) < 0.5
        tensors = tuple(torch.where(chosen.view(-1, *[1] * (part.ndim - 1)), part.flip(axis), part) for part in tensors)
    return tensors


_FLIPPED_AXES: dict[Flips, tuple[int, ...]] = {"off": (), "horizontal": (-1,), "both": (-1, -2)}


class _Precision:
    """Mixed precision on CUDA: bfloat16 if the device has it, else float16 with a scaled loss. Plain float32 on every other device."""

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self.kind = torch.bfloat16 if self.enabled and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.enabled and self.kind == torch.float16)

    def forward(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast("cuda", dtype=self.kind) if self.enabled else contextlib.nullcontext()

    def step(self, value: Tensor, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> bool:
        """Takes one step, or none and returns False if loss or gradient are not finite. The scaler skips a step whose scaled gradient overflows."""
        self.scaler.scale(value).backward()
        add_up_gradients(parameters)
        self.scaler.unscale_(optimizer)
        length = _clip(parameters)
        if not (value.isfinite() if self.scaler.is_enabled() else math.isfinite(length)):
            return False
        self.scaler.step(optimizer)
        self.scaler.update()
        return True


def _clip(parameters: list[Tensor]) -> float:
    """Shortens the gradient if it is longer than ``LONGEST_GRADIENT``; returns how long it was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    lengths = torch._foreach_norm(gradients) if gradients else [torch.zeros(())]  # pyright: ignore[reportPrivateImportUsage] -- as torch itself does
    length = torch.linalg.vector_norm(torch.stack(lengths)).item()
    if length > LONGEST_GRADIENT:
        nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
    return length


def _divergence(model: nn.Module, chosen: list[Tensor], batch: Batch, epoch: int, loss: float) -> ModelError:
    """The error for a step whose loss or gradient is not finite. It names the image, if a single image causes it."""
    model.eval()
    where, device = f"training diverged in epoch {epoch + 1} (loss {loss:.3g})", model_device(model)
    for row in range(len(batch)):
        image = batch.images[row : row + 1]
        logits = model(image.to(device)).float()
        gradients = torch.autograd.grad(F.cross_entropy(logits, batch.labels[row : row + 1].to(device)), chosen, allow_unused=True)
        length = sum(gradient.float().norm() for gradient in gradients if gradient is not None)
        try:
            check_finite((logits.sum(1) + length).detach().cpu(), image, batch.indices[row : row + 1], "logits or gradients")
        except ModelError as error:
            return ModelError(f"{where}: {error}")
    return ModelError(f"{where} on images that are harmless one by one: lower the learning rate")


def _weights_to_train(model: nn.Module, which: str, read: Callable[[], Batch]) -> list[Tensor]:
    """The weights that ``which`` names. A batch is read if the order in which layers are called is needed."""
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    if which != "all" and layers:
        order = _order_of_calls(model, read().images[:2])
        layers.sort(key=lambda layer: order[layer])
        layers = layers[{"last-blocks": len(layers) // 2, "head": len(layers) - 1}[which] :]
    weights: list[Tensor] = [parameter for layer in layers for parameter in layer.parameters(recurse=False) if parameter.is_floating_point()]
    if not weights:
        raise ModelError(
            f"the model has no weights to train (layers = {which!r}): a quantised or exported network has none; use the one it was made of"
        )
    return [parameter for parameter in weights if parameter.requires_grad] or weights


def _order_of_calls(model: nn.Module, images: Tensor) -> dict[nn.Module, int]:
    """When each module is last called. A module that is never called itself, since its parent uses its weights, counts as called with its parent."""
    times, clock = {}, itertools.count(1)
    hooks = [module.register_forward_pre_hook(lambda *_, name=name: times.update({name: next(clock)})) for name, module in model.named_modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(images.to(model_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
    order = {}
    for name, module in model.named_modules():
        while name and name not in times:
            name = name.rpartition(".")[0]
        order[module] = times[name]
    return order


@contextlib.contextmanager
def _only_trainable(model: nn.Module, chosen: list[Tensor]) -> Iterator[None]:
    """Within this context, gradients are computed only for the weights that are trained."""
    kept = {id(parameter) for parameter in chosen}
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad != (id(parameter) in kept)]
    for parameter in changed:
        parameter.requires_grad_(id(parameter) in kept)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(id(parameter) not in kept)


def _freeze_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _has_batch_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, precision: _Precision, checkpoint: Path | None
) -> tuple[int, tuple[float, dict[str, Tensor]] | None]:
    """The epoch with which training continues, and the best epoch so far."""
    if checkpoint is None or not checkpoint.exists():
        return 0, None
    state = torch.load(checkpoint, map_location=model_device(model), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    precision.scaler.load_state_dict(state["scaler"])
    return int(state["epoch"]), state["best"]
