"""Recognises that fine-tuning has collapsed: the model names one class for nearly every image, or is right no more often than chance.

A constant model uses no shortcut either, so that no term of the loss speaks against it. It is recognised by held-out images as they are: with the
shortcut pasted in, a model that still leans on it names one class as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from rightreasons.common.memory import BATCH_BYTES, LARGEST_BATCH, how_many
from rightreasons.data.loading import Batch
from rightreasons.networks.classifier import model_device

# A class got nearly all answers if the others together get less than this part of the answers that they got before.
LEFT_OVER = 0.1
# The model before was right more often than the largest class if it was so by this many standard errors.
CLEARLY = 3.0


@dataclass(frozen=True)
class Answers:
    """A model's answers on held-out images: the share of each class, and the share that is right; ``largest`` is the share of the commonest label."""

    shares: tuple[float, ...]
    accuracy: float
    largest: float
    count: int


@dataclass(frozen=True)
class Collapse:
    """What was measured after ``epoch`` (from 1) of fine-tuning at ``learning_rate``: the class with most answers, and how it was before.

    ``next_rate`` is the learning rate with which fine-tuning begins again; None if it does not.
    """

    epoch: int
    learning_rate: float
    label: int
    before: Answers
    after: Answers
    next_rate: float | None = None


def read_answers(model: nn.Module, hosts: Batch) -> Answers:
    """The answers of ``model`` on ``hosts`` as they are."""
    model.eval()
    size = how_many(hosts.images[0].nbytes, BATCH_BYTES, LARGEST_BATCH)
    with torch.no_grad():
        logits = torch.cat([model(images.to(model_device(model))).float().cpu() for images in hosts.images.split(size)])
    answers, count = logits.argmax(1), len(hosts)
    shares = torch.bincount(answers, minlength=logits.shape[1]).double() / count
    largest = hosts.labels.bincount().max().item() / count
    return Answers(tuple(shares.tolist()), (answers == hosts.labels).double().mean().item(), largest, count)


def has_collapsed(before: Answers, after: Answers) -> bool:
    """Whether one class gets nearly all answers although it did not before, or accuracy fell to the share of the commonest label or below.

    A model that was not better than that before is judged by its shares alone.
    """
    label = after.shares.index(max(after.shares))
    if 1 - after.shares[label] < LEFT_OVER * (1 - before.shares[label]):
        return True
    error = math.sqrt(before.largest * (1 - before.largest) / before.count)
    return after.accuracy <= before.largest < before.accuracy - CLEARLY * error
