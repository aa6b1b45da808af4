"""A method of a study: a function that makes a model of a run, with its project and shortcut model, and of the labels that its type declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

from torch import nn

from rightreasons.common.progress import Reporter
from rightreasons.run import Run
from rightreasons.studies.methods.labels import Labels

Known = TypeVar("Known", bound=Labels)


@dataclass(frozen=True)
class Bench:
    """The run and reporter that a method may use, and a folder for its intermediate files. In a ``smoke`` test a long search is cut short."""

    run: Run
    folder: Path
    reporter: Reporter
    smoke: bool = False


@dataclass(frozen=True)
class Method(Generic[Known]):
    """How a method trains, what it is told (``labels``), and in words how its model is chosen among epochs or settings."""

    train: Callable[[Bench, Known], nn.Module]
    labels: type[Known]
    selection: str
    uses_critic: bool = False

    def __call__(self, bench: Bench) -> nn.Module:
        """The trained model. Raises ConfigError if the task does not have the labels."""
        return self.train(bench, cast("Known", self.labels.of(bench.run.project.task)))


# How fine-tuning chooses its epoch, in the words of a result file.
PASTED = "epoch, by accuracy on held-out images with segments pasted in"
LAST = "last epoch"
WORST_GROUP = "epoch, by accuracy of the worst group of held-out images"
