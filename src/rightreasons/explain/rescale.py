"""The rescale rule of DeepLIFT for every function that a model calls (docs/method.md, eq. 2 and 3).

Torch's functions are intercepted as they are called, so reused modules, functional calls and in-place activations are all covered.
``record`` runs the model on baselines and keeps the inputs of every nonlinearity. ``replay`` runs it on images, and gives logits whose
backward pass replaces every derivative by the quotient of differences between an image and the tape's current baseline.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from rightreasons.errors import ModelError
from rightreasons.explain.affine import Affine
from rightreasons.explain.functions import (
    AFFINE,
    BILINEAR,
    COMPOSED,
    CURVED,
    ELEMENTWISE,
    MAX_POOLS,
    NORMS,
    PRODUCTS,
    QUOTIENTS,
    SCALINGS,
    SOFTMAXES,
    WRITTEN_IN_PYTHON,
    body_of,
)
from rightreasons.explain.recurrent import as_steps
from rightreasons.explain.rules import (
    Rescale,
    RescaleBilinear,
    RescaleCurve,
    RescaleMax,
    RescaleNorm,
    RescaleProduct,
    RescaleSoftmax,
    centre_and_scale,
)
from rightreasons.explain.tape import Tape
from rightreasons.networks.classifier import as_classifier
from rightreasons.networks.graph import find_frozen_part


def record(model: nn.Module, baselines: Float[Tensor, "baseline channel height width"], tape: Tape) -> Float[Tensor, "baseline class_"]:
    """Runs the model on baselines, which come after those that the tape has, and returns their logits. Parameters must be frozen.

    Raises UnsupportedLayer if no rule covers a function that the model calls, and NotRowByRow if only paired baselines will do.
    """
    with tape.running(own_network(model), len(baselines), recording=True), Rescaled(tape):
        logits, tape.saved_bytes = weigh(model, baselines)
    return logits


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
    # Autograd forbids in-place functions on a leaf, so the model gets a copy of it.
    with torch.enable_grad(), tape.running(own_network(model), len(leaf), recording=False), Rescaled(tape):
        return model(leaf.clone())


def own_network(model: nn.Module) -> nn.Module:
    """The user's network, so that names are the user's."""
    return as_classifier(model).network


class Rescaled(TorchFunctionMode):
    """Gives every call on the way from image to logits a backward pass that hands differences back exactly."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.affine = Affine()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401 -- torch's own signature
        name = _plain_name(func)
        if name == "__get__":  # such as x.ndim or x.T
            return func(*args)
        args, kwargs = _input_first(args, kwargs)
        if isinstance(args[0] if args else None, Tensor) and _is_in_place(func, args, kwargs):
            self.tape.protect(args[0])
        dependent = _count_dependent((*args, *kwargs.values()))
        if dependent == 0:
            return func(*args, **kwargs)
        if name in ELEMENTWISE and dependent == _count_dependent(args[:1]) and not _large((*args[1:], *kwargs.values())):
            return self._in_place(func, args, kwargs, self._elementwise(name, func, args, kwargs))
        if name in PRODUCTS and dependent == 2:
            return self._in_place(func, args, kwargs, self._product(name, *args, **kwargs))
        if name in QUOTIENTS and _divides_by_image(name, args) and not kwargs:
            over, under = args[::-1] if name.startswith("__r") else args
            with self:
                return self._in_place(func, args, kwargs, over * under.reciprocal())
        if name in BILINEAR and dependent > 1:
            return self._bilinear(name, func, args, kwargs)
        if name in SOFTMAXES and dependent == 1:
            return self._softmax(name, *args, **kwargs)
        if name in NORMS and dependent == 1 and func is not torch.instance_norm:  # whose arguments have another order
            return self._norm(name, dict(zip(NORMS[name], args, strict=False)) | kwargs)
        if name in MAX_POOLS:
            return self._max_pool(name, func, args, kwargs)
        if name in ("max", "min", "amax"):
            return self._largest(name, func, args, kwargs)
        if name == "scaled_dot_product_attention" and kwargs.get("dropout_p", args[4] if len(args) > 4 else 0):
            self.tape.refuse(f"{name} with dropout_p > 0, which drops at random in evaluation too")
        written = COMPOSED.get(name) or as_steps(name, args) or (body_of(func) if name in WRITTEN_IN_PYTHON else None)
        if written is not None:
            with self:
                return self._in_place(func, args, kwargs, written(*args, **kwargs))
        result = self.affine(name, func, args, kwargs) if dependent == 1 else None
        if result is not None:
            return result
        result = func(*args, **kwargs)
        if _count_dependent([result]) and not _is_affine(name, args, kwargs, dependent):
            self.tape.refuse(name)
        return result

    def _in_place(self, func: Callable, args: tuple, kwargs: dict, out: Any) -> Any:  # noqa: ANN401 -- a tensor, or what a composed function gives
        if not _is_in_place(func, args, kwargs):
            return out
        self.tape.protect(args[0])
        return args[0].copy_(out)

    def _elementwise(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        source, function = args[0], out_of_place(func, args, kwargs)
        if name not in CURVED:
            return Rescale.apply(source, self.tape.visit(name, source), function)
        with torch.no_grad():
            out = function(source)
        return RescaleCurve.apply(source, self.tape.visit(name, source, out), function)

    def _product(self, name: str, left: Tensor, other: Tensor) -> Tensor:
        return RescaleProduct.apply(left, other, self.tape.visit(name, left, other))

    def _bilinear(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """``func`` as a function of the two tensors that depend on the image, wherever they stand among its arguments."""
        values: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        if name == "einsum" and len(args) == 2:  # the operands may come as a list
            values = {0: args[0], **dict(enumerate(args[1], start=1))}
        places = [key for key, value in values.items() if _count_dependent([value])]
        bias = values.get("bias", values.get(2)) if name != "einsum" else None
        if len(places) != 2 or (isinstance(bias, Tensor) and bias.ndim):
            self.tape.refuse(f"{name} with weights and a bias that depend on the image")
        names = [key for key in values if isinstance(key, str)]
        constants = dict(values)

        def multiply(left: Tensor, right: Tensor) -> Tensor:
            given = {**constants, places[0]: left, places[1]: right}
            return func(*[value for key, value in given.items() if not isinstance(key, str)], **{key: given[key] for key in names})

        left, right = (values[place] for place in places)
        return RescaleBilinear.apply(left, right, self.tape.visit(name, left, right), multiply)

    def _softmax(self, name: str, source: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
        if isinstance(_stacklevel, torch.dtype):  # torch.softmax has the type in this place
            dtype = _stacklevel
        if dim is None:
            self.tape.refuse(f"{name} without an axis")
        source = source if dtype is None else source.to(dtype)
        with torch.no_grad():
            visit = self.tape.visit(name, source.log_softmax(dim), source.softmax(dim))
        return RescaleSoftmax.apply(source, visit, dim, name == "log_softmax")

    def _norm(self, name: str, given: dict) -> Tensor:
        source = given["input"]
        if name == "layer_norm":
            grouped, axes = source, tuple(range(-len(given["normalized_shape"]), 0))
        elif name == "group_norm":
            grouped, axes = source.unflatten(1, (given["num_groups"], -1)), tuple(range(2, source.ndim + 1))
        elif given.get("use_input_stats", True):
            grouped, axes = source, tuple(range(2, source.ndim))
        else:  # affine: a batch norm by running statistics
            normalized = self.affine.normalize({**given, "training": False})
            if normalized is None:
                self.tape.refuse(f"{name} whose weights depend on the image")
            return normalized
        with torch.no_grad():
            visit = self.tape.visit(name, *centre_and_scale(grouped, axes, given.get("eps", 1e-5)))
        out = RescaleNorm.apply(grouped, visit, axes).reshape(source.shape)
        shape = given["normalized_shape"] if name == "layer_norm" else (-1, *[1] * (source.ndim - 2))
        weight, bias = given.get("weight"), given.get("bias")
        out = out if weight is None else out * weight.view(shape)
        return out if bias is None else out + bias.view(shape)

    def _max_pool(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor | tuple[Tensor, Tensor]:
        adaptive = name.startswith("adaptive")
        names = ("input", "output_size") if adaptive else ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        options = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
        source = options.pop("input")
        pool = F.adaptive_max_pool2d if adaptive else F.max_pool2d
        out, argmax = RescaleMax.apply(source, self.tape.visit(name, source), lambda z: pool(z, return_indices=True, **options), 2)
        return (out, argmax) if kwargs.get("return_indices", False) or func.__name__.endswith("_with_indices") else out

    def _largest(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:  # noqa: ANN401 -- a tensor, or torch's named pair
        """A maximum over axes, with its places where ``max`` over one axis gives them; ``min`` is the maximum of the negative."""
        source, *others = args
        given = dict(zip(("dim", "keepdim"), others, strict=False)) | kwargs
        other = given.get("dim", given.get("other"))
        if isinstance(other, Tensor):
            with self:
                return torch.maximum(source, other) if name == "max" else torch.minimum(source, other)
        dim = given.get("dim", ())
        if dim == ():
            self.tape.refuse(f"{name} over all axes with the batch")
        axes = sorted(axis % source.ndim for axis in ([dim] if isinstance(dim, int) else dim))
        sign = -1 if name == "min" else 1
        moved = (sign * source).movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
        out, argmax = RescaleMax.apply(moved, self.tape.visit(name, moved), lambda z: z.max(-1, keepdim=True), 1)
        out, argmax = sign * out[..., 0], argmax[..., 0]
        if given.get("keepdim", False):
            for axis in axes:
                out, argmax = out.unsqueeze(axis), argmax.unsqueeze(axis)
        return out if name == "amax" else getattr(torch.return_types, name)((out, argmax))


def _large(values: Iterable[object]) -> bool:
    """Whether any is a tensor of several numbers, which cannot be looked up at single places."""
    return any(isinstance(value, Tensor) and value.numel() > 1 for value in values)


def _divides_by_image(name: str, args: tuple) -> bool:
    return _count_dependent(args[:1] if name.startswith("__r") else args[1:2]) > 0


def _is_affine(name: str, args: tuple, kwargs: dict, dependent: int) -> bool:
    if name == "batch_norm" and (kwargs.get("training") or args[5:6] == (True,)):  # batch statistics: not affine, and images leak into one another
        return False
    if name in QUOTIENTS:
        return not _divides_by_image(name, args)
    if name == "grid_sample":  # affine in the picture, not in the grid
        return dependent == _count_dependent(args[:1])
    return name in AFFINE or (name in SCALINGS | PRODUCTS and dependent == 1)


def _input_first(args: tuple, kwargs: dict | None) -> tuple[tuple, dict]:
    """``torch.relu(input=x)`` as ``torch.relu(x)``."""
    kwargs = dict(kwargs or {})
    return ((kwargs.pop("input"), *args), kwargs) if not args and "input" in kwargs else (args, kwargs)


@cache
def _plain_name(func: Callable) -> str:
    """``relu`` for torch.relu, torch.relu_, Tensor.relu_ and F.relu alike; ``__iadd__`` stays as it is."""
    name = getattr(func, "__name__", str(func))
    return name if name.endswith("__") else name.rstrip("_")


def _is_in_place(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether a call writes into its first argument."""
    always, place = _writing(func)
    return always or (place is not None and bool(kwargs.get("inplace", args[place] if place < len(args) else False)))


class _Writing(NamedTuple):
    """Whether a function writes into its first argument whenever it is called, or at which place it is told so by ``inplace`` (default: False)."""

    always: bool
    place: int | None = None


@cache
def _writing(func: Callable) -> _Writing:
    name = getattr(func, "__name__", "")
    if name.endswith("_"):
        kept = ("__iter__", "__index__", "__int__", "__invert__")
        return _Writing(not name.endswith("__") or name == "__setitem__" or (name.startswith("__i") and name not in kept))
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # torch's built-in functions have no signature, and no such argument
        return _Writing(always=False)
    return _Writing(always=False, place=names.index("inplace") if "inplace" in names else None)


def out_of_place(func: Callable, args: tuple, kwargs: dict) -> Callable[[Tensor], Tensor]:
    """``func`` as a function of its first argument, which stays as it is."""
    others = args[1:]
    if not _is_in_place(func, args, kwargs):
        return lambda z: func(z, *others, **kwargs)
    place = _writing(func).place
    if place is None:
        return lambda z: func(z.clone(), *others, **kwargs)
    if place < len(args):
        others = (*args[1:place], False, *args[place + 1 :])
    else:
        kwargs = {**kwargs, "inplace": False}
    return lambda z: func(z, *others, **kwargs)


def _count_dependent(values: Iterable[object]) -> int:
    """How many tensors depend on the image: those that require a gradient, since the parameters are frozen."""
    count = 0
    for value in values:
        if isinstance(value, Tensor):
            count += value.requires_grad
        elif isinstance(value, (tuple, list)):
            count += _count_dependent(value)
    return count
