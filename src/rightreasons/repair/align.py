"""Right-reasons fine-tuning: cross-entropy, and terms that stop the model from using the judged-spurious segments.

Terms (docs/method.md, section 6):

- ``swap``     draws the spurious part of every image anew, label kept: what is known to be spurious is filled with another image's pixels,
               then half of the images get an inspected image's spurious segments pasted in. An image with nothing spurious is filled too,
               at a place drawn from the others, so that neither the shortcut, its absence nor the seam predicts the class.
- ``penalty``  on the effect of spurious pixels. ``effect`` is finite: how far the logits move when a spurious segment is pasted in,
               against their standard deviation. ``jacobian`` and ``log_prob_sum`` (the published loss) are gradients inside the mask.

Alignment samples fill a fixed share of every batch, drawn with replacement. Gradients of gradients are taken on them alone, and
only if a gradient penalty is chosen. BatchNorm statistics stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.memory import BATCH_BYTES, LARGEST_BATCH, how_many
from rightreasons.common.progress import Advance
from rightreasons.common.seeds import seeded
from rightreasons.config import AlignConfig, Flips
from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.networks.classifier import model_device
from rightreasons.networks.team import by_rows
from rightreasons.networks.training import Recipe, flip_together, train_model
from rightreasons.records import TunedEpoch
from rightreasons.repair.collapse import Answers, Collapse, has_collapsed, read_answers
from rightreasons.repair.penalties import GRADIENT_PENALTIES, effect_penalty
from rightreasons.repair.propagate import Spread

# Segments are pasted onto every other image.
PASTED = slice(None, None, 2)
# Every other one of the images with a pasted segment is compared with itself before.
COMPARED = slice(None, None, 2)
# How many images are tried as the source of a filling; the one with the fewest spurious pixels there is taken.
FILL_TRIES = 4
# The effect penalty is measured in standard deviations of the logits, so that one weight suits all models and scales.
EFFECT_WEIGHT = 1.0
# Steps over which the learning rate rises: the first ones would otherwise wreck features that took long to learn.
WARM_UP = 20
# Where the first epoch collapses, fine-tuning begins again at this part of its learning rate, once.
GENTLER = 0.25
# What the name of that second attempt's checkpoint ends with.
AGAIN = ".again.pt"
# Neutral images are made in batches of this many held-out images, which are filled from one another.
NEUTRAL_BATCH = 64


@dataclass(frozen=True)
class AlignmentSet:
    """The inspected images with their corrective masks, and ``protected``: pixels judged relevant, which no swap covers.

    ``spread`` marks the spurious pixels of the other training images, if the verdicts could be spread to them.
    """

    batch: Batch
    masks: Bool[Tensor, "image height width"]
    protected: Bool[Tensor, "image height width"]
    spread: Spread | None = None

    @property
    def donors(self) -> Int[Tensor, " donor"]:
        """The rows with something spurious to paste."""
        return self.masks.any(2).any(1).nonzero()[:, 0]

    @cached_property
    def _row_of(self) -> dict[int, int]:
        """The row of each inspected image, by its number in the training set."""
        return {index: row for row, index in enumerate(self.batch.indices.tolist())}

    def look_up(self, indices: Int[Tensor, " image"]) -> tuple[Bool[Tensor, "image height width"], Bool[Tensor, "image height width"]]:
        """What is spurious and what is protected in these images of the training set, as far as it is known."""
        numbers, row_of = indices.tolist(), self._row_of
        height, width = self.masks.shape[1:]
        protected = torch.zeros(len(indices), height, width, dtype=torch.bool)
        spurious = torch.zeros_like(protected) if self.spread is None else self.spread.masks(indices, (height, width))
        places = [place for place, index in enumerate(numbers) if index in row_of]
        rows = [row_of[numbers[place]] for place in places]
        protected[places] = self.protected[rows]
        judged = self.masks[rows].flatten(1).any(1)  # where nothing was judged spurious, the probe may have found it
        places, rows = ([number for number, some in zip(part, judged.tolist(), strict=True) if some] for part in (places, rows))
        masks = self.masks[rows]
        spurious[places] = masks if self.spread is None else self.spread.sharpen(masks, indices[places])
        return spurious & ~protected, protected


def align_model(
    model: nn.Module,
    dataset: Dataset,
    alignment: AlignmentSet,
    *,
    config: AlignConfig,
    seed: int,
    flips: Flips = "off",
    hosts: Batch | None = None,
    checkpoint: Path | None = None,
    progress: Advance | None = None,
    warn: Callable[[Collapse], None] | None = None,
    record: Callable[[TunedEpoch], None] | None = None,
) -> None:
    """Fine-tunes ``model`` in place. An epoch has ceil(n_train / (batch - alignment part)) batches.

    With held-out ``hosts`` it ends at the latest epoch whose ``swapped_accuracy`` is within a standard error of the best; else at the last.
    If the model has collapsed after its first epoch, ``warn`` is told, and fine-tuning begins again from the original weights at ``GENTLER`` of the
    learning rate; if that collapses too, it is told again, and the model stays as that epoch left it, for the harm guard to judge. A later epoch
    that collapses is told and never chosen. ``record`` is told of every epoch that did not collapse.
    With ``config.term`` "none" this is the control: the same steps, data and ratio, but no alignment term.
    """
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    before = None if hosts is None else read_answers(model, hosts)
    again = None if checkpoint is None else checkpoint.with_suffix(AGAIN)
    gentler = GENTLER * config.learning_rate
    for rate, next_rate, file in ((config.learning_rate, gentler, checkpoint), (gentler, None, again)):
        judge = None
        if hosts is not None and before is not None:
            began = file is not None and file.exists()
            judge = _Judge(hosts, before, alignment, seed, rate=rate, next_rate=next_rate, warn=warn, record=record, began=began)
        settings = config.model_copy(update={"learning_rate": rate})
        try:
            _fine_tune(model, dataset, alignment, config=settings, seed=seed, flips=flips, judge=judge, checkpoint=file, progress=progress)
        except _Collapsed:
            if next_rate is not None:
                model.load_state_dict(weights)
            continue
        return


class _Collapsed(Exception):
    """The first epoch of fine-tuning ended with a collapsed model."""


class _Judge:
    """The merit of an epoch: ``swapped_accuracy``, and nothing for a collapsed model. Raises ``_Collapsed`` if that is so after the first.

    ``began`` says that an earlier process finished the first epoch, which then did not collapse.
    """

    def __init__(
        self,
        hosts: Batch,
        before: Answers,
        alignment: AlignmentSet,
        seed: int,
        *,
        rate: float,
        next_rate: float | None,
        warn: Callable[[Collapse], None] | None,
        record: Callable[[TunedEpoch], None] | None,
        began: bool,
    ) -> None:
        self.hosts, self.before, self.alignment, self.seed = hosts, before, alignment, seed
        self.rate, self.next_rate, self.warn, self.record, self.began, self.told = rate, next_rate, warn, record, began, False

    @property
    def slack(self) -> float:
        """A standard error of the merit, at most."""
        return 0.5 / math.sqrt(len(self.hosts))

    def __call__(self, model: nn.Module, epoch: int) -> float:
        after = read_answers(model, self.hosts)
        if has_collapsed(self.before, after):
            first, label = not self.began, after.shares.index(max(after.shares))
            if self.warn is not None and not self.told:
                self.warn(Collapse(epoch, self.rate, label, self.before, after, self.next_rate if first else None))
            self.told = True
            if first:
                raise _Collapsed
            return 0.0
        self.began = True
        merit = swapped_accuracy(model, self.hosts, self.alignment, seeded(self.seed, "epoch donors"))
        if self.record is not None:
            self.record(TunedEpoch(epoch, self.rate, after.accuracy, merit))
        return merit


def _fine_tune(
    model: nn.Module,
    dataset: Dataset,
    alignment: AlignmentSet,
    *,
    config: AlignConfig,
    seed: int,
    flips: Flips,
    judge: _Judge | None,
    checkpoint: Path | None,
    progress: Advance | None,
) -> None:
    """Fine-tunes ``model`` in place, once."""
    count = count_images(dataset)
    part, ordinary = split_batch(config)

    if alignment.spread is not None:  # its probe has a model of its own, which is for other images than these
        alignment = replace(alignment, spread=replace(alignment.spread, score=None))
    mixed = _Mixed(dataset, alignment.batch, part, ordinary)
    loss = AlignLoss(model, alignment, config, part=part, flips=flips)
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
        recipe=Recipe(config.epochs, config.learning_rate, config.gamma, config.layers, WARM_UP),
        seed=seed,
        freeze_statistics=True,
        judge_epoch=judge,
        slack=0.0 if judge is None else judge.slack,
        checkpoint=checkpoint,
        progress=progress,
    )


@dataclass(frozen=True)
class _Mixed:
    """Batches of one epoch: ``ordinary`` images of the dataset in a new order, and after them ``part`` alignment samples, drawn with replacement."""

    dataset: Dataset
    inspected: Batch
    part: int
    ordinary: int

    def __call__(self, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(count_images(self.dataset), generator=generator)
        for batch in read_batches(self.dataset, indices=order, batch_size=self.ordinary):
            drawn = torch.randint(len(self.inspected), (self.part,), generator=generator)
            yield Batch(
                torch.cat([batch.indices, self.inspected.indices[drawn]]),
                torch.cat([batch.images, self.inspected.images[drawn]]),
                torch.cat([batch.labels, self.inspected.labels[drawn]]),
            )


def images_seen(config: AlignConfig, count: int) -> int:
    """The number of images in all forward passes of fine-tuning on ``count`` images, with those that are only compared."""
    compared = len(range(config.batch_size)[PASTED][COMPARED]) if config.penalty == "effect" else 0
    return config.epochs * math.ceil(count / split_batch(config)[1]) * (config.batch_size + compared)


def split_batch(config: AlignConfig) -> tuple[int, int]:
    """How many of a batch are alignment samples, and how many are ordinary."""
    part = min(max(1, round(config.ratio * config.batch_size)), config.batch_size - 1)
    return part, config.batch_size - part


class AlignLoss:
    """Cross-entropy with the alignment terms, for batches whose last ``part`` images are the alignment samples."""

    def __init__(self, model: nn.Module, alignment: AlignmentSet, config: AlignConfig, *, part: int, flips: Flips = "off") -> None:
        self.model, self.alignment, self.part = model, alignment, part
        self.swaps = "swap" in config.term
        self.penalty = config.penalty if "penalty" in config.term else None
        self.weight = EFFECT_WEIGHT if config.lambda_ == "auto" else config.lambda_
        self.flips: Flips = flips
        self.pieces = Pieces(alignment, flips)

    @property
    def needs_calibration(self) -> bool:
        """Whether the penalty's scale depends on the model, so that its weight has to be calibrated."""
        return self.penalty in GRADIENT_PENALTIES

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
        images, spurious, protected = flip_together(self.flips, generator, batch.images, *self.alignment.look_up(batch.indices))
        shown, others = images, images[:0]
        if len(self.pieces):
            if self.swaps:
                groups = batch.labels if self.alignment.spread else torch.zeros_like(batch.labels)
                shown = fill_segments(images, groups, spurious, protected, self.pieces, generator)
            clean = shown[PASTED]
            pasted = paste_segments(clean, protected[PASTED], self.pieces, generator)
            if self.swaps:
                shown = shown.clone()
                shown[PASTED] = pasted
            if self.penalty == "effect":  # the other half of each pair goes through the model in the same pass
                others = (clean if self.swaps else pasted)[COMPARED]
        given = torch.cat([shown, others])
        logits = by_rows(lambda rows: self.model(given[rows].to(device)).float(), len(given))
        cross_entropy = F.cross_entropy(logits[: len(shown)], batch.labels.to(device))
        if len(others):
            return cross_entropy, effect_penalty(logits[: len(shown)][PASTED][COMPARED], logits[len(shown) :], logits)
        if self.penalty in GRADIENT_PENALTIES:
            samples, masks = images[-self.part :].to(device), spurious[-self.part :].to(device)
            return cross_entropy, GRADIENT_PENALTIES[self.penalty](self.model, samples, masks, generator)
        return cross_entropy, torch.zeros_like(cross_entropy)


