"""A rehearsal of everything that a run does with data and network, on a few real images, before anything is paid or trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.memory import BATCH_BYTES
from rightreasons.common.seeds import seeded
from rightreasons.config import Config
from rightreasons.data.loading import Batch, check_labels, count_images, fit_images, read_all
from rightreasons.errors import DataError, ModelError, RightReasonsError
from rightreasons.explain.attribute import check_attribution
from rightreasons.networks.answers import describe_input
from rightreasons.networks.classifier import check_finite, check_model, copy_model, model_device, place_model
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.repair.align import AlignmentSet, align_model

# How many images of each split are read twice. Random mirroring would leave all of them unchanged once in 2**15 times. Odd, as a last batch may be.
READ = 15
# How many of these images are explained, and used in one training step.
TRAINED = 3


@dataclass(frozen=True)
class Rehearsal:
    """The results of a rehearsal: for each thing that was tried, what was found, in words."""

    found: Mapping[str, str]


def rehearse(model: nn.Module, splits: Mapping[str, Dataset], classes: tuple[str, ...], config: Config, *, train_first: bool = False) -> Rehearsal:
    """Reads images of every split, explains some, and trains a copy for a step; ``model`` is moved to the best device and keeps its weights.

    ``splits`` has "train" at least; with ``train_first`` the network is untrained, and plain training is rehearsed too.
    Raises DataError for data that change from one reading to the next or have a label that no class has, ModelError for a network that does not
    give finite logits for each image alone or cannot be trained, UnsupportedLayer if the attribution cannot explain it.
    """
    read = {split: _read_twice(dataset, split, len(classes), config.run.seed) for split, dataset in splits.items()}
    few, shape = read["train"], read["train"].images.shape[1:]
    for split, batch in read.items():
        if batch.images.shape[1:] != shape:
            raise DataError(f"images of one shape are needed, and {split} has {_by(batch.images.shape[1:])} and train {_by(shape)}: resize them")
    model = place_model(model, few.images[:2])
    logits = check_model(model, few.images, classes, few.indices, trained=not train_first)
    missing = check_attribution(model, few.images[:TRAINED], config.attribute.computing)
    effect = "which promises no sum" if math.isnan(missing) else f"of whose effect {missing:.1e} is missing"
    told = {
        "images": ", ".join(f"{len(batch)} of {count_images(splits[split])} {split}" for split, batch in read.items()) + "; the same twice",
        "input": describe_input(model, few.images),
        "logits": f"one for each of {len(classes)} classes, from {logits.min():.3g} to {logits.max():.3g}; an image alone has the same as in a batch",
        **({} if train_first else {"answers": _describe_answers(logits, few.labels, classes)}),
        "heatmaps": f"{config.attribute.computing}, {effect}",
    }
    part = _Few(Batch(few.indices[:TRAINED], few.images[:TRAINED], few.labels[:TRAINED]))
    if train_first:
        told["training"] = _try_step("training", model, part, _train, config)
    told["fine-tuning"] = _try_step(f"fine-tuning (layers = {config.align.layers!r})", model, part, _align, config)
    return Rehearsal(told)


def _describe_answers(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> str:
    """How many of the training images that were read are answered right, by class, in words."""
    answers = logits.argmax(1).cpu()
    rows = {name: labels == number for number, name in enumerate(classes) if (labels == number).any()}
    hits = {name: int((answers == labels)[own].sum()) for name, own in rows.items()}
    by_class = ", ".join(f"{name} {hits[name]} of {int(own.sum())}" for name, own in rows.items())
    # The mean over classes, so that one answer to everything is no better than guessing where a class is frequent.
    share = sum(hits[name] / int(own.sum()) for name, own in rows.items()) / len(rows)
    chance = "; no better than guessing: the order of the classes or the normalisation may be another" if share <= 1 / len(classes) + 1e-9 else ""
    return f"right on {sum(hits.values())} of {len(labels)} train images ({by_class}){chance}"


class _Few(Dataset):
    """Images in memory as a dataset; they keep their numbers from the dataset that they come from."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def read(self, rows: Tensor) -> Batch:
        return Batch(self.batch.indices[rows], self.batch.images[rows], self.batch.labels[rows])


