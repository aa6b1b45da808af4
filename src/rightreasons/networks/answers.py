"""Checks whether the classifier's answers fit the data: accuracy per class, and whether another class order or another input would fit better.

A checkpoint with exchanged outputs, a wrong normalisation or a wrong input size still gives logits, heatmaps and verdicts, and all of them
mislead. The counts come from the sampling pass, which runs every training image through the model anyway, and from one pass over validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.memory import BATCH_BYTES, how_many
from rightreasons.common.progress import Advance
from rightreasons.data.loading import Batch, check_labels, count_images
from rightreasons.errors import ModelError
from rightreasons.networks.classifier import Classifier, as_classifier, check_finite, model_device
from rightreasons.networks.presets import CHANNELS, Preset
from rightreasons.networks.team import map_batches
from rightreasons.records import GroupScore

# Another input is reported if it gains at least this much balanced accuracy, and chance does not explain the gain.
SMALLEST_GAIN = 0.1
# Another class order is reported, and stops the run, if it gains at least this much balanced accuracy.
CLEAR_GAIN = 0.25
# Differences of up to this many standard errors count as chance.
CHANCE = 3.0
# A classifier is better than guessing if its balanced accuracy covers more than this share of the way from chance to 1.
LEAST_ABOVE_CHANCE = 0.05
# Inputs fit equally well if their shares of right answers differ by at most TIE. At most MOST_TOLD of them are named.
TIE = 0.01
MOST_TOLD = 3
# Other inputs are tried if balanced accuracy on the training images is below this.
GOOD_ACCURACY = 0.9
# The number of training images on which other inputs are tried.
TRIED_IMAGES = 128
SIZES = (28, 32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
# Common normalisations: mean and deviation of each channel, for pixels in 0 to 1.
NORMALISATIONS = (
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
)


@dataclass(frozen=True)
class Answers:
    """How often images of each class (row) got each answer (column) on one split."""

    counts: Int[Tensor, "class_ answer"]

    @classmethod
    def none(cls, classes: int) -> Answers:
        """Counts of zero, before any image is added."""
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    def add(self, labels: Int[Tensor, " image"], answers: Int[Tensor, " image"]) -> None:
        """Counts a batch."""
        self.counts.index_put_((labels, answers), torch.ones_like(labels), accumulate=True)

    @property
    def total(self) -> int:
        """How many images were counted."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """The share of the images that got their own class; NaN if there are no images."""
        return int(self.counts.diagonal().sum()) / self.total if self.total else math.nan

    @property
    def recall(self) -> Float[Tensor, "class_ answer"]:
        """The counts of each class as shares; zeros for a class without images."""
        return self.counts.double() / self.counts.sum(1, keepdim=True).clamp_min(1)

    def balanced(self, order: Sequence[int]) -> float:
        """Mean accuracy over the classes that have images, with ``order[k]`` as the answer that is right for class k."""
        present = self.counts.sum(1) > 0
        return self.recall[torch.arange(len(order)), torch.tensor(order)][present].mean().item()

    def by_class(self, names: Sequence[str]) -> dict[str, GroupScore]:
        """Accuracy and count of each class that has images."""
        counts, right = self.counts.sum(1).tolist(), self.counts.diagonal().tolist()
        return {name: GroupScore(right[row] / counts[row], counts[row]) for row, name in enumerate(names) if counts[row]}


def count_answers(model: nn.Module, dataset: Dataset, classes: int, advance: Advance) -> Answers:
    """The answers on a split, in one pass. Raises DataError for a label that no class has, ModelError for logits that are not finite."""
    answers, count, done = Answers.none(classes), count_images(dataset), 0
    for labels, given in map_batches(partial(_answer_batch, model, classes), dataset):
        answers.add(labels, given)
        done += len(labels)
        advance(done, count)
    return answers


def _answer_batch(model: nn.Module, classes: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """Labels and answers of a batch."""
    model.eval()
    with torch.no_grad():
        logits = model(batch.images.to(model_device(model))).cpu()
    check_labels(batch.labels, batch.indices, classes)
    check_finite(logits, batch.images, batch.indices, "logits (at validation)")
    return batch.labels, logits.argmax(1)


def describe_answers(split: str, answers: Answers, names: Sequence[str], worst: int = 5) -> str:
    """Accuracy on a split in words, with the ``worst`` classes."""
    classes = sorted(answers.by_class(names).items(), key=lambda item: item[1].accuracy)
    shown = ", ".join(f"{name} {score.accuracy:.1%} of {score.count}" for name, score in classes[:worst])
    rest = f", and {len(classes) - worst} classes above these" if len(classes) > worst else ""
    return f"the classifier is right on {answers.accuracy:.1%} of {answers.total} {split} images ({shown}{rest})"


def describe_input(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> str:
    """The network's input, in words."""
    preset, (channels, height, width) = as_classifier(model).preset, images.shape[1:]
    order = ", taken in the order " + ", ".join(("red", "green", "blue")[channel] for channel in preset.channels) if preset.channels else ""
    scaled = f"normalised by mean {_numbers(preset.mean)} and deviation {_numbers(preset.std)}" if preset.mean else "in 0 to 1, not normalised"
    return f"the network sees {width} x {height} pixels in {channels} channel{'s' if channels > 1 else ''}{order}, {scaled}"


