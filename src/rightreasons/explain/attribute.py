"""How much each pixel contributes to the predicted class, compared with typical images: exact DeepLIFT SHAP, Integrated Gradients, or LRP.

DeepLIFT's rescale rule (Shrikumar et al. 2017, eq. 8; see ``rescale``) replaces the derivative of each nonlinearity by delta_out / delta_in
between an input and a baseline; DeepLIFT SHAP (Lundberg and Lee 2017) averages over baselines. Baselines go forward once, and their
activations are kept; inputs go forward once; then there is one backward pass per baseline, over the inputs alone.
Integrated Gradients (Sundararajan et al. 2017) need no rules for functions, and take many passes per baseline.
LRP (see ``relevance``) looks at the images alone, and its heatmaps add up to no difference of logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.common.memory import how_many
from rightreasons.common.progress import Advance
from rightreasons.errors import ModelError, RightReasonsError, UnsupportedLayer
from rightreasons.explain.relevance import propagate_relevance
from rightreasons.explain.rescale import record, replay, weigh
from rightreasons.explain.tape import ALTERNATIVE, NotRowByRow, Tape
from rightreasons.networks.classifier import as_classifier, check_finite, frozen, model_device
from rightreasons.networks.graph import CHECKPOINTED, find_hidden_part
from rightreasons.records import Attribution

__all__ = ["Attribution", "AttributionMethod", "UnsupportedLayer", "attribute_images", "check_attribution"]

AttributionMethod = Literal["deeplift-shap", "integrated-gradients", "lrp"]

# The bytes of activations held at once: so many for a group of baselines, and as many for a chunk of images. A GPU holds them in its own memory.
KEPT_BYTES, KEPT_BYTES_ON_GPU = 2**28, 2**30
LARGEST_CHUNK = 256
# How many arrays of an image's size are needed to explain it, besides the activations.
PIXEL_ARRAYS = 6
# How many chunks of images are explained before their heatmaps are saved. Integrated Gradients take many passes for an image, so save more often.
CHUNKS_BETWEEN_SAVINGS = {"deeplift-shap": 4, "integrated-gradients": 1 / 8, "lrp": 8}
# The number of points between a baseline and an image at which Integrated Gradients take the gradient.
STEPS = 32
# How far a heatmap's sum may be from the difference of the logits, as a share of the sum of |heatmap|. Rounding stayed below 3e-6 on a CPU with every
# network tried; a GPU may round the inputs of a convolution to ten bits.
ROUNDING, COARSE_ROUNDING = 1e-4, 1e-2
# The same limit for Integrated Gradients. The kinks of a ReLU network cost up to 2e-2 at 32 points.
QUADRATURE = 5e-2
# Kinks may cost a single image more, so the limit is applied to the median of at least this many images. Fewer rely on ``check_attribution`` alone.
FEWEST_JUDGED = 8
# A check takes more and more points until the error is below the limit: quadrature converges, but a part without a gradient stays missing.
CHECKED_STEPS, CHECKED_QUADRATURE = (8, 32, 128), 1e-2
# The relative rounding of the logits themselves, which is most of the error if image and baseline hardly differ.
LOGIT_ROUNDING = 1e-5


def _silent(done: int, total: int) -> None:
    """Tells nobody."""


class _Work(NamedTuple):
    """What is explained, against which images, for which classes (None: the predicted ones), and how many images at once (None: by memory)."""

    model: nn.Module
    images: Float[Tensor, "image channel height width"]
    baselines: Float[Tensor, "baseline channel height width"]
    targets: Int[Tensor, " image"] | None = None
    chunk: int | None = None
    progress: Advance = _silent


class _Explained(NamedTuple):
    """An attribution, and the share of each heatmap's sum of |effect| by which its sum misses the difference of the logits."""

    attribution: Attribution
    missing: Float[Tensor, " image"]


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

    ``chunk`` images are held at once, by default as many as need about ``KEPT_BYTES`` of activations; baselines are grouped in the same way.
    The completeness error of an image is |sum of its heatmap - (f(x) - mean f(b))| / |f(x) - mean f(b)|, NaN with LRP, which knows no baselines.

    Raises UnsupportedLayer if the rescale rule does not cover a function that the model calls, or if the heatmaps do not add up.
    """
    if len(baselines) == 0:
        raise ModelError("attribution needs at least one baseline image, and got none")
    work = _Work(model, images.detach(), baselines.detach(), targets, chunk, progress or _silent)
    with frozen(model):
        attribution, missing = _explain(_METHODS[method], work)
        if method == "deeplift-shap":
            _refuse_incomplete(missing.nanmedian().item(), _rounding(images), method, model, images)
        elif method == "integrated-gradients" and len(images) >= FEWEST_JUDGED:
            _refuse_incomplete(missing.nanmedian().item(), QUADRATURE, method, model, images)
    return attribution


def part_size(model: nn.Module, image: Float[Tensor, "1 channel height width"], method: AttributionMethod) -> int:
    """How many images to explain before their heatmaps are saved. It depends on the size of the network's activations, not on time."""
    with frozen(model):
        saved = weigh(model, image)[1]
    return _how_many(int((saved + PIXEL_ARRAYS * image.nbytes) / CHUNKS_BETWEEN_SAVINGS[method]), image.device)