def swapped_accuracy(model: nn.Module, hosts: Batch, alignment: AlignmentSet, generator: torch.Generator) -> float:
    """Accuracy on held-out images, each with an inspected image's spurious segments pasted in, so that the shortcut tells nothing about the class.

    It needs no labels but the hosts' own, and so may be used to choose the epoch.
    """
    pieces, answers = Pieces(alignment), []
    model.eval()
    with torch.no_grad():
        for images in hosts.images.split(how_many(hosts.images[0].nbytes, BATCH_BYTES, LARGEST_BATCH)):
            if len(pieces):
                images = paste_segments(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool), pieces, generator)
            answers.append(model(images.to(model_device(model))).argmax(1).cpu())
    return (torch.cat(answers) == hosts.labels).double().mean().item()


def neutral_images(hosts: Batch, alignment: AlignmentSet, generator: torch.Generator) -> Float[Tensor, "image channel height width"] | None:
    """Held-out images on which the shortcut tells nothing about the class; None if nothing is spurious.

    As in a swap, the pixels that the probe marks are filled from another image, if the verdicts could be spread, and a random inspected
    image's spurious segments are pasted in.
    """
    pieces = Pieces(alignment)
    if not len(pieces):
        return None
    neutral = []
    for images, labels in zip(hosts.images.split(NEUTRAL_BATCH), hosts.labels.split(NEUTRAL_BATCH), strict=True):
        free = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        spread, filled = alignment.spread, images
        if spread is not None:
            filled = fill_segments(images, labels, spread.find(images), free, pieces, generator)
        neutral.append(paste_segments(filled, free, pieces, generator))
    return torch.cat(neutral)


