"""The command name: names in words for the shortcuts of a run, by the run's own LVLM."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rightreasons.cli.shared import AllowRemoteWords, Device


def name(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it will cost. Sends nothing.")] = False,
    allow_remote: AllowRemoteWords = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0, help="Do not ask if the run could pass this many US dollars.")] = None,
    retry_unknown: Annotated[bool, typer.Option("--retry-unknown", help="Ask again if a crash left the question unanswered.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print names.json on standard output, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """Name the shortcuts in words: one question to the run's LVLM, with the critiques' words and no picture; writes report.html anew."""
    from rightreasons.common.progress import Terminal
    from rightreasons.pipeline.naming import estimate_names, name_shortcuts
    from rightreasons.pipeline.results import write_results
    from rightreasons.run import load_run
    from rightreasons.runs.folder import RunFolder

    reporter, run = Terminal(), load_run(RunFolder(run_folder))
    if estimate:
        found = estimate_names(run)
        typer.echo(json.dumps(found, indent=2) if as_json else _tell_cost(found))
        return
    given = name_shortcuts(run, reporter=reporter, allow_remote=tuple(allow_remote or ()), max_usd=max_usd, retry_unknown=retry_unknown)
    metrics = write_results(run, reporter)
    if as_json:
        typer.echo(json.dumps(asdict(given), indent=2))
        return
    for number, shortcut in enumerate(metrics["shortcuts"], 1):
        typer.echo(f"G{number}: {shortcut['name']} ({shortcut['images']} images, named by {shortcut['named_by']})")
    for key, reason in given.refused.items():
        typer.echo(f"{key} keeps the name of the grouping: {reason}", err=True)
    typer.echo(f"report: {run.folder.path / 'report.html'}")


def _tell_cost(found: dict[str, Any]) -> str:
    money = "no price is known" if found["usd_at_most"] is None else f"{found['usd_at_most']:.4f} US dollars at most"
    return f"{found['model']}: {found['requests']} requests, {found['answered']} answered already, {money}"
