"""The command check: a gate for somebody's continuous integration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rightreasons.cli.shared import Device, print_table

if TYPE_CHECKING:
    from torch import nn

    from rightreasons.common.progress import Reporter
    from rightreasons.pipeline.gate.bounds import Budget
    from rightreasons.pipeline.gate.check import Report
    from rightreasons.pipeline.gate.measure import Number
    from rightreasons.run import Run

# The exit code for bad input, and where the check itself cannot be done: 1 says that a bound is passed.
CANNOT_CHECK = 2


def check(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", metavar="NEW", help="A checkpoint of the run's network; several times. Default: the repaired model, or the run's."),
    ] = None,
    max_spurious_share: Annotated[
        float | None, typer.Option("--max-spurious-share", metavar="X", help="The largest share of the evidence on what was judged spurious.")
    ] = None,
    max_flip_rate: Annotated[
        float | None, typer.Option("--max-flip-rate", metavar="Y", help="The largest share of answers that pasting it in may change.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", metavar="Z", help="The smallest accuracy on held-out images.")] = None,
    budget: Annotated[Path | None, typer.Option("--budget", metavar="FILE", help="Bounds in TOML, for each class too; options come first.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the findings as JUnit XML.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write what is past its bound as SARIF 2.1.0.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers and findings as JSON on standard output, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """Check models against a run's verdicts on held-out images. Exit code 0: within all bounds, 1: past one, 2: it could not be checked."""
    from rightreasons.common.progress import Terminal
    from rightreasons.errors import ConfigError
    from rightreasons.pipeline.gate.bounds import Budget, read_budget
    from rightreasons.pipeline.gate.check import check_models, describe_report
    from rightreasons.pipeline.gate.junit import write_junit
    from rightreasons.pipeline.gate.measure import prepare_yardstick
    from rightreasons.pipeline.gate.sarif import write_sarif
    from rightreasons.run import load_run
    from rightreasons.runs.folder import RunFolder

    reporter = Terminal()
    run = load_run(RunFolder(run_folder))
    bounds = Budget() if budget is None else read_budget(budget, run.project.task.classes)
    bounds = bounds.override({"max_spurious_share": max_spurious_share, "max_flip_rate": max_flip_rate, "min_accuracy": min_accuracy})
    if bounds.is_empty:
        raise ConfigError("there is no bound to check: give --max-spurious-share, --max-flip-rate, --min-accuracy or --budget FILE")
    files = _name_files(model or [])
    models = _open_models(run, files, reporter)
    report = check_models(models, bounds, prepare_yardstick(run, reporter), reporter)
    if junit is not None:
        _write(lambda: write_junit(report, junit), junit)
    if sarif is not None:
        _write(lambda: write_sarif(report, sarif, files), sarif)
    if as_json:
        typer.echo(json.dumps(describe_report(report), indent=2, ensure_ascii=False))
    else:
        _show(report, bounds)
    if report.past:
        raise typer.Exit(1)


def _name_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Each checkpoint by the shortest end of its path that no other shares."""
    names = {}
    for path in dict.fromkeys(paths):
        parts = path.absolute().parts
        ends = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
        others = [other.absolute().parts for other in paths if other != path]
        names[next((end for end in ends if all("/".join(other[-end.count("/") - 1 :]) != end for other in others)), str(path))] = path
    return names


def _open_models(run: Run, files: Mapping[str, Path], reporter: Reporter) -> list[tuple[str, nn.Module]]:
    from rightreasons.pipeline.gate.measure import open_checkpoint

    if files:
        return [(name, open_checkpoint(run, path, reporter)) for name, path in files.items()]
    return [("the original model", run.model)] if run.aligned is None else [("aligned.safetensors", run.aligned)]


def _write(write: Callable[[], object], path: Path) -> None:
    from rightreasons.errors import ConfigError

    try:
        write()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _show(report: Report, budget: Budget) -> None:
    from rightreasons.pipeline.gate.bounds import MEASURES
    from rightreasons.pipeline.gate.check import ALL

    yardstick = report.yardstick
    for measured in report.measured:
        rows = []
        for scope in (None, *yardstick.names):
            cells = [_cell(numbers[scope], budget.bound(MEASURES[key], scope), key) for key, numbers in measured.numbers.items()]
            rows.append([ALL if scope is None else scope, str(measured.numbers["accuracy"][scope].count), *cells])
        columns = ["", "images", *(MEASURES[key].words for key in measured.numbers)]
        print_table(f"{measured.checkpoint}, on the {yardstick.split} split", columns, rows)
    if yardstick.explained is None:
        typer.echo("Nothing was judged spurious, so that there is no share and nothing to paste: bounds on them hold of themselves.")
    else:
        elsewhere = (
            "" if yardstick.explained is yardstick.donors else "; report.html has that of the inspected training images, so that the two differ"
        )
        typer.echo(f"The spurious share is that of {yardstick.explained.told}{elsewhere}.")
    for finding in report.past:
        typer.echo(f"past: {finding.message}")
    typer.echo(tell_bounds(report, budget) if report.past else "within all bounds")


def tell_bounds(report: Report, budget: Budget) -> str:
    """How many of the bounds that were given are past, and how many numbers: a bound holds for all images, and for each class without its own."""
    given = len(budget.bounds) + sum(map(len, budget.classes.values()))
    past = {budget.origin(finding.measure, finding.scope) for finding in report.past}
    numbers = sum(map(len, report.findings))
    bounds = f"{len(past)} of the {given} bounds given {'is' if len(past) == 1 else 'are'} past" if given > 1 else "the bound given is past"
    return f"{bounds}: {len(report.past)} of {numbers} numbers, of all images and of each class, are on the wrong side" if numbers > 1 else bounds


def _cell(number: Number, bound: float | None, key: str) -> str:
    """A number beside its bound, with the sign between them that holds."""
    from rightreasons.pipeline.gate.bounds import MEASURES

    value = "-" if number.value is None else f"{number.value:.3f}"
    if number.value is None or bound is None:
        return value
    measure = MEASURES[key]
    within, past = ("<=", ">") if measure.ceiling else (">=", "<")
    return f"{value} {past if measure.is_past(number.value, bound) else within} {bound:g}"
