"""Just Train Twice (Liu et al. 2021): images that a first model gets wrong are shown more often. Labels used: groups of validation images.

The first model is the shortcut model, and its errors are those of its last weights, in evaluation mode: the paper collects them during a tuned
epoch of that training, which a given checkpoint does not have any more. The paper's second model is a fresh one; here every rival
starts from the shortcut model, with the epochs, steps, batches and learning rate of ours. Each of the three settings has that whole budget.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rightreasons.data.loading import count_images, read_batches
from rightreasons.networks.predictions import predict_labels
from rightreasons.studies.methods.labels import ValidationGroups
from rightreasons.studies.methods.method import Bench, Method
from rightreasons.studies.methods.training import draw_in_passes, drawn_per_epoch, fine_tune_equally, worst_group_accuracy

# How many more times than once an error is shown: the paper's sweep.
UPWEIGHTS = (20, 50, 100)


def train(bench: Bench, labels: ValidationGroups) -> nn.Module:
    """The best of the three settings by worst validation group; one plain fine-tuning, with a note, if the shortcut model makes no error."""
    run = bench.run

    def judge(model: nn.Module) -> float:
        return worst_group_accuracy(model, labels.validation, labels.validation_groups)

    answers = predict_labels(run.model, read_batches(run.train))
    errors = answers.indices[~answers.correct]
    bench.reporter.note(f"jtt: the shortcut model gets {len(errors)} of {len(answers.indices)} training images wrong")
    if not len(errors):
        bench.reporter.note("jtt: with an empty error set nothing is shown more often, and the model is fine-tuned plainly")
    best: tuple[float, nn.Module] | None = None
    for upweight in UPWEIGHTS if len(errors) else (0,):
        shown = repeat_errors(count_images(run.train), errors, upweight)
        model = fine_tune_equally(bench, partial(draw_in_passes, shown, drawn_per_epoch(run)), judge=judge)
        merit = judge(model)
        if best is None or merit > best[0]:
            best = merit, model
    assert best is not None  # there is always a setting
    return best[1]


def repeat_errors(count: int, errors: Int[Tensor, " error"], upweight: int) -> Int[Tensor, " shown"]:
    """The indices of ``count`` images, each once, and each error ``upweight`` times more (equation 16)."""
    return torch.cat([torch.arange(count), errors.repeat(upweight)])


METHOD = Method(train, ValidationGroups, "epoch and one of 3 upweights, each trained in full, by accuracy of the worst group of held-out images")
