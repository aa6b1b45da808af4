"""The linear head of a classifier: where it is, the features that go into it, and a new one in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.data.loading import Batch
from rightreasons.errors import ModelError
from rightreasons.networks.classifier import Classifier, as_classifier, check_finite, copy_model, model_device


@dataclass(frozen=True)
class Features:
    """What goes into the head for the readable images of a dataset, which are those of ``indices``."""

    indices: Int[Tensor, " image"]
    labels: Int[Tensor, " image"]
    values: Float[Tensor, "image feature"]


def read_features(model: nn.Module, batches: Iterable[Batch]) -> Features:
    """The penultimate features, in one pass over batches. Raises ModelError if the model has no linear head."""
    model.eval()
    head: nn.Linear | None = None
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        images = batch.images.to(model_device(model))
        if head is None:
            found = model.get_submodule(find_head(model, images[:2]))
            assert isinstance(found, nn.Linear)  # find_head names no other
            head = found
        values = _read_input(model, head, images).float().cpu()
        check_finite(values, batch.images, batch.indices, "features of the head")
        columns.append((batch.indices, batch.labels, values))
    return Features(*(torch.cat(parts) for parts in zip(*columns, strict=True)))


def find_head(model: nn.Module, images: Tensor) -> str:
    """The name of the linear layer that is called last. Raises ModelError if there is none, or if the logits are not its outputs."""
    called: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(partial(_note_output, called, name)) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    model.eval()
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    # A Classifier may put the outputs in another order, or make two of one: the difference of two logits is then the single output.
    if called and called[-1][1].ndim == 2:
        name, output = called[-1]
        single = output.shape[1] == 1 and logits.shape[1] == 2
        given, expected = (logits.diff(dim=1).abs(), output.abs()) if single else (logits.sort(1).values, output.sort(1).values)
        if given.shape == expected.shape and torch.allclose(given, expected, rtol=1e-4, atol=1e-4):
            return name
    last = f"the last of its linear layers is {called[-1][0]!r}, whose outputs are not the logits" if called else "it calls no linear layer"
    raise ModelError(f"the model has no linear head to fit anew: {last}; leave out the methods that fit the last layer")


def read_head(model: nn.Module, name: str) -> tuple[Float[Tensor, "class feature"], Float[Tensor, " class"]]:
    """Weight and bias of the linear layer ``name``, with which the features give the logits; rows are in the order of the classes."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)  # find_head names no other
    weight = layer.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().cpu()
    if len(weight) == 1:  # as a Classifier makes two logits of one
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    if isinstance(model, Classifier) and model.moves_outputs and model.order is not None:
        rows = torch.tensor(model.order)
        weight, bias = weight[rows], bias[rows]
    return weight, bias


def replace_head(model: nn.Module, name: str, weight: Float[Tensor, "class feature"], bias: Float[Tensor, " class"]) -> nn.Module:
    """A copy of ``model`` whose linear layer ``name`` gives these logits; rows are in the order of the classes."""
    within = name if isinstance(model, Classifier) else f"network.{name}"
    classifier = as_classifier(copy_model(model))
    old = classifier.get_submodule(within)
    rows = torch.tensor(classifier.order if classifier.moves_outputs and classifier.order is not None else range(len(weight)))
    new = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        new.weight[rows], new.bias[rows] = weight.float(), bias.float()
    parent, _, attribute = within.rpartition(".")
    setattr(classifier.get_submodule(parent), attribute, new.to(next(old.parameters()).device))
    return classifier.eval()


def _note_output(called: list[tuple[str, Tensor]], name: str, layer: nn.Module, inputs: object, output: Tensor) -> None:
    called.append((name, output))


def _read_input(model: nn.Module, head: nn.Linear, images: Tensor) -> Tensor:
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        with torch.no_grad():
            model(images)
    finally:
        hook.remove()
    return found[-1]
