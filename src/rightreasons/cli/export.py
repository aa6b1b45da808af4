"""The command export: the model of a run, handed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `fix` has finished.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder, or an earlier export, which is replaced.")],
    model: Annotated[
        Literal["aligned", "original", "rejected"],
        typer.Option("--model", help="The repaired model, the one before, or a repair that the harm guard rejected."),
    ] = "aligned",
    formats: Annotated[str, typer.Option("--formats", help="Of safetensors, torch (torch.export) and onnx, separated by commas.")] = (
        "safetensors,torch,onnx"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON on standard output, and nothing else.")] = False,
) -> None:
    """Hand the repaired model over: safetensors, torch.export and ONNX, each checked against it, with preprocessing and a model card."""
    from rightreasons.common.progress import Terminal
    from rightreasons.errors import ModelError
    from rightreasons.pipeline.handover.export import export_model
    from rightreasons.run import load_run
    from rightreasons.runs.folder import RunFolder

    reporter = Terminal()
    run = load_run(RunFolder(run_folder))
    with reporter.stage("export"):
        done = export_model(run, to, which=model, formats=[name.strip() for name in formats.split(",") if name.strip()])
    for remark in done.remarks:
        reporter.note(remark)
    if as_json:
        rows = [
            {"format": one.name, "file": one.file, "largest_difference": one.difference, "largest_logit": one.largest_logit, "problem": one.problem}
            for one in done.written
        ]
        typer.echo(json.dumps({"folder": str(done.folder), "model": done.which, "formats": rows, "remarks": done.remarks}, indent=2))
    else:
        for one in done.written:
            if not one.problem:
                sizes = ", ".join(map(str, one.differences))
                told = f"{one.difference:.2g}, and the largest logit is {one.largest_logit:.2g}"
                typer.echo(f"{one.file}: differs from the model by at most {told} (batches of {sizes} images)")
        typer.echo(f"model card: {done.folder / 'README.md'}")
    if done.failed:
        told = "; ".join(f"{one.file}: {one.problem}" for one in done.failed)
        raise ModelError(f"not every format could be made. {told}. The others are in {done.folder}; --formats names those that are wanted")
