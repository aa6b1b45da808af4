"""The command profile: where a run's time, calls, money and memory went."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rightreasons.cli.shared import print_table

if TYPE_CHECKING:
    from rightreasons.runs.profile import StageCost


def profile(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the stages as JSON on standard output, and nothing else.")] = False,
) -> None:
    """Show the seconds, calls, money and peak memory of every stage, over all commands on the run so far."""
    from rightreasons.errors import ConfigError
    from rightreasons.runs.folder import RunFolder
    from rightreasons.runs.profile import PROFILE, read_profile

    folder = RunFolder(run_folder)
    folder.config()  # refuses what is not a run folder
    stages = read_profile(folder)
    if not stages:
        raise ConfigError(f"{run_folder} has no {PROFILE}: it was made before profiles were kept. The next find, fix or score on it writes one")
    if as_json:
        typer.echo(json.dumps({"stages": [asdict(stage) for stage in stages]}, indent=2))
        return
    gpu = any(stage.gpu_bytes is not None for stage in stages)
    total = sum(stage.seconds for stage in stages)
    columns = ("stage", "seconds", "share", "times", "peak MiB", *(("GPU MiB",) if gpu else ()), "calls", "failed", "US dollars")
    print_table(f"{run_folder}: {total:.1f} s", columns, [_row(stage, total, gpu=gpu) for stage in stages])
    stopped = ", ".join(stage.stage for stage in stages if stage.stopped)
    if stopped:
        typer.echo(f"stopped before the end at least once: {stopped}")


def _row(stage: StageCost, total: float, *, gpu: bool) -> list[str]:
    from rightreasons.report.words import mebibytes

    asked = stage.calls + stage.failed > 0
    money = "not known" if stage.cost_usd is None else f"{stage.cost_usd:.4f}"
    return [
        stage.stage,
        f"{stage.seconds:.1f}",
        f"{stage.seconds / total:.0%}" if total else "-",
        str(stage.times),
        mebibytes(stage.peak_bytes),
        *([mebibytes(stage.gpu_bytes)] if gpu else []),
        *([str(stage.calls), str(stage.failed), money] if asked else ["-", "-", "-"]),
    ]
