"""The command import: marks and verdicts that people made in other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def import_marks(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="COCO's instances, Label Studio's JSON export, or CVAT's XML for images or its ZIP.")],
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who made the marks; kept with them.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="LABEL=VALUE", help="What a label stands for: spurious, relevant, unsure or skip.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was taken as JSON on standard output, and nothing else.")] = False,
) -> None:
    """Take marks made in COCO, Label Studio or CVAT: one that names a segment is a person's verdict, any other is drawn on the image by hand."""
    from rightreasons.errors import ConfigError
    from rightreasons.pipeline.exchange.take import import_annotations, read_labels
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    folder.config()  # is it a run folder?
    if not (by or "").strip():
        raise ConfigError("marks need the name of the person who made them: add --by NAME")
    try:
        taken = import_annotations(folder, file, by=str(by), labels=read_labels(label or []))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        told = {"format": taken.format, "verdicts": len(taken.verdicts), "drawings": len(taken.drawings), "left_out": dict(taken.left_out)}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{taken.format}: {len(taken.verdicts)} verdicts on segments, and drawings on {len(taken.drawings)} images, by {by}")
    for reason, count in taken.left_out.items():
        typer.echo(f"left out: {reason}: {count}")
    typer.echo(f"next: `rightreasons fix {run_folder}` fine-tunes with them; `rightreasons score {run_folder}` renews the report")