def check_attribution(model: nn.Module, images: Float[Tensor, "image channel height width"], method: AttributionMethod = "deeplift-shap") -> float:
    """Explains two of the images against the last one, and returns the share of the effect that is missing from the heatmaps.

    A single image is compared with black; Integrated Gradients explain one image. Raises UnsupportedLayer if ``attribute_images`` would, or if a
    heatmap's sum is not the difference of the logits, which are computed once more without rules: DeepLIFT SHAP and Integrated Gradients guarantee
    that it is (docs/method.md, section 2), so a difference means that they do not see all of the model. With LRP, which promises no sum, NaN is
    returned.
    """
    images = images.detach().to(model_device(model))
    baselines, shown = (images[-1:], images[:-1][:2]) if len(images) > 1 else (torch.zeros_like(images), images)
    trials, limit, worst = [_METHODS[method]], _rounding(images), 0.0
    if method == "integrated-gradients":
        trials, limit, shown = [partial(_integrate, steps=steps) for steps in CHECKED_STEPS], CHECKED_QUADRATURE, shown[:1]
    with frozen(model):
        for trial in trials:
            attribution = _explain(trial, _Work(model, shown, baselines)).attribution
            check_finite(attribution.heatmaps.cpu(), shown, torch.arange(len(shown)), "effects of the pixels (the heatmap)")
            if method == "lrp":
                return math.nan
            with torch.no_grad():
                logits, references = model(shown.clone()), model(baselines.clone())
            worst = _complete(attribution.heatmaps, logits, references, attribution.targets).missing.max().item()
            if worst <= limit:
                return worst
        _refuse_incomplete(worst, limit, method, model, shown)
    return worst


def _explain(explain: Callable[[_Work], _Explained], work: _Work) -> _Explained:
    """Runs a method; an error of torch in it becomes an UnsupportedLayer."""
    try:
        return explain(work)
    except (RightReasonsError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise UnsupportedLayer(
            f"the model cannot be explained: {_find_cause(work.model, work.images)}. {ALTERNATIVE} (torch says: {error})"
        ) from error


def _refuse_incomplete(missing: float, limit: float, method: str, model: nn.Module, images: Tensor) -> None:
    if missing > limit:
        alternative = f" {ALTERNATIVE}." if method == "deeplift-shap" else ""
        raise UnsupportedLayer(
            f"{method} explains the model only in part: {missing:.2g} of the effect is missing from the heatmaps, and an error of {limit:g} is to be "
            f"expected. The likely cause: {_find_cause(model, images)}.{alternative}"
        )


def _find_cause(model: nn.Module, images: Tensor) -> str:
    """The part of the model that cannot be explained. The model is frozen."""
    for name, module in as_classifier(model).network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"its module {name}" if name else "it"
            return f"{what} was compiled by torch.jit (script or trace): use the Python code that it was made from"
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED), torch.enable_grad():
            return find_hidden_part(model(images[:1].clone().requires_grad_().clone()))
    except RuntimeError as error:  # CHECKPOINTED, or the network's own
        return str(error)


def _rounding(images: Tensor) -> float:
    return ROUNDING if images.device.type == "cpu" else COARSE_ROUNDING


def _deeplift(work: _Work) -> _Explained:
    """DeepLIFT SHAP. A network that does not keep its batch as the first axis gets each image with a baseline of its own, which costs more passes."""
    try:
        return _deeplift_by_groups(work)
    except NotRowByRow:
        return _deeplift_paired(work)


