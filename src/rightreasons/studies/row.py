"""One row on one seed: the shortcut found, the method trained, its model scored, and the result written as one JSON file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rightreasons.common.files import to_json, write_text
from rightreasons.common.progress import Reporter
from rightreasons.pipeline.find import find
from rightreasons.project.project import Project, open_project
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.scores import critic_scores, score_run, segment_scores, spurious_fraction
from rightreasons.studies.definition import METRICS, OURS, Row, Study, row_config, slug
from rightreasons.studies.methods import METHODS, ours
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import PASTED, Bench, Method
from rightreasons.studies.results import KEY
from rightreasons.studies.store import place_model

# The stages of ``find`` in which the critic is asked.
_CRITIC_STAGES = ("controls", "judge")


@dataclass(frozen=True)
class FindSeconds:
    """The time that rows share: the shortcut model's training, the critic, and the rest of ``find``; None if it was not measured in one go."""

    shortcut_model: float | None
    critic: float | None
    find: float | None


@dataclass(frozen=True)
class Found:
    """What rows share: the run in its folder, with the shortcut found, and the time that this took."""

    run: Run
    seconds: FindSeconds


def find_shortcut(study: Study, row: Row, seed: int, out: Path, reporter: Reporter) -> Found:
    """The shortcut found on a row's data, or read back from its work folder; its model comes from the store below ``out``."""
    project = open_project(study.settings(row, seed), source=study.name, root=study.root)
    return _find(project, RunFolder(study.work_folder(row, seed, out)), out / "models", reporter)


def run_row(study: Study, row: Row, seed: int, out: Path, found: Found, reporter: Reporter) -> None:
    """Runs a row on a seed and writes its result. Raises RightReasonsError if it cannot be run."""
    run, method = found.run, choose_method(row)
    start = time.perf_counter()
    model = method(Bench(_with_align(study, row, run), _own_folder(row, run.folder.path), reporter, smoke=bool(study.smoke)))
    seconds = time.perf_counter() - start
    scores, critic, judged = score_run(model, run), critic_scores(run), study.uses_critic(row)
    result: dict[str, Any] = {
        "study": study.name,
        "method": study.plain_name(row.name),
        "seed": seed,
        KEY: study.settings_key(row, seed),
        "critic": _critic_words(critic) if judged else "none",
        "labels_used": method.labels.words,
        "selection": method.selection,
        "critic_scores": critic if judged else None,
        "inspected": {"spurious_fraction": spurious_fraction(run), **segment_scores(run)},
        "metrics": {key: getattr(scores, key) for key in METRICS},
        # 95 % intervals over whole objects; None if every image shows another object.
        "intervals": dict(scores.intervals) or None,
        "seconds": {"method": seconds, **vars(found.seconds)},
        "threads": torch.get_num_threads(),
    }
    if study.smoke:
        result["smoke"] = True
    path = study.result_path(row.name, seed, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(result) + "\n")


def choose_method(row: Row) -> Method[Any]:
    """The method of a row. An arm of ours saves its repair under its own name."""
    if row.is_arm and row.method == OURS:
        return Method(lambda bench, _: ours.fine_tune(bench, row.name), NoLabels, PASTED, uses_critic=True)
    return METHODS[row.method]


def _own_folder(row: Row, folder: Path) -> Path:
    """Where a method keeps unfinished work: an arm of another method than ours must not meet that of the method itself."""
    methods = folder / "methods"
    return methods / slug(row.name) if row.is_arm and row.method != OURS else methods


def _with_align(study: Study, row: Row, run: Run) -> Run:
    """The run with the row's own [align], for its method alone: scores are taken with the masks that all rows share."""
    if not row.align:
        return run
    align = row_config(study, row, run.config.run.seed).align
    return replace(run, project=replace(run.project, config=run.config.model_copy(update={"align": align})))


def _find(project: Project, folder: RunFolder, store: Path, reporter: Reporter) -> Found:
    kept, begun = folder.path / "seconds.json", (folder.path / "config.toml").exists()
    training = place_model(project, folder, store, reporter)
    earlier, start = {stage: reporter.seconds.get(stage, 0.0) for stage in _CRITIC_STAGES}, time.perf_counter()
    run = find(project, folder, reporter=reporter)
    seconds = time.perf_counter() - start
    if kept.exists():
        return Found(run, FindSeconds(**json.loads(kept.read_text(encoding="utf-8"))))
    critic = sum(reporter.seconds.get(stage, 0.0) - earlier[stage] for stage in _CRITIC_STAGES)
    shared = FindSeconds(training, None, None) if begun else FindSeconds(training, critic, seconds - critic)
    write_text(kept, json.dumps(vars(shared)) + "\n")
    return Found(run, shared)


def _critic_words(critic: dict[str, Any]) -> str:
    name = f"{critic['backend']}:{critic['model']}"
    return f"{name} (simulated from masks)" if critic["simulated"] else name
