"""The two calls for Python: ``find_shortcuts`` and ``fix_shortcuts``, which do what the commands ``find`` and ``fix`` do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from rightreasons.common.progress import Logged, Reporter
from rightreasons.lvlm import LVLM
from rightreasons.networks.classifier import unwrap
from rightreasons.networks.presets import Preset
from rightreasons.pipeline.find import find
from rightreasons.pipeline.fix import fix
from rightreasons.pipeline.results import write_results
from rightreasons.project.project import project_in_memory
from rightreasons.records import ClassDescription
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder


def find_shortcuts(
    model: nn.Module,
    train_set: Dataset,
    descriptions: Mapping[str, str | ClassDescription],
    *,
    lvlm: LVLM,
    out: str | Path,
    judge: LVLM | None = None,
    validation_set: Dataset | None = None,
    test_set: Dataset | None = None,
    preset: Preset | None = None,
    settings: Mapping[str, object] | None = None,
    retry_unknown: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Finds what ``model`` leans on in ``train_set`` and has every segment judged; writes metrics.json and report.html.

    Args:
        model: maps (batch, channel, height, width) to (batch, class) logits; a copy of it is explained, on the best device.
        train_set: any map-style dataset of (image, label): bytes of 0 to 255, floats in 0 to 1 or PIL pictures; labels count from 0.
        descriptions: an expert's words for each class, in the order of the labels.
        lvlm: the critic and judge, from ``open_lvlm``.
        judge: another model for the judge; default: the one that the settings name, or ``lvlm``.
        out: the run folder; the same call on it continues where it stopped.
        validation_set: held-out images for the harm guard; by default a tenth of ``train_set`` is kept back from fine-tuning.
        test_set: images to score on; by default the validation images, which is said in a note.
        preset: the mean and deviation that ``model`` wants its images normalised with, unless it does that itself; images are given in 0 to 1.
        settings: tables of the configuration, such as ``{"sample": {"size": 50}, "critic": {"max_usd": 5}}``; paths start from the current folder.
        retry_unknown: send requests again that a crash left unanswered; they may have been paid for.
        reporter: receives progress and notes; by default notes are warnings of the logger "rightreasons".

    Raises RightReasonsError before any long work if an input cannot be used.

    """
    reporter = reporter or Logged()
    words = [text if isinstance(text, ClassDescription) else ClassDescription(name, text) for name, text in descriptions.items()]
    project = project_in_memory(
        model,
        {"train": train_set, "validation": validation_set, "test": test_set},
        dict(zip(descriptions, words, strict=True)),
        lvlm=lvlm,
        judge=judge,
        preset=preset,
        settings=settings or {},
    )
    run = find(project, RunFolder(Path(out)), reporter=reporter, retry_unknown=retry_unknown)
    write_results(run, reporter)
    return run


def fix_shortcuts(run: Run, *, reporter: Reporter | None = None) -> nn.Module:
    """A copy of the run's model, fine-tuned until it no longer uses what was judged spurious. With a preset it takes images in 0 to 1.

    The original comes back if no shortcut was found, or if the repair would do harm (``guard``): ``run.alignment`` says which and why, a
    warning is logged, and ``run.rejected`` has what was rejected. Writes the scores after into metrics.json and report.html.
    """
    reporter = reporter or Logged()
    alignment = fix(run, reporter=reporter)
    write_results(run, reporter, alignment=alignment)
    assert run.aligned is not None  # fix sets it
    return unwrap(run.aligned)
