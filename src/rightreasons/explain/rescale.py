"""The rescale rule of DeepLIFT for every function that a model calls (docs/method.md, eq. 2 and 3).

Torch's functions are intercepted as they are called, so reused modules, functional calls and in-place activations are all covered.
``record`` runs the model on baselines and keeps the inputs of every nonlinearity. ``replay`` runs it on images, and gives logits whose
backward pass replaces every derivative by the quotient of differences between an image and the tape's current baseline.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from rightreasons.errors import ModelError, UnsupportedLayer
from rightreasons.networks.classifier import as_classifier
from rightreasons.networks.graph import find_frozen_part

# If a curve's input and baseline differ by less than this, the quotient is mostly rounding, and the derivative half-way replaces it as its limit.
SMALLEST_DIFFERENCE = 1e-8

ALTERNATIVE = 'Use [attribute] method = "integrated-gradients", which every differentiable model allows'

# Torch's functions by name, without the underscore that marks an in-place form.
# These are elementwise functions of one tensor; their other arguments may not depend on the image.
PIECEWISE_LINEAR = frozenset("relu relu6 threshold _threshold hardtanh leaky_relu clamp clip clamp_min clamp_max abs __abs__".split())
CURVED = frozenset(
    "elu celu selu silu mish gelu hardswish hardsigmoid sigmoid tanh softplus softsign logsigmoid log_sigmoid "
    "exp expm1 log log1p erf sqrt rsqrt reciprocal square pow __pow__ __ipow__".split()
)
PRODUCTS = frozenset("mul multiply __mul__ __rmul__ __imul__".split())
QUOTIENTS = frozenset("div divide true_divide __truediv__ __itruediv__ __div__ __rdiv__ __rtruediv__".split())
MAX_POOLS = frozenset("max_pool2d _max_pool2d max_pool2d_with_indices".split())
# The arguments of each norm in order, so that they may be given by position or by name.
NORMS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
}
# These are affine in the image, so the plain gradient is exact.
AFFINE = frozenset(
    "interpolate upsample dropout dropout1d dropout2d feature_dropout alpha_dropout feature_alpha_dropout "
    "avg_pool1d avg_pool2d _avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d mean sum "
    "add sub subtract rsub neg negative positive __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __neg__ __pos__ "
    "flatten unflatten ravel view view_as reshape reshape_as permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze t __get__ "
    "contiguous clone detach copy to float double half bfloat16 type type_as expand expand_as repeat repeat_interleave tile broadcast_to "
    "chunk split tensor_split split_with_sizes unbind cat concat concatenate stack hstack vstack pad _pad constant_pad_nd "
    "__getitem__ __setitem__ narrow select index_select gather flip roll rot90 unfold fold pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle identity requires_grad".split()
)
# These are affine if only one operand depends on the image. Batch norm is one of them because the model is in eval mode.
SCALINGS = frozenset("matmul mm bmm __matmul__ __rmatmul__ addmm einsum conv1d conv2d conv3d conv_transpose2d linear batch_norm".split())


@dataclass(frozen=True)
class Call:
    """One call of a nonlinearity, and its inputs for the baselines."""

    name: str
    baselines: tuple[Tensor, ...]


@dataclass
class Tape:
    """The nonlinearities in the order in which the model calls them; ``baseline`` is the index of the baseline that a backward pass compares with."""

    rows: int
    recording: bool = True
    calls: list[Call] = field(default_factory=list)
    position: int = 0
    baseline: int = 0
    saved_bytes: int = 0
    modules: list[str] = field(default_factory=list)

    @property
    def kept_bytes(self) -> int:
        """The bytes of the tensors that the tape keeps."""
        return sum(tensor.nbytes for call in self.calls for tensor in call.baselines)

    def visit(self, name: str, *inputs: Tensor) -> Call:
        """The call's entry: a new one while recording, else the next one, which must match."""
        for tensor in inputs:
            if tensor.ndim != inputs[0].ndim or not tensor.shape or tensor.shape[0] != self.rows:
                raise UnsupportedLayer(
                    f"{self.here} calls {name} on a tensor of shape {tuple(tensor.shape)} for {self.rows} images; DeepLIFT SHAP needs a model that "
                    f"keeps the batch as the first axis. {ALTERNATIVE}"
                )
        if self.recording:
            self.calls.append(Call(name, tuple(tensor.detach().clone() for tensor in inputs)))  # cloned, since later calls may work in place
            return self.calls[-1]
        call = self.calls[self.position] if self.position < len(self.calls) else None
        if call is None or call.name != name or [kept.shape[1:] for kept in call.baselines] != [tensor.shape[1:] for tensor in inputs]:
            raise UnsupportedLayer(
                f"the model calls other functions for the images than for the baselines (at call {self.position}, {name}, by {self.here}); "
                f"DeepLIFT SHAP needs a model whose path does not depend on its input. {ALTERNATIVE}"
            )
        self.position += 1
        return call

    def refuse(self, name: str) -> NoReturn:
        """Raises UnsupportedLayer for the function ``name``."""
        raise UnsupportedLayer(f"DeepLIFT SHAP does not cover {name!r}, which {self.here} calls on the way from image to logits. {ALTERNATIVE}")

    @property
    def here(self) -> str:
        """The name of the innermost module that is running."""
        return "".join(self.modules[-1:]) or "the model itself"


