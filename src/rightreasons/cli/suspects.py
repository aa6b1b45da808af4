"""The command suspects: the training images with the shortcut, as files for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rightreasons.cli.shared import Device


def suspects(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    formats: Annotated[
        list[str] | None, typer.Option("--as", metavar="FORMAT", help="csv, parquet, masks, coco or label-studio; several times. Default: csv.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files. Default: RUN/suspects.")] = None,
    address: Annotated[
        str, typer.Option("--address", metavar="PREFIX", help="What stands before an image's path in the tasks for Label Studio.")
    ] = "/data/local-files/?d=",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON on standard output, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """List the training images with the shortcut's place, strength and probability. The files name your images: they stay on this machine."""
    from rightreasons.common.progress import Terminal
    from rightreasons.pipeline.exchange.suspect_files import check_formats, write_suspects
    from rightreasons.pipeline.exchange.suspects import find_suspects
    from rightreasons.run import load_run
    from rightreasons.runs.folder import RunFolder

    wanted, reporter = check_formats(formats or ["csv"]), Terminal()
    found = find_suspects(load_run(RunFolder(run_folder)), reporter)
    written = write_suspects(found, out or run_folder / "suspects", wanted, address=address, reporter=reporter)
    if as_json:
        told = {"images": written.images, "marked": written.marked, "recall": found.recall, "files": [str(file) for file in written.files]}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    recall = "" if found.recall is None else f"; cross-validated, the probe finds {found.recall:.0%} of what was judged"
    typer.echo(f"{written.marked} of {written.images} training images have something that looks spurious{recall}")
    for file in written.files:
        typer.echo(f"written: {file}")
    typer.echo("These files name your images and show where something lies in them: they are for this machine, and are not to be forwarded.")
