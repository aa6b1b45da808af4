"""What a gate measures of a checkpoint on held-out images, for each class and for all of them together, by the metrics of ``scoring``.

The verdicts are on training images. The probe of ``repair.propagate`` finds the same thing in held-out images, and the spurious share is that of the
positive effect on what it marks there. Where it cannot tell, the share is that of the inspected images themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from rightreasons.common.progress import Reporter
from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, StoredImages, read_all, some_images
from rightreasons.errors import ConfigError
from rightreasons.networks.classifier import hash_weights, place_model
from rightreasons.networks.predictions import predict_labels
from rightreasons.networks.sources import open_model
from rightreasons.repair.propagate import spread_verdicts
from rightreasons.repair.swap import paste_into
from rightreasons.run import Run
from rightreasons.scoring.metrics import Interval, wilson_interval
from rightreasons.scoring.scores import effect_in_masks

# At most this many held-out images are drawn, and at most so many of each class are explained.
HELD_OUT = 1000
EXPLAINED = 50


@dataclass(frozen=True)
class Number:
    """A share, of how many images, and its 95 % interval where it is a rate of them; None where it cannot be measured."""

    value: float | None
    count: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Measured:
    """The numbers of one checkpoint by measure and class (None: all images), with the hash of its weights."""

    checkpoint: str
    weights: str
    numbers: Mapping[str, Mapping[str | None, Number]]


@dataclass(frozen=True)
class Marked:
    """Images with what is spurious in them, and how many images of each class they stand for; ``told`` says in words where they come from."""

    images: StoredImages
    labels: Int[Tensor, " image"]
    masks: Bool[Tensor, "image height width"]
    total: Sequence[int]
    marked: Sequence[int]
    told: str


@dataclass(frozen=True)
class Yardstick:
    """What every checkpoint of a check is measured with: held-out images, and the same shortcuts.

    ``donors`` are the inspected images with what was judged spurious, which is pasted into ``hosts``; ``explained`` are the images on which the
    spurious share is measured. Both are None if nothing was judged spurious.
    """

    run: Run
    split: str
    hosts: Batch
    donors: Marked | None = None
    explained: Marked | None = None

    @property
    def names(self) -> list[str]:
        """The classes."""
        return [item.name for item in self.run.descriptions]


def prepare_yardstick(run: Run, reporter: Reporter) -> Yardstick:
    """Draws held-out images of the test split, or of the validation split where there is none, and marks the shortcut in them.

    Raises ConfigError if too few segments are judged to tell anything.
    """
    if not run.found and not run.coverage.mostly_judged:
        raise ConfigError(
            f"{run.coverage.judged} of {run.coverage.segments} segments of {run.folder.path} are judged, and none of them is spurious: there is "
            "nothing to check a model against. Judge them first, with `rightreasons review` or `rightreasons find`"
        )
    splits, seed = run.project.task.splits, run.config.run.seed
    split = "test" if "test" in splits else "validation"
    with reporter.stage("held-out images"):
        hosts = some_images(splits[split], HELD_OUT, seeded(seed, "gate"))
    if not run.found:
        return Yardstick(run, split, hosts)
    masks = run.masks
    some = masks.flatten(1).any(1)
    labels, count = run.selection.labels, len(run.descriptions)
    inspected = StoredImages(run.train, run.selection.indices[some])
    told = f"the {len(run.selection)} inspected training images, since the model's feature maps do not show the shortcut in others"
    donors = Marked(inspected, labels[some], masks[some], _count(labels, count), _count(labels[some], count), told)
    with reporter.stage("spread"):
        found = _mark_hosts(run, hosts, masks)
    if found is None:
        reporter.note(f"the spurious share is that of {told}")
    return Yardstick(run, split, hosts, donors, found or donors)


def _mark_hosts(run: Run, hosts: Batch, masks: Bool[Tensor, "image height width"]) -> Marked | None:
    """The held-out images in which the probe sees the shortcut, at most ``EXPLAINED`` of each class; None if it cannot tell."""
    held_out: Dataset = TensorDataset(hosts.images, hosts.labels)
    spread = spread_verdicts(run.model, held_out, read_all(run.train, run.selection.indices), masks, run.protected, run.clear)
    if spread is None:
        return None
    height, width = hosts.images.shape[2:]
    marks = spread.masks(torch.arange(len(hosts)), (height, width))
    some, count = marks.flatten(1).any(1), len(run.descriptions)
    chosen = torch.cat([(some & (hosts.labels == label)).nonzero()[:EXPLAINED, 0] for label in range(count)])
    told = f"{len(hosts)} held-out images, {int(some.sum())} of which show the shortcut"
    return Marked(
        StoredImages(held_out, chosen), hosts.labels[chosen], marks[chosen], _count(hosts.labels, count), _count(hosts.labels[some], count), told
    )


def _count(labels: Int[Tensor, " image"], classes: int) -> list[int]:
    return torch.bincount(labels, minlength=classes).tolist()


def open_checkpoint(run: Run, path: Path, reporter: Reporter) -> nn.Module:
    """The run's network with another checkpoint's weights, its outputs in the order of the data's classes.

    Raises ModelError for a file that cannot be read, or that does not fit the network or the classes.
    """
    config = run.config.model.model_copy(update={"checkpoint": str(path.absolute()), "pretrained": False})
    task, root, seed = run.project.task, run.project.root, run.config.run.seed
    model = open_model(config, classes=task.classes, root=root, generator_seed=seed, note=reporter.note, synonyms=run.config.data.names)
    return place_model(model, some_images(run.train, 2, seeded(seed, "place")).images)


def measure_checkpoint(model: nn.Module, checkpoint: str, yardstick: Yardstick) -> Measured:
    """All numbers of one checkpoint, which is called ``checkpoint``. Raises ModelError if its logits or heatmaps are not finite."""
    numbers = {
        "accuracy": _measure_accuracy(model, yardstick),
        "spurious_share": _measure_share(model, yardstick),
        "swap_flip_rate": _measure_flips(model, yardstick),
    }
    return Measured(checkpoint, hash_weights(model), numbers)


def _measure_accuracy(model: nn.Module, yardstick: Yardstick) -> dict[str | None, Number]:
    hosts = yardstick.hosts
    predictions = predict_labels(model, _parts(hosts, torch.arange(len(hosts))))
    by_class = [predictions.correct[predictions.labels == label] for label in range(len(yardstick.names))]
    return _rates(yardstick.names, [(int(correct.sum()), len(correct)) for correct in by_class])


def _measure_flips(model: nn.Module, yardstick: Yardstick) -> dict[str | None, Number]:
    donors, hosts, names = yardstick.donors, yardstick.hosts, yardstick.names
    if donors is None:
        return _rates(names, [(0, 0)] * len(names))
    counts = []
    for label in range(len(names)):
        generator = seeded(yardstick.run.config.run.seed, f"gate {label}")
        parts = _parts(hosts, (hosts.labels == label).nonzero()[:, 0])
        tried = [paste_into(model, part, donors.images, donors.labels, donors.masks, generator) for part in parts]
        counts.append((sum(int(pasted.changed.sum()) for pasted in tried), sum(len(pasted) for pasted in tried)))
    return _rates(names, counts)


def _measure_share(model: nn.Module, yardstick: Yardstick) -> dict[str | None, Number]:
    """The share of each class's positive effect on what is marked; an image without marks has none there."""
    marked, names = yardstick.explained, yardstick.names
    if marked is None:
        return {name: Number(None, 0) for name in (None, *names)}
    found = effect_in_masks(model, marked.images, marked.masks, yardstick.run).shares
    shares: list[float | None] = []
    for label in range(len(names)):
        known = [share for share, own in zip(found, (marked.labels == label).tolist(), strict=True) if own and share is not None]
        mean = sum(known) / len(known) if known else 0.0
        shares.append(mean * marked.marked[label] / marked.total[label] if marked.total[label] else None)
    whole = sum(share * total for share, total in zip(shares, marked.total, strict=True) if share is not None) / sum(marked.total)
    by_class = {name: Number(share, total) for name, share, total in zip(names, shares, marked.total, strict=True)}
    return {None: Number(whole, sum(marked.total)), **by_class}


def _parts(hosts: Batch, rows: Int[Tensor, " row"]) -> list[Batch]:
    return [Batch(hosts.indices[part], hosts.images[part], hosts.labels[part]) for part in rows.split(256)] if len(rows) else []


def _rates(names: Sequence[str], counts: Sequence[tuple[int, int]]) -> dict[str | None, Number]:
    """The rate of each class, and of all images together, from pairs of hits and trials."""
    whole = tuple(sum(column) for column in zip(*counts, strict=True))
    numbers: dict[str | None, Number] = {}
    for name, (hits, trials) in [(None, whole), *zip(names, counts, strict=True)]:
        numbers[name] = Number(hits / trials, trials, wilson_interval(hits, trials)) if trials else Number(None, 0)
    return numbers