def record(model: nn.Module, baselines: Float[Tensor, "baseline channel height width"]) -> tuple[Tape, Float[Tensor, "baseline class_"]]:
    """Runs the model on the baselines. Parameters must be frozen.

    Raises UnsupportedLayer if the rescale rule does not cover a function that the model calls.
    """
    tape = Tape(rows=len(baselines))
    with _names(model, tape), _Rescaled(tape):
        logits, tape.saved_bytes = weigh(model, baselines)
    tape.recording = False
    return tape, logits


def weigh(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> tuple[Float[Tensor, "image class_"], int]:
    """Logits, and the bytes that autograd would keep to differentiate them; here it keeps none. Parameters must be frozen."""
    fixed = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = 0

    def drop(tensor: Tensor) -> None:
        nonlocal saved
        saved += 0 if tensor.data_ptr() in fixed else tensor.nbytes

    # Gradients are enabled, though none is taken, because requires_grad tells which tensors depend on the image.
    with torch.enable_grad(), saved_tensors_hooks(drop, lambda nothing: nothing):
        logits = model(images.detach().clone().requires_grad_().clone())  # a model may work in place
    if not logits.requires_grad:
        raise ModelError(f"no gradient leads from the model's logits back to the image: {find_frozen_part(as_classifier(model).network)}")
    return logits.detach(), saved


def replay(model: nn.Module, leaf: Float[Tensor, "image channel height width"], tape: Tape) -> Float[Tensor, "image class_"]:
    """Logits of the images. One backward pass to ``leaf`` per value of ``tape.baseline`` gives the multipliers against that baseline."""
    tape.rows, tape.position = len(leaf), 0
    # Autograd forbids in-place functions on a leaf, so the model gets a copy of it.
    with torch.enable_grad(), _names(model, tape), _Rescaled(tape):
        logits = model(leaf.clone())
    if tape.position != len(tape.calls):
        raise UnsupportedLayer(
            f"the model calls {len(tape.calls)} nonlinearities for the baselines and {tape.position} for the images; "
            f"DeepLIFT SHAP needs a model whose path does not depend on its input. {ALTERNATIVE}"
        )
    return logits


@contextmanager
def _names(model: nn.Module, tape: Tape) -> Iterator[None]:
    """Keeps the names of the running modules in ``tape.modules``, outermost first, while the context is open."""
    tape.modules, hooks = [], []

    def leave(*_: object) -> None:
        tape.modules.pop()

    network = as_classifier(model).network  # the user's network, so that the names are the user's
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: tape.modules.append(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Rescaled(TorchFunctionMode):
    """Gives every nonlinearity the backward pass of the rescale rule."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401 -- torch's own signature
        args, kwargs = _input_first(args, kwargs)
        dependent = _count_dependent((*args, *kwargs.values()))
        if dependent == 0:
            return func(*args, **kwargs)
        name = _plain_name(func)
        if name in PIECEWISE_LINEAR | CURVED and dependent == _count_dependent(args[:1]) and not _shapes((*args[1:], *kwargs.values())):
            return self._in_place(func, args, kwargs, self._elementwise(name, func, args, kwargs))
        if name in PRODUCTS and dependent == 2:
            return self._in_place(func, args, kwargs, self._product(name, *args, **kwargs))
        if name in QUOTIENTS and _divides_by_image(name, args) and not kwargs:
            over, under = args[::-1] if name.startswith("__r") else args
            with self:
                return self._in_place(func, args, kwargs, over * under.reciprocal())
        if name in NORMS and dependent == 1 and func is not torch.instance_norm:  # whose arguments have another order
            return self._norm(name, dict(zip(NORMS[name], args, strict=False)) | kwargs)
        if name in MAX_POOLS:
            return self._max_pool(name, func, args, kwargs)
        result = func(*args, **kwargs)
        if _count_dependent([result]) and not _is_affine(name, args, kwargs, dependent):
            self.tape.refuse(name)
        return result

    @staticmethod
    def _in_place(func: Callable, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        return args[0].copy_(out) if _is_in_place(func, args, kwargs) else out

    def _elementwise(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        source, others, in_place = args[0], args[1:], _is_in_place(func, args, kwargs)
        call = self.tape.visit(name, source)
        return _Rescale.apply(source, call, self.tape, name in CURVED, lambda z: func(z.clone() if in_place else z, *others, **kwargs))

    def _product(self, name: str, left: Tensor, other: Tensor) -> Tensor:
        return _RescaleProduct.apply(left, other, self.tape.visit(name, left, other), self.tape)

    def _norm(self, name: str, given: dict) -> Tensor:
        source = given["input"]
        if name == "layer_norm":
            grouped, axes = source, tuple(range(-len(given["normalized_shape"]), 0))
        elif name == "group_norm":
            grouped, axes = source.unflatten(1, (given["num_groups"], -1)), tuple(range(2, source.ndim + 1))
        elif given.get("use_input_stats", True):
            grouped, axes = source, tuple(range(2, source.ndim))
        else:
            self.tape.refuse(f"{name} with running statistics")
        call = self.tape.visit(name, grouped)
        out = _RescaleNorm.apply(grouped, call, self.tape, axes, given.get("eps", 1e-5)).reshape(source.shape)
        shape = given["normalized_shape"] if name == "layer_norm" else (-1, *[1] * (source.ndim - 2))
        weight, bias = given.get("weight"), given.get("bias")
        out = out if weight is None else out * weight.view(shape)
        return out if bias is None else out + bias.view(shape)

    def _max_pool(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor | tuple[Tensor, Tensor]:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        options = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
        source = options.pop("input")
        call = self.tape.visit(name, source)
        out, argmax = _RescaleMaxPool.apply(source, call, self.tape, lambda z: F.max_pool2d(z, return_indices=True, **options))
        return (out, argmax) if kwargs.get("return_indices", False) or func.__name__ == "max_pool2d_with_indices" else out


def _shapes(values: Iterable[object]) -> list[torch.Size]:
    """The shapes of the tensors that are not scalars."""
    return [value.shape for value in values if isinstance(value, Tensor) and value.ndim]


def _divides_by_image(name: str, args: tuple) -> bool:
    return _count_dependent(args[:1] if name.startswith("__r") else args[1:2]) > 0


def _is_affine(name: str, args: tuple, kwargs: dict, dependent: int) -> bool:
    if name == "batch_norm" and (kwargs.get("training") or args[5:6] == (True,)):  # batch statistics: not affine, and images leak into one another
        return False
    if name in QUOTIENTS:
        return not _divides_by_image(name, args)
    return name in AFFINE or (name in SCALINGS | PRODUCTS and dependent == 1)


def _input_first(args: tuple, kwargs: dict | None) -> tuple[tuple, dict]:
    """``torch.relu(input=x)`` as ``torch.relu(x)``."""
    kwargs = dict(kwargs or {})
    return ((kwargs.pop("input"), *args), kwargs) if not args and "input" in kwargs else (args, kwargs)


def _plain_name(func: Callable) -> str:
    """``relu`` for torch.relu, torch.relu_, Tensor.relu_ and F.relu alike; ``__iadd__`` stays as it is."""
    name = getattr(func, "__name__", str(func))
    return name if name.endswith("__") else name.rstrip("_")


def _is_in_place(func: Callable, args: tuple, kwargs: dict) -> bool:
    if func.__name__.endswith("__"):
        return func.__name__.startswith("__i")
    if func.__name__.endswith("_"):
        return True
    try:
        signature = inspect.signature(func)
    except ValueError:  # torch's built-in functions have none, and no such argument
        return False
    return bool(signature.bind(*args, **kwargs).arguments.get("inplace", False))


def _count_dependent(values: Iterable[object]) -> int:
    """How many tensors depend on the image: those that require a gradient, since the parameters are frozen."""
    count = 0
    for value in values:
        if isinstance(value, Tensor):
            count += value.requires_grad
        elif isinstance(value, (tuple, list)):
            count += _count_dependent(value)
    return count


class _Rescale(torch.autograd.Function):
    """Backward: multiply by delta_out / delta_in against the tape's current baseline (docs/method.md, eq. 2).

    If a curve's input changed in less than half of its digits, the quotient has so few correct digits that the derivative is more exact.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Call, tape: Tape, curved: bool, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401, FBT001
        ctx.save_for_backward(z.clone())  # cloned here and below, since later calls may work in place
        ctx.call, ctx.tape, ctx.curved, ctx.function = call, tape, curved, function
        return function(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        (z,), (baseline,) = ctx.saved_tensors, _current(ctx)
        delta_in = z - baseline
        multiplier = (ctx.function(z) - ctx.function(baseline)).div_(delta_in)
        # The quotient of a piecewise linear function is exact for any difference.
        smallest = z.abs().mul_(torch.finfo(z.dtype).eps ** 0.5).add_(SMALLEST_DIFFERENCE) if ctx.curved else torch.finfo(z.dtype).tiny
        close = delta_in.abs() < smallest
        if close.any():
            places = close.nonzero(as_tuple=True)
            with torch.enable_grad():
                middle = (z[places] - delta_in[places] / 2).requires_grad_()
                (multiplier[places],) = torch.autograd.grad(ctx.function(middle.clone()).sum(), middle)
        return multiplier.mul_(gradient), None, None, None, None


class _RescaleProduct(torch.autograd.Function):
    """Backward: delta(ab) = (a + a')/2 delta b + (b + b')/2 delta a, the only exact rule that treats both alike (docs/method.md, eq. 2b)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Call, tape: Tape) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(a.clone(), b.clone())
        ctx.call, ctx.tape = call, tape
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        (a, b), (a_baseline, b_baseline) = ctx.saved_tensors, _current(ctx)
        to_a = (b + b_baseline).div_(2) * gradient
        to_b = (a + a_baseline).div_(2) * gradient
        return to_a.sum_to_size(a.shape), to_b.sum_to_size(b.shape), None, None


class _RescaleNorm(torch.autograd.Function):
    """(z - mean) r with r = (variance + eps)^(-1/2), over some axes: the product rule on the square and on c r, the quotient rule on r.

    The quotient of differences of r is - (r r')^2 / (r + r') exactly, so that nothing small is divided by.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Call, tape: Tape, axes: tuple[int, ...], eps: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(z.clone())
        ctx.call, ctx.tape, ctx.axes, ctx.eps = call, tape, axes, eps
        centred, scale = _centre_and_scale(z, axes, eps)
        return centred * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,), (baseline,) = ctx.saved_tensors, _current(ctx)
        c, r = _centre_and_scale(z, ctx.axes, ctx.eps)
        c_baseline, r_baseline = _centre_and_scale(baseline, ctx.axes, ctx.eps)
        middle = (c + c_baseline).div_(2)
        to_variance = (middle * gradient).sum(ctx.axes, keepdim=True) * -((r * r_baseline) ** 2) / (r + r_baseline)
        size = math.prod(z.shape[axis] for axis in ctx.axes)
        to_centred = gradient * ((r + r_baseline) / 2) + middle.mul_(to_variance * (2 / size))
        return to_centred - to_centred.mean(ctx.axes, keepdim=True), None, None, None, None


def _centre_and_scale(z: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    centred = z - z.mean(axes, keepdim=True)
    return centred, (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


class _RescaleMaxPool(torch.autograd.Function):
    """Backward: the change of each window is attributed to the pixel that caused it (docs/method.md, eq. 3).

    If the window's maximum rose, that is the pixel of the input's maximum; if it fell, that of the baseline's. There |delta_in| >= |delta_out|,
    so the multiplier is never above one; overlapping windows add up.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Call, tape: Tape, pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        out, argmax = pool(z)
        ctx.save_for_backward(z.clone(), argmax)
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)  # argmax gets none
        ctx.call, ctx.tape, ctx.pool = call, tape, pool
        return out, argmax

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        (z, argmax), (baseline,) = ctx.saved_tensors, _current(ctx)
        baseline_out, baseline_argmax = ctx.pool(baseline)
        delta_out = z.flatten(-2).gather(-1, argmax.flatten(-2)).view_as(argmax) - baseline_out
        cause = torch.where(delta_out >= 0, argmax, baseline_argmax).flatten(-2)
        delta_in = (z - baseline).flatten(-2).gather(-1, cause).view_as(argmax)
        small = delta_in.abs() < torch.finfo(z.dtype).tiny
        multiplier = torch.where(small, 1, delta_out / delta_in)
        routed = torch.zeros_like(z).flatten(-2).scatter_add(-1, cause, (gradient * multiplier).flatten(-2))
        return routed.view_as(z), None, None, None


def _current(ctx: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    """The call's inputs for the tape's current baseline, as a batch of one."""
    index = ctx.tape.baseline
    return tuple(tensor[index : index + 1] for tensor in ctx.call.baselines)
