"""The shortcut model itself. Labels used: none."""

from __future__ import annotations

from torch import nn

from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import LAST, Bench, Method


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """The run's model as it is."""
    return bench.run.model


METHOD = Method(train, NoLabels, LAST)