def _deeplift_by_groups(work: _Work) -> _Explained:
    """One tape for each group of baselines, replayed on every chunk of images. Memory is estimated by the first baseline, recorded alone."""
    model, images, baselines, targets, chunk, progress = work
    tape = Tape()
    references = [record(model, baselines[:1], tape)]
    if tape.folds:
        pair = Tape()
        record(model, torch.cat([baselines[:1]] * 2), pair)
        pair.check_order()
        del pair
    pixels = PIXEL_ARRAYS * baselines[0].nbytes
    size = chunk or _how_many(tape.saved_bytes + tape.kept_bytes + pixels, images.device)
    parts = images.split(size)
    wanted = [None] * len(parts) if targets is None else targets.split(size)
    groups = baselines.split(_how_many(tape.kept_bytes + pixels, images.device))
    effects: list[Tensor] = [torch.zeros_like(part[:, 0]) for part in parts]
    logits: list[Tensor] = [torch.empty(0)] * len(parts)
    for number, group in enumerate(groups):
        missing = group[len(tape.recorded) :]  # the first is on the first tape already
        if len(missing):
            references.append(record(model, missing, tape))
        for place, part in enumerate(parts):
            effect, logits[place] = _against_tape(model, part, group, wanted[place], tape)
            effects[place] += effect / len(baselines)
            progress((number * len(images) + place * size + len(part)) // len(groups), len(images))
        tape = Tape()  # frees the memory of the last one before the next is made
    return _complete(torch.cat(effects), torch.cat(logits), torch.cat(references), targets)


def _deeplift_paired(work: _Work) -> _Explained:
    """One tape for each baseline and chunk of images, with the baseline as often as there are images."""
    model, images, baselines, targets, chunk, progress = work
    size = chunk or _how_many(2 * weigh(model, baselines[:1])[1] + PIXEL_ARRAYS * baselines[0].nbytes, images.device)
    effects, logits, references = [], [], []
    for place, part in enumerate(images.split(size)):
        effect, wanted = torch.zeros_like(part[:, 0]), None if targets is None else targets[place * size :][:size]
        for number, baseline in enumerate(baselines):
            repeated = baseline.expand_as(part)
            tape = Tape(paired=True)
            reference = record(model, repeated, tape)
            one, output = _against_tape(model, part, repeated[:1], wanted, tape)
            effect += one / len(baselines)
            if place == 0:
                references.append(reference[:1])
            if number == 0:
                logits.append(output)
            progress(place * size + len(part) * (number + 1) // len(baselines), len(images))
        effects.append(effect)
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


def _integrate(work: _Work, steps: int = STEPS) -> _Explained:
    """Integrated Gradients: the mean over baselines of (x - b) times the mean gradient from b to x, by Gauss-Legendre quadrature."""
    model, images, baselines, targets, chunk, progress = work
    size = chunk or _how_many(weigh(model, baselines[:1])[1] + PIXEL_ARRAYS * baselines[0].nbytes, images.device)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
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


def _propagate(work: _Work) -> _Explained:
    """LRP, without baselines."""
    model, images, _, targets, chunk, progress = work
    size = chunk or _how_many(3 * weigh(model, images[:1])[1] + PIXEL_ARRAYS * images[0].nbytes, images.device)
    heatmaps, logits = [], []
    for number, part in enumerate(images.split(size)):
        heatmap, output = propagate_relevance(model, part, None if targets is None else targets[number * size :][:size])
        heatmaps.append(heatmap)
        logits.append(output)
        progress(number * size + len(part), len(images))
    unknown = torch.full((len(images),), torch.nan)
    return _Explained(Attribution(torch.cat(heatmaps), _targets(torch.cat(logits), targets), unknown), unknown)


def _complete(
    heatmaps: Float[Tensor, "image height width"],
    logits: Float[Tensor, "image class_"],
    references: Float[Tensor, "baseline class_"],
    targets: Int[Tensor, " image"] | None,
) -> _Explained:
    targets = _targets(logits, targets)
    output, reference = _pick(logits, targets), references[:, targets].mean(0)
    expected = output - reference
    error = (heatmaps.sum((1, 2)) - expected).abs()
    beyond = (error - LOGIT_ROUNDING * (output.abs() + reference.abs())).clamp_min(0)
    missing = torch.where(beyond == 0, beyond, beyond / heatmaps.abs().sum((1, 2)))
    return _Explained(Attribution(heatmaps, targets, error / expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)), missing)


def _targets(logits: Float[Tensor, "image class_"], targets: Int[Tensor, " image"] | None) -> Int[Tensor, " image"]:
    return logits.argmax(1) if targets is None else targets.to(logits.device)


def _pick(logits: Float[Tensor, "image class_"], targets: Int[Tensor, " image"]) -> Float[Tensor, " image"]:
    return logits.gather(1, targets[:, None])[:, 0]


def _how_many(bytes_each: int, device: torch.device) -> int:
    return how_many(bytes_each, KEPT_BYTES if device.type == "cpu" else KEPT_BYTES_ON_GPU, LARGEST_CHUNK)


_METHODS: dict[str, Callable[[_Work], _Explained]] = {"deeplift-shap": _deeplift, "integrated-gradients": _integrate, "lrp": _propagate}
