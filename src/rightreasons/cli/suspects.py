"""The command suspects: the training images with the shortcut, as files for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rightreasons.cli.shared import Device

if TYPE_CHECKING:
    from rightreasons.pipeline.exchange.suspects import SuspectList


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
        told = {"images": written.images, "marked": written.marked, "inspected": len(found.run.selection), "judged_spurious": found.judged}
        told |= {"recall": found.recall, "precision": found.precision, "files": [str(file) for file in written.files]}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    typer.echo(tell_suspects(found, written.images, written.marked))
    for file in written.files:
        typer.echo(f"written: {file}")
    if any(name in ("csv", "parquet") for name in wanted):
        typer.echo(
            "The table has all training images. Filter it by found_by: verdict (it was inspected), spread (by the probe), empty (nothing found)."
        )
    typer.echo("These files name your images and show where something lies in them: they are for this machine, and are not to be forwarded.")


def tell_suspects(found: SuspectList, images: int, marked: int) -> str:
    """How many images are listed, by what, and how far that can be trusted."""
    from rightreasons.report.words import tell_probe

    judged = f"{found.judged} of the {len(found.run.selection)} inspected images have something that was judged spurious"
    if found.recall is None:
        return (
            f"{judged}. The other {images - len(found.run.selection)} training images could not be searched, since the classifier's features do not "
            "show it well enough."
        )
    return (
        f"{judged}, and in {marked - found.judged} of the other {images - len(found.run.selection)} training images the probe finds something that "
        f"looks like it. {tell_probe(found.recall, found.precision)}"
    )
