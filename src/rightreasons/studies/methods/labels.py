"""What a method is told besides images and class labels. A method declares it by the type of its second argument, and gets nothing else.

No other file of this folder reads a task's ground truth; ``of`` raises ConfigError where the task does not have what a method needs.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.data.task import Task
from rightreasons.errors import ConfigError
from rightreasons.records import GroundTruth

# A second rendering of the validation images, in which the shortcut tells nothing, is given to methods that know groups where a task has one.
BALANCED = "balanced validation"


class Labels(abc.ABC):
    """A kind of label, in the ``words`` of the table's column of supervision."""

    words: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def of(cls, task: Task) -> Labels:
        """These labels of a task."""


@dataclass(frozen=True)
class NoLabels(Labels):
    """Class labels alone, as in practice."""

    words: ClassVar[str] = "none"

    @classmethod
    def of(cls, task: Task) -> NoLabels:
        """Nothing."""
        return cls()


@dataclass(frozen=True)
class TrueMasks(Labels):
    """The shortcut's pixels in a training image, by dataset index; None if the image does not have it."""

    mask: Callable[[int], Bool[Tensor, "height width"] | None]
    words: ClassVar[str] = "masks"

    @classmethod
    def of(cls, task: Task) -> TrueMasks:
        """The true masks of the training images."""
        truth = task.truth.get("train")
        if truth is None or (truth.masked is not None and not truth.masked):
            raise ConfigError(f"{task.name} has no ground-truth masks of the training images: leave out the method ground-truth-masks")
        return cls(truth.mask)


@dataclass(frozen=True)
class OtherImages(Labels):
    """The training images without the correlation: not a label, but nobody has them who has the shortcut."""

    train: Dataset
    words: ClassVar[str] = "none"

    @classmethod
    def of(cls, task: Task) -> OtherImages:
        """The training split as the task renders it without its shortcut's correlation."""
        if task.unbiased_train is None:
            raise ConfigError(f"{task.name} has no data without its shortcut: leave out the method without-shortcut")
        return cls(task.unbiased_train)


@dataclass(frozen=True)
class ValidationGroups(Labels):
    """Held-out images and the group (class and shortcut) of each, as numbers from 0."""

    validation: Dataset
    validation_groups: Int[Tensor, " image"]
    words: ClassVar[str] = "groups of validation images"

    @classmethod
    def of(cls, task: Task) -> ValidationGroups:
        """The groups of the balanced validation split, or of the validation split where a task has no other."""
        split = BALANCED if BALANCED in task.truth else "validation"
        return cls(task.splits[split], _number(_groups(task, split)))


@dataclass(frozen=True)
class TrainGroups(Labels):
    """The group of each training image, as numbers from 0, and the groups of held-out images, by which such methods select."""

    train_groups: Int[Tensor, " image"]
    held_out: ValidationGroups
    words: ClassVar[str] = "groups of all images"

    @classmethod
    def of(cls, task: Task) -> TrainGroups:
        """The groups of both splits. Each split numbers its own: a group may be missing in one."""
        return cls(_number(_groups(task, "train")), ValidationGroups.of(task))


def _groups(task: Task, split: str) -> GroundTruth:
    if split not in task.truth:
        raise ConfigError(f"{task.name} names no groups of its {split} images: leave out the methods that need them")
    return task.truth[split]


def _number(truth: GroundTruth) -> Int[Tensor, " image"]:
    names = sorted(set(truth.groups))
    return torch.tensor([names.index(group) for group in truth.groups])
