"""How much each pixel adds to the predicted class, against typical images: exact DeepLIFT SHAP, or Integrated Gradients.

DeepLIFT's rescale rule (Shrikumar et al. 2017, eq. 8; see ``rescale``) replaces the derivative of each nonlinearity by delta_out / delta_in
between an input and a baseline; DeepLIFT SHAP (Lundberg and Lee 2017) averages over baselines. Baselines are forwarded once
and their activations kept; inputs are forwarded once; then one backward pass per baseline, over the inputs alone.
Integrated Gradients (Sundararajan et al. 2017) need no rule and so cover attention too, at many passes per baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.budget import how_many
from rightreasons.errors import ModelError, UnsupportedLayer
from rightreasons.progress import Advance
from rightreasons.records import Attribution
from rightreasons.rescale import Tape, record, replay, weigh

__all__ = ["Attribution", "AttributionMethod", "UnsupportedLayer", "attribute_images", "check_attribution"]

AttributionMethod = Literal["deeplift-shap", "integrated-gradients"]

# Bytes of activations held at once: of a group of baselines, and again of a chunk of images. On a GPU they are in its own memory.
KEPT_BYTES, KEPT_BYTES_ON_GPU = 2**28, 2**30
LARGEST_CHUNK = 256
# Arrays of an image's or a baseline's own size that there are while it is explained, beside the activations.
PIXEL_ARRAYS = 6
# Chunks between two savings of heatmaps. Integrated Gradients take many passes for an image, so that a stop may lose fewer of them.
CHUNKS_BETWEEN_SAVINGS = {"deeplift-shap": 4, "integrated-gradients": 1 / 8}
# Points on the way from a baseline to an image at which Integrated Gradients take the gradient.
STEPS = 32


def attribute_images(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    targets: Int[Tensor, " image"] | None = None,
    *,
    method: AttributionMethod = "deeplift-shap",
    chunk: int | None = None,
    progress: Advance | None = None,
) -> Attribution:
    """Heatmaps against the mean over baselines, summed over channels, for ``targets`` (default: the predicted class).

    ``chunk`` images are held at once, by default as many as keep about ``KEPT_BYTES`` of activations; so are as many baselines.
    The completeness error of an image is |sum of its heatmap - (f(x) - mean f(b))| / |f(x) - mean f(b)|.

    Raises UnsupportedLayer where the rescale rule does not cover a function that the model calls; Integrated Gradients cover all.
    """
    if len(baselines) == 0:
        raise ModelError("attribution needs at least one baseline image, and got none")
    explain = {"deeplift-shap": _deeplift, "integrated-gradients": _integrate}[method]
    with _frozen(model):
        return explain(model, images.detach(), baselines.detach(), targets, chunk, progress or (lambda done, total: None))


def part_size(model: nn.Module, image: Float[Tensor, "1 channel height width"], method: AttributionMethod) -> int:
    """After how many images it is worth while to save their heatmaps. It follows from the network's activations and from no clock."""
    with _frozen(model):
        saved = weigh(model, image)[1]
    return _how_many(int((saved + PIXEL_ARRAYS * image.nbytes) / CHUNKS_BETWEEN_SAVINGS[method]), image.device)


