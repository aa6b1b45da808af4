"""Ours, with the study's settings; and ours with the loss as published, in the best setting found. Labels used: none."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from rightreasons.config import AlignConfig
from rightreasons.pipeline.fix import fix
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import PASTED, Bench, Method

# The best lambda for the published loss on digits and on photographs: `rightreasons bench published-loss`, `rightreasons bench solar-choices`.
PUBLISHED_LAMBDA = 1.0


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """Runs ``fix`` on the run's verdicts."""
    return fine_tune(bench, "ours")


def train_published(bench: Bench, _: NoLabels) -> nn.Module:
    """Runs ``fix`` with the paper's right-reasons penalty alone."""
    return fine_tune(bench, "ours-published-loss", term="penalty", penalty="log_prob_sum", **{"lambda": PUBLISHED_LAMBDA})


def fine_tune(bench: Bench, name: str, **changes: object) -> nn.Module:
    """Runs ``fix`` with some alignment settings changed, and without the harm guard, which would hide a failure."""
    settings = bench.run.config.align.model_dump(by_alias=True) | {"max_accuracy_drop": 1.0} | changes
    align = AlignConfig.model_validate(settings)
    project = replace(bench.run.project, config=bench.run.config.model_copy(update={"align": align}))
    run = replace(bench.run, project=project, aligned=None)
    fix(run, reporter=bench.reporter, out=bench.folder / name)
    assert run.aligned is not None  # fix sets it
    return run.aligned


METHOD = Method(train, NoLabels, PASTED, uses_critic=True)
PUBLISHED = Method(train_published, NoLabels, PASTED, uses_critic=True)
