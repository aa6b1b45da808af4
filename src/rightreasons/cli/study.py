"""The command study: blind verdicts of several people in the browser, and what they come to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rightreasons.cli.shared import Device, print_table

if TYPE_CHECKING:
    from rightreasons.runs.folder import RunFolder


def study(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    size: Annotated[int | None, typer.Option("--size", help="How many segments each person judges; 60 if this is not given.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Draws the segments and each person's order of them; 0 if not given.")] = None,
    results: Annotated[bool, typer.Option("--results", help="Print what the answers come to and write them as CSV; serves nothing.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the CSV files of --results; the run folder if this is not given.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who judges; the page asks if this is not given.")] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="With --results: print JSON on standard output, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """Have several people judge a sample of segments blind, in a browser on this machine, and measure how far they and the LVLM agree."""
    from rightreasons.errors import ConfigError, MissingExtra
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    if results:
        if size is not None or seed is not None:
            raise ConfigError("--size and --seed draw the segments of a new study, and --results looks at one that there is: leave them out")
        _show_results(folder, out or run_folder, as_json=as_json)
        return
    if as_json or out is not None:
        raise ConfigError(f"{'--json' if as_json else '--out'} goes with --results, which prints what people answered so far")
    try:
        import fastapi  # noqa: F401 -- tried before anything is opened
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "review") from error
    from rightreasons.review.state import ReviewState
    from rightreasons.review.study.sample import open_sample
    from rightreasons.review.study.server import serve_study

    state = ReviewState(folder)
    sample = open_sample(state, size=size, seed=seed)
    typer.echo(
        f"{len(sample.questions)} segments, {sample.count('spurious')} of them called spurious by {sample.critic}; the same for everybody, each in "
        f"an order of their own"
    )
    serve_study(state, sample, port=port, name=by, announce=_announce)


def _announce(address: str) -> None:
    typer.echo(f"open {address}")
    typer.echo(
        "The address lets a browser in: give it to nobody who does not judge. Answers are on the disk before the page says so. Ctrl-C ends it."
    )


def _show_results(folder: RunFolder, out: Path, *, as_json: bool) -> None:
    """Prints the tables and writes the CSV files. Raises ConfigError for a run without a study."""
    from rightreasons.common.files import make_private_folder, write_text
    from rightreasons.errors import ConfigError
    from rightreasons.runs.blind import load_replies, load_sample
    from rightreasons.scoring.people.measures import measure_study
    from rightreasons.scoring.people.sheets import tell_study, write_answers, write_measures

    folder.config()  # is it a run folder?
    sample = load_sample(folder)
    if sample is None:
        raise ConfigError(f"{folder.path} has no study yet: `rightreasons study {folder.path}` draws the segments and asks people about them")
    replies = load_replies(folder, sample)
    result = measure_study(sample, replies)
    make_private_folder(out, "folder")
    files = {"study-answers.csv": write_answers(sample, replies), "study-measures.csv": write_measures(result)}
    for name, text in files.items():
        write_text(out / name, text)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, ensure_ascii=False))
        return
    for table in tell_study(result):
        print_table(table.title, table.columns, table.rows)
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {', '.join(str(out / name) for name in files)} (with names)")
