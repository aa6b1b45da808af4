"""Right-reasons fine-tuning: cross-entropy, and terms that take the judged-spurious segments away from the model.

Terms (docs/method.md, section 6):

- ``swap``     exchanges spurious pixels between images, labels kept: ordinary images get an alignment image's spurious segments pasted in,
               alignment images get an ordinary image's pixels there. Neither the shortcut nor its absence predicts a class any more.
- ``penalty``  on the effect of spurious pixels. ``effect`` is finite: how far the logits move when a spurious segment is pasted in,
               against their standard deviation. ``jacobian`` and ``log_prob_sum`` (the published loss) are gradients inside the mask.

Alignment samples fill a fixed share of every batch, drawn with replacement. Gradients of gradients are taken on them alone, and
only where a gradient penalty is chosen. BatchNorm statistics stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.config import AlignConfig
from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.models import model_device
from rightreasons.progress import Advance
from rightreasons.seeds import seeded
from rightreasons.training import Recipe, train_model

# Of the ordinary images of a batch, those that get a segment pasted in.
PASTED_SHARE = 0.5
# Of the alignment samples, those whose spurious pixels are exchanged for another image's.
ERASED_SHARE = 0.5
# The effect penalty is measured in standard deviations of the logits, so one weight does for all models and scales.
EFFECT_WEIGHT = 1.0
# Keeps the root differentiable where a swap changes nothing.
SMALLEST_EFFECT = 1e-6


@dataclass(frozen=True)
class AlignmentSet:
    """The inspected images with their corrective masks, and ``protected``: pixels judged relevant, which no swap covers."""

    batch: Batch
    masks: Bool[Tensor, "image height width"]
    protected: Bool[Tensor, "image height width"]

    @property
    def donors(self) -> Int[Tensor, " donor"]:
        """The rows with something spurious to paste."""
        return self.masks.any(2).any(1).nonzero()[:, 0]


def align_model(
    model: nn.Module,
    dataset: Dataset,
    alignment: AlignmentSet,
    *,
    config: AlignConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Advance | None = None,
) -> None:
    """Fine-tunes ``model`` in place. An epoch has ceil(n_train / (batch - alignment part)) batches.

    With ``config.term`` "none" this is the control: the same steps, data and ratio, and no alignment term.
    """
    count = count_images(dataset)
    part = max(1, round(config.ratio * config.batch_size))
    ordinary = config.batch_size - part

    def mixed(generator: torch.Generator) -> Iterator[Batch]:
        for batch in read_batches(dataset, indices=torch.randperm(count, generator=generator), batch_size=ordinary):
            drawn = torch.randint(len(alignment.batch), (part,), generator=generator)
            # The alignment samples come last, marked by their rows in the alignment set as negative indices.
            yield Batch(
                torch.cat([batch.indices, -1 - drawn]),
                torch.cat([batch.images, alignment.batch.images[drawn]]),
                torch.cat([batch.labels, alignment.batch.labels[drawn]]),
            )

    loss = AlignLoss(model, alignment, config)
    if config.lambda_ == "auto" and loss.needs_calibration:
        generator = seeded(seed, "lambda")
        # In train mode the look-ahead would move BatchNorm's statistics, and draw dropout from global state.
        model.eval()
        loss.calibrate(next(mixed(generator)), generator)
    train_model(
        model,
        batches=mixed,
        steps_per_epoch=math.ceil(count / ordinary),
        loss=loss,
        recipe=Recipe(config.epochs, config.learning_rate, config.gamma),
        seed=seed,
        freeze_statistics=True,
        checkpoint=checkpoint,
        progress=progress,
    )


class AlignLoss:
    """Cross-entropy with the alignment terms, for batches whose alignment samples have negative indices."""

    def __init__(self, model: nn.Module, alignment: AlignmentSet, config: AlignConfig) -> None:
        self.model, self.alignment = model, alignment
        terms = "swap+penalty" if config.term == "auto" else config.term
        self.swaps = "swap" in terms
        self.penalty = config.penalty if "penalty" in terms else None
        self.weight = EFFECT_WEIGHT if config.lambda_ == "auto" else config.lambda_
        self._protected = {index: row for row, index in enumerate(alignment.batch.indices.tolist())}

    @property
    def needs_calibration(self) -> bool:
        """Whether the penalty has a scale of its own."""
        return self.penalty in _GRADIENT_PENALTIES

    def calibrate(self, batch: Batch, generator: torch.Generator) -> None:
        """lambda "auto" of a gradient penalty: its ratio to the cross-entropy is one on the first batch (Ross et al. 2017)."""
        cross_entropy, penalty = (term.item() for term in self.terms(batch, generator))
        self.weight = cross_entropy / penalty if penalty > 0 else 1.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch."""
        cross_entropy, penalty = self.terms(batch, generator)
        return cross_entropy + self.weight * penalty

    def terms(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cross-entropy and penalty of one batch, before weighting."""
        device = model_device(self.model)
        ordinary = int((batch.indices >= 0).sum())
        pasted_count = round(PASTED_SHARE * ordinary) if len(self.alignment.donors) else 0
        clean = batch.images[:pasted_count]
        pasted = paste_segments(clean, self.alignment, self._relevant(batch.indices[:pasted_count]), generator)
        images = batch.images
        if self.swaps:
            images = torch.cat([pasted, batch.images[pasted_count:ordinary], self._erase(batch, ordinary, generator)])
        wants_effect = self.penalty == "effect" and pasted_count > 0
        # The other half of each pair goes through the model in the same pass.
        others = (clean if self.swaps else pasted) if wants_effect else clean[:0]
        logits = self.model(torch.cat([images, others]).to(device))
        cross_entropy = F.cross_entropy(logits[: len(images)], batch.labels.to(device))
        if wants_effect:
            return cross_entropy, effect_penalty(logits[:pasted_count], logits[len(images) :], logits)
        if self.penalty in _GRADIENT_PENALTIES:
            rows = -1 - batch.indices[ordinary:]
            masks = self.alignment.masks[rows].to(device)
            return cross_entropy, _GRADIENT_PENALTIES[self.penalty](self.model, batch.images[ordinary:].to(device), masks, generator)
        return cross_entropy, torch.zeros_like(cross_entropy)

    def _erase(self, batch: Batch, ordinary: int, generator: torch.Generator) -> Float[Tensor, "image channel height width"]:
        """The alignment samples, half of them with ordinary images' pixels in place of what is spurious: their class without its shortcut."""
        samples = batch.images[ordinary:]
        others = batch.images[:ordinary][torch.randint(ordinary, (len(samples),), generator=generator)]
        erased = torch.rand(len(samples), generator=generator) < ERASED_SHARE
        masks = self.alignment.masks[-1 - batch.indices[ordinary:]] & erased[:, None, None]
        return torch.where(masks[:, None], others, samples)

    def _relevant(self, indices: Tensor) -> Bool[Tensor, "image height width"]:
        """Which pixels of ordinary images are known to be relevant, because the images were inspected."""
        relevant = torch.zeros(len(indices), *self.alignment.masks.shape[1:], dtype=torch.bool)
        for row, index in enumerate(indices.tolist()):
            if index in self._protected:
                relevant[row] = self.alignment.protected[self._protected[index]]
        return relevant


def paste_segments(
    images: Float[Tensor, "image channel height width"],
    alignment: AlignmentSet,
    relevant: Bool[Tensor, "image height width"],
    generator: torch.Generator,
) -> Float[Tensor, "image channel height width"]:
    """Each image with the spurious segments of a random alignment image in their place, but never over ``relevant`` pixels."""
    if len(images) == 0:
        return images
    chosen = alignment.donors[torch.randint(len(alignment.donors), (len(images),), generator=generator)]
    where = alignment.masks[chosen] & ~relevant
    return torch.where(where[:, None], alignment.batch.images[chosen], images)


def effect_penalty(
    before: Float[Tensor, "image class_"], after: Float[Tensor, "image class_"], all_logits: Float[Tensor, "any_image class_"]
) -> Tensor:
    """E |f(x) - f(x')| / (sqrt(2) sigma), x' being x with spurious segments exchanged and sigma^2 the variance of f (eq. 10).

    The square inside the mean would be the total Sobol index of those pixels (Jansen 1999): 0 where the model does not use them, near 1 where it
    uses nothing else. The root keeps pulling as the effect gets small, and so takes it to zero, as a lasso does. Sigma, over all logits of the
    batch, has a gradient too: a model cannot lower the ratio by making its outputs small.
    """
    variance = all_logits.var(0, correction=0).sum().clamp_min(SMALLEST_EFFECT)
    index = (before - after).square().sum(1) / (2 * variance)
    return (index + SMALLEST_EFFECT).sqrt().mean()


def jacobian_penalty(
    model: nn.Module, images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> Tensor:
    """An unbiased estimate of the squared Jacobian inside the mask, by one random projection of the logits (Hoffman et al. 2019; eq. 11)."""

    def projected(logits: Tensor) -> Tensor:
        return (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum()

    return _squared_gradient(model, images, masks, projected)


def log_prob_sum_penalty(
    model: nn.Module, images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> Tensor:
    """The published right-reasons loss: the squared gradient, inside the mask, of the sum of log-probabilities (eq. 8)."""
    return _squared_gradient(model, images, masks, lambda logits: logits.log_softmax(1).sum())


def _squared_gradient(model: nn.Module, images: Tensor, masks: Tensor, scalar: Callable[[Tensor], Tensor]) -> Tensor:
    """Summed over the masked pixels of an image, averaged over the images that have a mask."""
    masked = masks.any(2).any(1)
    if not masked.any():
        return images.new_zeros(())
    leaf = images[masked].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(model(leaf)), leaf, create_graph=True)
    return (gradient * masks[masked][:, None]).square().sum((1, 2, 3)).mean()


_GRADIENT_PENALTIES = {"jacobian": jacobian_penalty, "log_prob_sum": log_prob_sum_penalty}