def _read_twice(dataset: Dataset, split: str, classes: int, seed: int) -> Batch:
    """Some images of a split, with finite pixels and known labels, which are the same at a second reading."""
    chosen = torch.randperm(count_images(dataset), generator=seeded(seed, "rehearsal", split))[:READ]
    chosen = chosen[: max(TRAINED, len(fit_images(dataset, chosen, BATCH_BYTES)))]  # fewer, if they are large
    first, second = (read_all(dataset, chosen, batch_size=READ) for _ in range(2))
    check_labels(first.labels, first.indices, classes, split)
    bad = (~first.images.flatten(1).isfinite()).any(1).nonzero()[:, 0]
    if len(bad):
        raise DataError(f"image {int(first.indices[bad[0]])} of {split} has pixels that are NaN or infinite: mend it, or leave it out")
    for row, index in enumerate(first.indices.tolist()):
        same = len(first) == len(second) and first.images.shape == second.images.shape
        if not same or not torch.equal(first.images[row], second.images[row]) or first.labels[row] != second.labels[row]:
            inner = dataset
            while isinstance(getattr(inner, "dataset", None), Dataset):  # torch's Subset
                inner = inner.dataset  # pyright: ignore[reportAttributeAccessIssue]
            raise DataError(
                f"{type(inner).__name__} ({split}) gives another picture or label of image {index} when it is read again: it augments at random, and "
                "a verdict on one reading need not hold for the next. Pass it without random transforms; [data] flips mirrors images in training"
            )
    return first


def _try_step(stage: str, model: nn.Module, part: _Few, train: Callable[[nn.Module, _Few, Config], None], config: Config) -> str:
    """Takes one step on a copy and reports it in words. Raises ModelError if it fails, changes no weight, or leaves a value that is not finite."""
    trial, few = copy_model(model), part.batch
    try:
        train(trial, part, config)
        with torch.no_grad():
            logits = trial(few.images.to(model_device(trial))).cpu()
    except RightReasonsError:
        raise
    except Exception as error:  # whatever somebody's own network raises
        raise ModelError(f"a step of {stage} fails on the network: {type(error).__name__}: {error}") from error
    check_finite(logits, few.images, few.indices, f"logits after a step of {stage}")
    changed, before = 0, model.state_dict()
    for name, value in trial.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            place = name.removeprefix("network.")
            raise ModelError(f"after a step of {stage} {place} is not finite: lower the learning rate, or look at the checkpoint")
        changed += not torch.equal(value, before[name])
    if not changed:
        raise ModelError(f"a step of {stage} changes no weight: the logits do not depend on the layers that train")
    return f"a step on {len(few)} images changes {changed} of {len(before)} tensors, and all stay finite"


def _train(model: nn.Module, part: _Few, config: Config) -> None:
    """Training as ``find`` does it without a checkpoint: a batch of two, which the third image joins."""
    train_plainly(model, part, recipe=Recipe(1, config.model.learning_rate), batch_size=2, seed=config.run.seed, flips=config.data.flips)


def _align(model: nn.Module, part: _Few, config: Config) -> None:
    """Fine-tuning as ``fix`` does it, with a quarter of each image taken as judged spurious."""
    masks = torch.zeros(len(part), *part.batch.images.shape[2:], dtype=torch.bool)
    masks[:, : (masks.shape[1] + 1) // 2, : (masks.shape[2] + 1) // 2] = True
    settings = config.align.model_copy(update={"epochs": 1, "batch_size": TRAINED + 1, "ratio": 1 / (TRAINED + 1)})
    align_model(model, part, AlignmentSet(part.batch, masks, torch.zeros_like(masks)), config=settings, seed=config.run.seed, flips=config.data.flips)


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))
