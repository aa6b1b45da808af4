"""Reproduces a table: every method of a study on every seed. Each finished (study, method, seed) is one JSON file, so a study can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rightreasons.common.progress import Reporter
from rightreasons.errors import MissingExtra, StudyUnfinished
from rightreasons.records import Scores
from rightreasons.run import Run
from rightreasons.scoring.scores import score_run
from rightreasons.studies.definition import Study, check_rows, known, open_study, packaged_studies
from rightreasons.studies.figure import save_figure
from rightreasons.studies.jobs import Failure, group_rows, run_groups
from rightreasons.studies.methods import METHODS
from rightreasons.studies.methods.method import Bench
from rightreasons.studies.results import list_results, read_results
from rightreasons.studies.sheets import save_table
from rightreasons.studies.table import build_table

__all__ = ["Study", "describe_failures", "open_study", "packaged_studies", "reference_scores", "run_study"]


def run_study(study: Study, *, seeds: Iterable[int], methods: Sequence[str] | None, out: Path, reporter: Reporter, jobs: int = 1) -> dict[str, Any]:
    """Runs what is not finished yet, in ``jobs`` processes, and writes and returns the study's table. ``methods`` are the rows wanted; None: all.

    A result that other settings made than the study has now is not finished: it is told of, run again and replaced.
    A row that fails is told of, and is listed under "failed" in the table and in a note. Raises StudyUnfinished if no row has a result.
    """
    chosen = study.names if methods is None else known(methods, study.names)
    check_rows(study, chosen)
    seeds = list(seeds)
    out = place_results(study, out)
    out.mkdir(parents=True, exist_ok=True)
    outdated = [file for file in read_results(study, chosen, seeds, out) if not file.counts]
    if outdated:
        reporter.note(f"{study.name}: other settings than those of now made the results of {list_results(outdated)}; they are run again and replaced")
    failures = run_groups(study, group_rows(study, chosen, seeds, out), out, reporter, jobs=jobs)
    table = build_table(study, chosen, seeds, out)
    table["failed"] = [vars(failure) for failure in failures]
    if failures and not table["rows"]:
        raise StudyUnfinished(describe_failures(table))
    if failures:
        table["notes"].append(f"Missing, since they failed: {list_results(failures)}.")
    save_table(table, out / study.name)
    try:
        save_figure(table, out / study.name)
    except MissingExtra as error:  # hours of work do not end on a picture
        reporter.note(f"no figure: {error}")
    return table


def place_results(study: Study, out: Path) -> Path:
    """Where a study's results go. Those of a smoke test never lie among others."""
    return out / "smoke" if study.smoke else out


def describe_failures(table: dict[str, Any]) -> str:
    """What failed in a table's study, in one message."""
    failures = [Failure(**failure) for failure in table["failed"]]
    told = "\n".join(f"  {failure.row}, seed {failure.seed}: {failure.why}" for failure in failures)
    return f"{len(failures)} results of {table['study']} are missing; the same command tries them again:\n{told}"


def reference_scores(run: Run, folder: Path, reporter: Reporter) -> dict[str, Scores]:
    """The two upper bounds that a run can be compared with if the task knows its own shortcut."""
    bench = Bench(run, folder, reporter)
    return {name: score_run(METHODS[name](bench), run) for name in ("ground-truth-masks", "without-shortcut")}