def check_attribution(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> None:
    """One forward pass on two of the images. Raises UnsupportedLayer, as DeepLIFT SHAP would, naming the module and the function."""
    with _frozen(model):
        record(model, images[:2])


def _deeplift(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    targets: Int[Tensor, " image"] | None,
    chunk: int | None,
    progress: Advance,
) -> Attribution:
    """One tape for each group of baselines, replayed on every chunk of images."""
    trial, _ = record(model, torch.cat([baselines[:1]] * 2))
    pixels = PIXEL_ARRAYS * baselines[0].nbytes
    size = chunk or _how_many(trial.saved_bytes // 2 + pixels, images.device)
    parts = images.split(size)
    wanted = [None] * len(parts) if targets is None else targets.split(size)
    groups = baselines.split(_how_many(trial.kept_bytes // 2 + pixels, images.device))
    effects: list[Tensor] = [torch.zeros_like(part[:, 0]) for part in parts]
    logits: list[Tensor] = [torch.empty(0)] * len(parts)
    references = []
    for number, group in enumerate(groups):
        tape, reference = record(model, group)
        references.append(reference)
        for place, part in enumerate(parts):
            effect, logits[place] = _against_tape(model, part, group, wanted[place], tape)
            effects[place] += effect / len(baselines)
            progress((number * len(images) + place * size + len(part)) // len(groups), len(images))
        del tape  # before the next is made
    return _complete(torch.cat(effects), torch.cat(logits), torch.cat(references), targets)


def _against_tape(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    targets: Int[Tensor, " image"] | None,
    tape: Tape,
) -> tuple[Float[Tensor, "image height width"], Float[Tensor, "image class_"]]:
    """The sum over the tape's baselines of multiplier * difference, and the images' logits."""
    leaf = images.detach().clone().requires_grad_()
    logits = replay(model, leaf, tape)
    with torch.enable_grad():
        score = _pick(logits, _targets(logits, targets)).sum()
    effect = torch.zeros_like(images)
    for index, baseline in enumerate(baselines):
        tape.baseline = index
        (multiplier,) = torch.autograd.grad(score, leaf, retain_graph=index + 1 < len(baselines))
        effect += multiplier.mul_(images - baseline)
    return effect.sum(1), logits.detach()


def _integrate(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    baselines: Float[Tensor, "baseline channel height width"],
    targets: Int[Tensor, " image"] | None,
    chunk: int | None,
    progress: Advance,
) -> Attribution:
    """The mean over baselines of (x - b) times the mean gradient on the way from b to x, by Gauss-Legendre quadrature."""
    size = chunk or _how_many(weigh(model, baselines[:1])[1] + PIXEL_ARRAYS * baselines[0].nbytes, images.device)
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)  # on [-1, 1]
    with torch.no_grad():
        logits, references = (torch.cat([model(part.clone()) for part in whole.split(size)]) for whole in (images, baselines))
    effects, done = [], 0
    for part, wanted in zip(images.split(size), _targets(logits, targets).split(size), strict=True):
        effect = torch.zeros_like(part)
        for number, baseline in enumerate(baselines):
            difference = part - baseline
            gradient = torch.zeros_like(part)
            for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
                leaf = (baseline + (node + 1) / 2 * difference).requires_grad_()
                with torch.enable_grad():
                    score = _pick(model(leaf.clone()), wanted).sum()
                gradient += torch.autograd.grad(score, leaf)[0] * (weight / 2)
            effect += gradient * difference / len(baselines)
            progress(done + len(part) * (number + 1) // len(baselines), len(images))
        effects.append(effect.sum(1))
        done += len(part)
    return _complete(torch.cat(effects), logits, references, targets)


def _complete(
    heatmaps: Float[Tensor, "image height width"],
    logits: Float[Tensor, "image class_"],
    references: Float[Tensor, "baseline class_"],
    targets: Int[Tensor, " image"] | None,
) -> Attribution:
    targets = _targets(logits, targets)
    expected = _pick(logits, targets) - references[:, targets].mean(0)
    error = (heatmaps.sum((1, 2)) - expected).abs() / expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)
    return Attribution(heatmaps, targets, error)


def _targets(logits: Float[Tensor, "image class_"], targets: Int[Tensor, " image"] | None) -> Int[Tensor, " image"]:
    return logits.argmax(1) if targets is None else targets.to(logits.device)


def _pick(logits: Float[Tensor, "image class_"], targets: Int[Tensor, " image"]) -> Float[Tensor, " image"]:
    return logits.gather(1, targets[:, None])[:, 0]


def _how_many(bytes_each: int, device: torch.device) -> int:
    return how_many(bytes_each, KEPT_BYTES if device.type == "cpu" else KEPT_BYTES_ON_GPU, LARGEST_CHUNK)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
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