def check_order(train: Answers, validation: Answers, names: Sequence[str]) -> str | None:
    """A sentence on an order of the outputs that fits clearly better; None if there is no such order.

    The order is chosen on ``train`` and has to hold on ``validation``, since the best order always fits the images it was chosen on. If the
    answers on ``train`` are below chance, which a right order would not cause, it is enough that ``validation`` does not contradict.
    """
    order = _best_order(train.recall)
    own = tuple(range(len(order)))
    moved = [row for row in own if order[row] != row]
    if not moved:
        return None

    def fits(*parts: Answers) -> bool:
        counts = torch.stack([part.counts for part in parts]).sum(0)
        return _beyond_chance(*(sum(int(counts[row, column[row]]) for row in moved) for column in (order, own)))

    gains = [part.balanced(order) - part.balanced(own) if part.total else 0.0 for part in (train, validation)]
    told, split = validation, "validation"
    if not (min(gains) >= CLEAR_GAIN and fits(validation) and fits(train, validation)):
        if compare_with_chance(train) != "below chance" or gains[0] < CLEAR_GAIN or gains[1] < 0 or not fits(train):
            return None
        told, split = train, "training"
    outputs = [names[order.index(column)] for column in own]
    return (
        f"the outputs seem to stand for the classes in another order: of {told.total} {split} images {told.accuracy:.1%} are "
        f"classified right with the outputs {_list(names)}, and mean accuracy over the classes would be {told.balanced(order):.1%} instead of "
        f"{told.balanced(own):.1%} if they were {_list(outputs)}"
    )


def compare_with_chance(answers: Answers) -> Literal["at chance", "below chance"] | None:
    """Whether the answers are no better than guessing, by three standard errors of a guesser's balanced accuracy; None if they are better."""
    balanced, chance, error = _against_chance(answers)
    if balanced - chance > max(CHANCE * error, LEAST_ABOVE_CHANCE * (1 - chance)):
        return None
    return "below chance" if chance - balanced > CHANCE * error else "at chance"


def check_chance(answers: Answers) -> str | None:
    """A sentence if the answers are no better than guessing; None if they are better, or if there are no answers."""
    kind = compare_with_chance(answers) if answers.total else None
    if kind is None:
        return None
    balanced, chance, _ = _against_chance(answers)
    few = f", too close for {answers.total} images to tell apart" if balanced - chance > LEAST_ABOVE_CHANCE * (1 - chance) else ""
    return f"the classifier is {kind}: mean accuracy over the classes is {balanced:.1%} on the training images, and guessing has {chance:.1%}{few}"


def find_better_input(model: nn.Module, batch: Batch) -> str | None:
    """A sentence on the channel order, normalisation or size under which the model is right on clearly more of these images, or None.

    An input under which the answers stay at chance does not count as better, and one that changes two settings has to be clearly better than
    those that change one. Inputs that fit as well as the best one are named with it, in order of their cross-entropy. Cross-entropy alone does
    not choose, since it also falls with the scale of the input.
    """
    classifier = as_classifier(model)
    own = _try_input(classifier, batch.images, batch.labels)
    if own is None:
        return None
    fits = []
    for other in _other_inputs(classifier, batch.images):
        tried = Classifier(classifier.network, other.preset, classifier.order).to(model_device(model))
        fit = _try_input(tried, other.images, batch.labels)
        if fit is not None and _is_better(fit, own):
            fits.append((fit, other))
    if not fits:
        return None
    fewest = min(other.changes for fit, other in fits if fit.share > max(fit.share for fit, _ in fits) - SMALLEST_GAIN)
    fits = [(fit, other) for fit, other in fits if other.changes == fewest]
    best = max(fit.share for fit, _ in fits)
    fits = sorted(((fit, other) for fit, other in fits if fit.share >= best - TIE), key=lambda pair: pair[0].loss)
    said = ", or ".join(other.said for _, other in fits[:MOST_TOLD])
    more = f", or {len(fits) - MOST_TOLD} others" if len(fits) > MOST_TOLD else ""
    which = "; the images do not tell which of these is right: look it up in the program that trained the network" if len(fits) > 1 else ""
    return f"{best:.1%} instead of {own.share:.1%} of {len(batch)} training images are classified right {said}{more}{which}"


