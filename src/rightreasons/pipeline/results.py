"""The results of a run: the scores before and after, metrics.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rightreasons.common.progress import Reporter
from rightreasons.data.images import ImageFiles
from rightreasons.data.loading import StoredImages, read_batches
from rightreasons.errors import ConfigError
from rightreasons.explain.evidence import explain_images
from rightreasons.networks.predictions import predict_labels
from rightreasons.pipeline.fix import alignment_job
from rightreasons.pipeline.tracking import track_results
from rightreasons.records import Scores
from rightreasons.report.page import write_report
from rightreasons.run import Alignment, Run
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.names import load_names
from rightreasons.runs.profile import Recorded, StageCost, read_profile
from rightreasons.runs.tuning import load_epochs
from rightreasons.scoring.scores import build_metrics, read_scores, score_key, score_once, stored_scores
from rightreasons.scoring.shortcuts import GROUPING, find_names


def write_results(
    run: Run,
    reporter: Reporter,
    *,
    alignment: Alignment | None = None,
    reference: Mapping[str, Scores] | None = None,
    folder: RunFolder | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Scores the models of a run and writes metrics.json, which is returned, and report.html into ``folder`` (default: the run's).

    Scores that are stored already are reused, unless ``again``.
    """
    folder = folder or run.folder
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    reporter = Recorded(reporter, folder)
    earlier = folder.load_metrics() or run.folder.load_metrics() or {}
    reference_key = score_key(run, "reference")
    with reporter.stage("score"):
        before, after, rejected = (None if model is None else score_once(model, run, folder, again=again) for model in run.models)
    assert before is not None  # a run has a model
    if alignment is None and run.aligned is not None and (stored := folder.load_alignment()) is not None:
        alignment = Alignment(**stored)
        if folder.load_alignment(alignment_job(run)) is None:
            reporter.note("aligned.safetensors was made with other verdicts or settings than the present ones: run `rightreasons fix` again")
    if reference is None:
        reference = {name: read_scores(scores) for name, scores in (folder.load_scores(reference_key) or {}).items()}
    else:
        folder.save_scores(reference_key, {name: stored_scores(scores) for name, scores in reference.items()})
    seconds = {**earlier.get("seconds", {}), **reporter.seconds}
    _recall_unreadable(run, folder)
    with reporter.stage("report"):
        repaired = None
        if run.aligned is not None:
            repaired = explain_images(run.aligned, StoredImages(run.train, run.selection.indices), run.train, run.config)
            folder.save_attribution(repaired, "heatmaps-after")
        metrics = build_metrics(
            run,
            before=before,
            after=after,
            rejected=rejected,
            alignment=alignment,
            reference=reference,
            shortcuts=find_names(run, None if repaired is None else repaired.heatmaps),
            epochs=load_epochs(folder, alignment_job(run)),
            seconds=seconds,
        )
        inspected = [model for model in (run.model, run.aligned) if model is not None]
        answers = [predict_labels(model, read_batches(run.train, indices=run.selection.indices)) for model in inspected]
        write_report(run, metrics, repaired, folder, answers=answers, stages=_recall_costs(folder, reporter))
    if metrics["alignment"] and metrics["alignment"]["advice"]:
        reporter.note(metrics["alignment"]["advice"])
    given = load_names(run.folder)
    if given is not None and given.names and all(item["named_by"] == GROUPING for item in metrics["shortcuts"]):
        reporter.note(f"the names that {given.by} gave are those of an earlier grouping: `rightreasons name {run.folder.path}` asks for new ones")
    folder.save_metrics(metrics)
    track_results(run.config, metrics, folder, reporter)
    return metrics


def _recall_costs(folder: RunFolder, reporter: Reporter) -> list[StageCost]:
    """What the stages took so far; the page can do without a profile that somebody damaged."""
    try:
        return read_profile(folder)
    except ConfigError as error:
        reporter.note(f"the page has no table of stages: {error}")
        return []


def _recall_unreadable(run: Run, folder: RunFolder) -> None:
    """Decodes again the files that an earlier command could not, so that this command names them too: a loaded stage opens no image."""
    earlier, now = folder.load_unreadable() or run.folder.load_unreadable(), {}
    for split, images in run.project.task.splits.items():
        if isinstance(images, ImageFiles):
            images.read(torch.tensor(earlier.get(split, []), dtype=torch.int64))
            now[split] = images.unreadable
    folder.save_unreadable(now)
