"""Optimizers of torch that do not import its compiler: that takes seconds, and nothing is compiled here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def open_optimizer(kind: type[Kind], parameters: Iterable[Tensor], **settings: Any) -> Kind:  # noqa: ANN401 -- as torch takes them
    """``kind(parameters, **settings)``: the same steps, and the same state.

    torch hides most methods of its optimizers from its compiler, and imports it to do so; here they are called unhidden. Nor does its profiler
    follow each step, which takes as long as the step of a small network.
    """
    hidden = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in hidden}
    # What hides a step also switches gradients off within it.
    step = torch.no_grad()(inspect.unwrap(kind.step))
    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess] -- torch's own mark
    plain = cast("type[Kind]", type(kind.__name__, (kind,), {**methods, "step": step}))
    return plain(parameters, **settings)