class Pieces:
    """The spurious segments of the inspected images, to draw from."""

    def __init__(self, alignment: AlignmentSet, flips: Flips = "off") -> None:
        rows = alignment.donors
        self.images = alignment.batch.images[rows]
        self.flips: Flips = flips
        self.masks = alignment.look_up(alignment.batch.indices[rows])[0]

    def __len__(self) -> int:
        return len(self.masks)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "piece channel height width"], Bool[Tensor, "piece height width"]]:
        """``count`` of them, flipped as training images are; the pixels of a piece are those of its mask."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        images, masks = flip_together(self.flips, generator, self.images[chosen], self.masks[chosen])
        return images, masks


def fill_segments(
    images: Float[Tensor, "image channel height width"],
    groups: Int[Tensor, " image"],
    spurious: Bool[Tensor, "image height width"],
    protected: Bool[Tensor, "image height width"],
    pieces: Pieces,
    generator: torch.Generator,
) -> Float[Tensor, "image channel height width"]:
    """Each image with its ``spurious`` pixels replaced by those of another image of its group.

    An image with nothing spurious is filled where a piece would lie: otherwise a filling would mark the class that has the shortcut.
    If the shortcut is known in all images, a group is a class, so that no filling contradicts the label. If it is not, an image of the
    same class would bring the same shortcut, and all images are one group.
    """
    count = len(images)
    _, elsewhere = pieces.draw(count, generator)
    nothing = ~spurious.any(2).any(1)
    region = torch.where(nothing[:, None, None], elsewhere & ~protected, spurious)
    # An image is drawn for itself only if its group has no other.
    likely = (groups[:, None] == groups).float().fill_diagonal_(1e-9)
    tried = torch.multinomial(likely, FILL_TRIES, replacement=True, generator=generator).T
    overlap = (region & spurious[tried]).flatten(2).sum(2)
    source = tried[overlap.argmin(0), torch.arange(count)]
    return torch.where(region[:, None], images[source], images)


def paste_segments(
    images: Float[Tensor, "image channel height width"],
    protected: Bool[Tensor, "image height width"],
    pieces: Pieces,
    generator: torch.Generator,
) -> Float[Tensor, "image channel height width"]:
    """Each image with the spurious segments of a random inspected image pasted in at the same place, but never over ``protected`` pixels."""
    sources, where = pieces.draw(len(images), generator)
    return torch.where((where & ~protected)[:, None], sources, images)
