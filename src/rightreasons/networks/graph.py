"""Reads autograd's graph of a network: which function its outputs come from, and which parts the rescale rule cannot see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Functions of layers with weights: their outputs may be logits, whatever their range.
_WEIGHTED = re.compile(r"(Addmm|Mm|Bmm|Baddbmm|Addmv|Mv|Linear|.*Convolution.*)Backward\d*")
_SQUASHING = re.compile(r"(Sigmoid|Softmax|SafeSoftmax|Hardsigmoid|Tanh|Exp|Hardtanh|Clamp\w*)Backward\d*")
# Rows of probabilities may miss a sum of one by this much, which is rounding.
_SUM_ERROR = 1e-3


def _parents(node: Any) -> list[Any]:  # noqa: ANN401 -- autograd's nodes have no public type
    return [parent for parent, _ in node.next_functions if parent is not None]


def walk_graph(outputs: Tensor) -> Iterator[Any]:
    """Every node between the outputs and the tensors they depend on, the nearest to the outputs first."""
    waiting, seen = [outputs.grad_fn], set()
    for node in waiting:
        if node is not None and node not in seen:
            seen.add(node)
            waiting += _parents(node)
            yield node


def last_function(outputs: Tensor) -> str:
    """What computes the outputs: "weights", the name of a squashing function ("Sigmoid"), or "" if neither is certain.

    The graph is followed back through functions of one image-dependent tensor. Parameters must be frozen.
    """
    node = outputs.grad_fn
    while node is not None:
        squashing = _SQUASHING.fullmatch(type(node).__name__)
        if squashing:
            return squashing[1]
        if _WEIGHTED.fullmatch(type(node).__name__):
            return "weights"
        parents = _parents(node)
        node = parents[0] if len(parents) == 1 and not isinstance(node, torch.autograd.function.BackwardCFunction) else None
    return ""


def look_like_probabilities(outputs: Float[Tensor, "image output"], function: str, *, trained: bool) -> bool:
    """Whether outputs are probabilities: rows that sum to one, or values in 0 to 1 that come from a squashing function.

    If the last function is not known, a trained model's single column within 0 to 1 counts as probabilities: as logits they would all mean one class.
    """
    if outputs.shape[1] > 1 and outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() < _SUM_ERROR:
        return True
    squashed = function not in ("", "weights") or (function == "" and outputs.shape[1] == 1 and trained)
    return squashed and bool(outputs.min() >= 0 and outputs.max() <= 1)


def find_hidden_part(outputs: Tensor) -> str:
    """The parts of a network that the rescale rule cannot see, by name, and what to do about them; if none is found, what it may be."""
    custom: dict[str, None] = {}  # in the order of the graph
    for node in walk_graph(outputs):
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            custom[getattr(node, "_forward_cls", type(node)).__name__] = None
        elif "DifferentiableGraph" in node.name():
            return "it calls a function compiled by torch.jit.script: call the plain function"
    if "CheckpointFunction" in custom:
        return CHECKPOINTED
    if custom:
        return (
            f"it calls the custom torch.autograd.Function {', '.join(custom)}: write it with torch's own functions, or switch it off "
            "(efficientnet_pytorch: model.set_swish(memory_efficient=False))"
        )
    return (
        "a part of it runs under torch.no_grad, is detached, or chooses by comparing features (>, argmax, sort, .item()), "
        "or was compiled (torch.jit.script)"
    )


CHECKPOINTED = (
    "it uses gradient checkpointing (torch.utils.checkpoint), which runs parts of it again in the backward pass: switch that off "
    "(torchvision: memory_efficient=False; timm: model.set_grad_checkpointing(False); transformers: model.gradient_checkpointing_disable())"
)


def find_frozen_part(model: nn.Module) -> str:
    """Why no gradient may come back from a network's outputs to its image."""
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__:
            return f"its module {name or type(module).__name__} is quantised, which has no gradients: use the network as it was before"
    return "a part of it runs under torch.no_grad or is detached: take that out of its forward (requires_grad_(False) freezes weights as well)"
