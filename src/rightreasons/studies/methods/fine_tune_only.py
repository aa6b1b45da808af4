"""The control: the same steps, data, ratio and learning rate as ours, with no alignment term. Labels used: none."""

from __future__ import annotations

from torch import nn

from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import PASTED, Bench, Method
from rightreasons.studies.methods.ours import fine_tune


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """Fine-tunes the shortcut model with plain cross-entropy."""
    return fine_tune(bench, "fine-tune-only", term="none")


METHOD = Method(train, NoLabels, PASTED)
