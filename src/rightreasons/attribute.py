"""Exact DeepLIFT SHAP: how much each pixel adds to the predicted class, against typical images.

The rescale rule (Shrikumar et al. 2017, eq. 8) replaces the derivative of each nonlinearity by delta_out / delta_in
between an input and a baseline; DeepLIFT SHAP (Lundberg and Lee 2017) averages over baselines. Baselines are forwarded once
and their activations kept; inputs are forwarded once; then one backward pass per baseline, over the inputs alone.
Functions are intercepted as they are called, so reused modules, functional calls and in-place activations are all covered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rightreasons.errors import ModelError, UnsupportedLayer
from rightreasons.progress import Advance
from rightreasons.records import Attribution

# Below this difference between input and baseline the quotient is mostly rounding, and the derivative is its limit.
SMALLEST_DIFFERENCE = 1e-8

# By the name under which torch calls them; an underscore at the end marks the in-place form.
ELEMENTWISE = frozenset({"relu", "threshold", "_threshold"})
MAX_POOLS = frozenset({"max_pool2d", "_max_pool2d", "max_pool2d_with_indices"})
# Affine in the image, so that the plain gradient is exact. Batch norm is affine because the model is in eval mode.
AFFINE = frozenset(
    "interpolate dropout dropout2d feature_dropout alpha_dropout "
    "avg_pool2d _avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d mean sum add sub rsub neg add_ sub_ "
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __neg__ flatten view view_as reshape permute transpose squeeze unsqueeze "
    "contiguous clone detach to float double type expand expand_as chunk split unbind cat concat stack pad __getitem__ "
    "narrow select index_select movedim swapaxes flip roll unfold identity".split()
)
# Affine when the other operand does not depend on the image.
SCALINGS = frozenset("mul mul_ __mul__ __rmul__ __imul__ matmul mm __matmul__ addmm conv1d conv2d conv3d conv_transpose2d linear batch_norm".split())
# Affine where what is divided by does not depend on the image.
QUOTIENTS = frozenset("div div_ true_divide __truediv__ __itruediv__".split())


def attribute_images(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    targets: Int[Tensor, " image"] | None = None,
    *,
    chunk: int = 64,
    progress: Advance | None = None,
) -> Attribution:
    """Heatmaps by DeepLIFT SHAP, summed over channels, for ``targets`` (default: the predicted class).

    ``chunk`` images are held at once, with the activations of every baseline: memory does not grow with ``images``.
    The completeness error of an image is |sum of its heatmap - (f(x) - mean f(b))| / |f(x) - mean f(b)|.

    Raises UnsupportedLayer where the rescale rule does not cover a function that the model calls.
    """
    if len(baselines) == 0:
        raise ModelError("attribution needs at least one baseline image, and got none")
    heatmaps, chosen, errors = [], [], []
    with _ready(model):
        tape = _Tape(rows=len(baselines))
        with torch.no_grad(), _Record(tape):
            baseline_logits = model(baselines.clone())  # a model may work in place
        for start in range(0, len(images), chunk):
            part = images[start : start + chunk]
            wanted = None if targets is None else targets[start : start + chunk]
            result = _attribute_chunk(model, part, baselines, baseline_logits, wanted, tape)
            heatmaps.append(result.heatmaps)
            chosen.append(result.targets)
            errors.append(result.completeness_error)
            if progress is not None:
                progress(min(start + chunk, len(images)), len(images))
    return Attribution(torch.cat(heatmaps), torch.cat(chosen), torch.cat(errors))


def _attribute_chunk(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    baseline_logits: Float[Tensor, "baseline class_"],
    targets: Int[Tensor, " image"] | None,
    tape: _Tape,
) -> Attribution:
    tape.rewind(len(images))
    leaf = images.detach().clone().requires_grad_()
    # In-place activations may not touch a leaf, so the model gets a copy of its values.
    with torch.enable_grad():
        inner = leaf.clone()
        with _Replay(tape):
            logits = model(inner)
        wanted = logits.argmax(1) if targets is None else targets.to(logits.device)
        score = logits.gather(1, wanted[:, None]).sum()
    tape.check_finished()
    effect = torch.zeros_like(images)
    for index, baseline in enumerate(baselines):
        tape.baseline = index
        (multiplier,) = torch.autograd.grad(score, leaf, retain_graph=index + 1 < len(baselines))
        effect += multiplier * (images - baseline) / len(baselines)
    heatmaps = effect.sum(1)
    expected = logits.detach().gather(1, wanted[:, None])[:, 0] - baseline_logits[:, wanted].mean(0)
    error = (heatmaps.sum((1, 2)) - expected).abs() / expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)
    return Attribution(heatmaps, wanted, error)


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters, so that what requires a gradient is what depends on the image; both are put back."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@dataclass
class _Call:
    """One call of a nonlinearity: what the baselines gave, and how to differentiate it."""

    name: str
    baseline_in: Tensor
    baseline_out: Tensor
    baseline_argmax: Tensor | None = None


@dataclass
class _Tape:
    """The nonlinearities in the order in which the model calls them."""

    calls: list[_Call] = field(default_factory=list)
    position: int = 0
    baseline: int = 0
    rows: int = 0

    def rewind(self, rows: int) -> None:
        self.position, self.rows = 0, rows

    def check_rows(self, name: str, shape: torch.Size) -> None:
        if not shape or shape[0] != self.rows:
            raise UnsupportedLayer(
                f"{name} was called on a tensor of shape {tuple(shape)} for {self.rows} images; "
                "attribution needs a model that keeps the batch as the first axis"
            )

    def advance(self, name: str, shape: torch.Size) -> _Call:
        self.check_rows(name, shape)
        call = self.calls[self.position] if self.position < len(self.calls) else None
        if call is None or call.name != name or call.baseline_in.shape[1:] != shape[1:]:
            raise UnsupportedLayer(
                f"the model calls other functions for the images than for the baselines (at call {self.position}, {name}); "
                "attribution needs a model whose path does not depend on its input"
            )
        self.position += 1
        return call

    def check_finished(self) -> None:
        if self.position != len(self.calls):
            raise UnsupportedLayer(f"the model called {len(self.calls)} nonlinearities for the baselines and {self.position} for the images")


class _Record(TorchFunctionMode):
    """Runs the model on the baselines and keeps what goes in and out of every nonlinearity."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401 -- torch's own signature
        args, kwargs = _input_first(args, kwargs)
        name = _plain_name(func)
        if name in ELEMENTWISE:
            self.tape.check_rows(name, args[0].shape)
            before = args[0].clone()
            out = func(*args, **kwargs)
            self.tape.calls.append(_Call(name, before, out.clone()))
            return out
        if name in MAX_POOLS:
            self.tape.check_rows(name, args[0].shape)
            out, argmax = _max_pool(args, kwargs)
            # Copies: what follows may work in place.
            self.tape.calls.append(_Call(name, args[0].clone(), out.clone(), argmax))
            return (out, argmax) if _asks_indices(func, kwargs) else out
        return func(*args, **kwargs)


