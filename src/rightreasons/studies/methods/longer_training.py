"""Plain training of the shortcut model for four times as many epochs as ours. Labels used: none."""

from __future__ import annotations

from torch import nn

from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import Bench, Method
from rightreasons.studies.methods.training import fine_tune_plainly

TIMES = 4


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """Fine-tunes by cross-entropy on all training images."""
    return fine_tune_plainly(bench, epochs=TIMES * bench.run.config.align.epochs)


METHOD = Method(train, NoLabels, "epoch, by accuracy on held-out images")
