"""The control: the same steps, data, ratio and learning rate as ours, with no alignment term. Labels used: none."""

from __future__ import annotations

from torch import nn

from rightreasons.studies.methods import Bench
from rightreasons.studies.methods.ours import fine_tune


def train(bench: Bench) -> nn.Module:
    """Fine-tunes the shortcut model with plain cross-entropy."""
    return fine_tune(bench, "fine-tune-only", term="none")