class _Replay(TorchFunctionMode):
    """Runs the model on the images, with the rescale rule in place of every nonlinearity's derivative."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401 -- torch's own signature
        args, kwargs = _input_first(args, kwargs)
        name = _plain_name(func)
        if name in ELEMENTWISE:
            source = args[0]
            call = self.tape.advance(name, source.shape)
            out = _Rescale.apply(source.clone(), call, self.tape, lambda z: func(z, *args[1:], **kwargs))
            return source.copy_(out) if _is_in_place(func, args, kwargs) else out
        if name in MAX_POOLS:
            call = self.tape.advance(name, args[0].shape)
            out, argmax = _max_pool((args[0].detach(), *args[1:]), kwargs)
            out = _RescaleMaxPool.apply(args[0], out, argmax, call, self.tape)
            return (out, argmax) if _asks_indices(func, kwargs) else out
        result = func(*args, **kwargs)
        if _depends_on_image(result) and not _is_affine(name, args, kwargs):
            raise UnsupportedLayer(
                f"the rescale rule does not cover {name!r}, which this model calls on the way from image to logits; "
                f"covered are {', '.join(sorted(ELEMENTWISE))}, max_pool2d and affine layers"
            )
        return result


def _is_affine(name: str, args: tuple, kwargs: dict) -> bool:
    if name == "batch_norm" and (kwargs.get("training") or args[5:6] == (True,)):  # batch statistics: not affine, and images leak into one another
        return False
    if name in QUOTIENTS:
        return _count_dependent(args[1:], kwargs) == 0
    return name in AFFINE or (name in SCALINGS and _count_dependent(args, kwargs) == 1)


def _input_first(args: tuple, kwargs: dict | None) -> tuple[tuple, dict]:
    """``torch.relu(input=x)`` as ``torch.relu(x)``."""
    kwargs = dict(kwargs or {})
    return ((kwargs.pop("input"), *args), kwargs) if not args and "input" in kwargs else (args, kwargs)


def _plain_name(func: Callable) -> str:
    """``relu`` for torch.relu, torch.relu_, Tensor.relu_ and F.relu alike; ``__iadd__`` stays as it is."""
    name = getattr(func, "__name__", str(func))
    return name if name.endswith("__") else name.rstrip("_")


def _is_in_place(func: Callable, args: tuple, kwargs: dict) -> bool:
    if func.__name__.endswith("_"):
        return True
    try:
        signature = inspect.signature(func)
    except ValueError:  # torch's built-in functions have none, and no such argument
        return False
    return bool(signature.bind(*args, **kwargs).arguments.get("inplace", False))


def _depends_on_image(result: object) -> bool:
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def _count_dependent(args: tuple, kwargs: dict) -> int:
    return sum(_depends_on_image(value) for value in (*args, *kwargs.values()))


def _max_pool(args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    return F.max_pool2d(**given, return_indices=True)


def _asks_indices(func: Callable, kwargs: dict) -> bool:
    return kwargs.get("return_indices", False) or func.__name__ == "max_pool2d_with_indices"


class _Rescale(torch.autograd.Function):
    """Backward: multiply by delta_out / delta_in against the tape's current baseline (docs/method.md, eq. 2)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: _Call, tape: _Tape, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        out = function(z.clone())
        ctx.save_for_backward(z, out)
        ctx.call, ctx.tape, ctx.function = call, tape, function
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        z, out = ctx.saved_tensors
        delta_in = z - ctx.call.baseline_in[ctx.tape.baseline]
        delta_out = out - ctx.call.baseline_out[ctx.tape.baseline]
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(ctx.function(point.clone()).sum(), point)
        small = delta_in.abs() < SMALLEST_DIFFERENCE
        multiplier = torch.where(small, derivative, delta_out / delta_in.masked_fill(small, 1))
        return gradient * multiplier, None, None, None


class _RescaleMaxPool(torch.autograd.Function):
    """Backward: the change of each window goes to the pixel that caused it (docs/method.md, eq. 3).

    Where the window rose, that is the input's own maximum; where it fell, the baseline's. There |delta_in| >= |delta_out|,
    so the multiplier is never above one; windows that overlap add up.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, out: Tensor, argmax: Tensor, call: _Call, tape: _Tape) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(z, out, argmax)
        ctx.call, ctx.tape = call, tape
        return out.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        z, out, argmax = ctx.saved_tensors
        call, index = ctx.call, ctx.tape.baseline
        delta_out = out - call.baseline_out[index]
        cause = torch.where(delta_out >= 0, argmax, call.baseline_argmax[index].expand_as(argmax))
        delta_in = (z - call.baseline_in[index]).flatten(-2).gather(-1, cause.flatten(-2)).view_as(out)
        small = delta_in.abs() < SMALLEST_DIFFERENCE
        multiplier = torch.where(small, torch.ones_like(out), delta_out / delta_in.masked_fill(small, 1))
        routed = torch.zeros_like(z).flatten(-2).scatter_add(-1, cause.flatten(-2), (gradient * multiplier).flatten(-2))
        return routed.view_as(z), None, None, None, None