def judge_answers(model: nn.Module, train: Answers, validation: Answers, names: Sequence[str], sample: Batch, *, order_is_stated: bool) -> list[str]:
    """What is wrong with the answers, in sentences for a person; an empty list if they fit.

    Raises ModelError if the outputs are in another order than the classes, unless the order was stated, and for a classifier at chance that
    is better than chance under another channel order, normalisation or size: every verdict on it would be about a mistake in the configuration.
    """
    words = []
    order = check_order(train, validation, names)
    better = find_better_input(model, sample) if train.balanced(range(len(names))) < GOOD_ACCURACY else None
    if order is not None and not order_is_stated:
        instead = f". Or the order is right, but the input differs from the one in training: {better}" if better else ""
        raise ModelError(
            f"{order}. State the order of the network's outputs in [model] classes = [...]; a stated order is followed, with a note{instead}"
        )
    chance = check_chance(train)
    if chance is not None and better is not None:
        raise ModelError(f"{chance}; {better}. Set that in the configuration, or use the checkpoint that was trained on this input")
    if order is not None:
        words.append(f"{order}; but [model] classes or the checkpoint's own names are followed, which say otherwise")
    if chance is not None:
        words.append(
            f"{chance}. Check the checkpoint, the order of the classes, the input size, the order of the colours and the normalisation before you "
            "trust what follows"
        )
    if better is not None:
        words.append(f"another input fits better: {better}")
    return words


@dataclass(frozen=True)
class _Other:
    """Another input: its preset and images, the number of settings that it changes, and which ones in words."""

    preset: Preset
    images: Tensor
    changes: int
    said: str


@dataclass(frozen=True)
class _Fit:
    """How a classifier does on one input: which images it gets right, all of its answers, and their mean cross-entropy."""

    right: Bool[Tensor, " image"]
    answers: Answers
    loss: float

    @property
    def share(self) -> float:
        """The share of the images that it gets right."""
        return self.right.double().mean().item()


def _is_better(fit: _Fit, own: _Fit) -> bool:
    """Whether the fit is clearly better than with the input as it is, and clearly better than guessing."""
    classes = range(len(own.answers.counts))
    gain = fit.answers.balanced(classes) - own.answers.balanced(classes)
    likely = _beyond_chance(int((fit.right & ~own.right).sum()), int((own.right & ~fit.right).sum()))
    return gain >= SMALLEST_GAIN and likely and compare_with_chance(fit.answers) is None


def _other_inputs(classifier: Classifier, images: Tensor) -> Iterator[_Other]:
    preset, channels = classifier.preset, len(classifier.preset.mean) or images.shape[1]
    current = (preset.mean or (0.0,) * channels, preset.std or (1.0,) * channels)
    scalings = [current, *((mean[:channels], std[:channels]) for mean, std in NORMALISATIONS)] if channels in (1, 3) else []
    for name, order in CHANNELS.items():
        exchanged = order != preset.channels
        if exchanged and images.shape[1] != 3:
            continue
        for mean, std in dict.fromkeys(scalings):
            scaled = (mean, std) != current
            if not (exchanged or scaled):
                continue
            said = [f'channels = "{name}"'] if exchanged else []
            said += [f"mean = [{_numbers(mean)[1:-1]}]", f"std = [{_numbers(std)[1:-1]}]"] if scaled else []
            yield _Other(replace(preset, mean=mean, std=std, channels=order), images, exchanged + scaled, f"with [model] {' and '.join(said)}")
    for size in SIZES:
        if size != images.shape[-1]:
            resized = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
            yield _Other(preset, resized, 1, f"with [data] size = {size}")


def _try_input(classifier: Classifier, images: Tensor, labels: Tensor) -> _Fit | None:
    """How well the network answers; None if it does not take this input, or gives logits that are not finite."""
    classifier.eval()
    size = how_many(images[0].nbytes, BATCH_BYTES, 32)
    try:
        with torch.no_grad():
            logits = torch.cat([classifier(part.to(model_device(classifier))).float().cpu() for part in images.split(size)])
    except Exception:  # whatever somebody's own network raises on another input size: it cannot have been trained on that
        return None
    if not logits.isfinite().all():
        return None
    answers = Answers.none(logits.shape[1])
    answers.add(labels, logits.argmax(1))
    return _Fit(logits.argmax(1) == labels, answers, F.cross_entropy(logits, labels).item())


def _against_chance(answers: Answers) -> tuple[float, float, float]:
    """Balanced accuracy, a guesser's, and the standard error of a guesser's on as many images of each class."""
    counts = answers.counts.sum(1).double()
    present, chance = counts > 0, 1 / len(counts)
    error = (chance * (1 - chance) / counts[present]).sum().sqrt().item() / int(present.sum())
    return answers.balanced(range(len(counts))), chance, error


def _beyond_chance(better: int, worse: int) -> bool:
    """McNemar's test: whether, of the images that only one of two inputs gets right, chance does not explain how many ``better`` has."""
    return better - worse > CHANCE * math.sqrt(better + worse)


def _best_order(recall: Float[Tensor, "class_ answer"]) -> tuple[int, ...]:
    """An answer for each class, each used once, chosen from the clearest on; a class keeps its own answer unless another is clearer."""
    left = recall + 1e-9 * torch.eye(len(recall), dtype=recall.dtype)
    order = [0] * len(left)
    for _ in order:
        row, column = divmod(int(left.argmax()), len(left))
        order[row] = column
        left[row], left[:, column] = -1, -1
    return tuple(order)


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
