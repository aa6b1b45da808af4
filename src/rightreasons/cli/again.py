"""The command ask-again: chosen images judged again, with the words that experts changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rightreasons.cli.shared import AllowRemote


def ask_again(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    images: Annotated[list[int], typer.Argument(metavar="IMAGE...", help="The images' numbers in the report.")],
    role: Annotated[
        Literal["critic", "judge"], typer.Option("--role", help="critic: the pictures anew; judge: the critiques that are there.")
    ] = "judge",
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who has them judged again; kept with the verdicts.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it will cost. Sends nothing.")] = False,
    allow_remote: AllowRemote = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0, help="Stop before the next request could pass this many US dollars.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")] = False,
) -> None:
    """Have chosen images judged again, with descriptions and few-shot pairs as they are now. A person's verdict still comes first."""
    from rightreasons.common.progress import Terminal
    from rightreasons.errors import ConfigError
    from rightreasons.pipeline.again import judge_again
    from rightreasons.pipeline.questions.appeals import estimate_appeal
    from rightreasons.project.project import project_of_run
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    project = project_of_run(folder)
    if estimate:
        _show_estimate(estimate_appeal(project, folder, images, role), as_json=as_json)
        return
    if not (by or "").strip():
        raise ConfigError("verdicts that are asked for again need the name of the person who asks: add --by NAME")
    changes = judge_again(
        project,
        folder,
        images,
        role=role,
        by=str(by),
        reporter=Terminal(),
        allow_remote=tuple(allow_remote or ()),
        max_usd=max_usd,
    )
    rows = [{"image": new.index, "segment": f"S{new.segment + 1}", "before": old.value, "value": new.value} for old, new in changes]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"image {row['image']}, {row['segment']}: {row['before']} -> {row['value']}")
    typer.echo(f"{len(rows)} verdicts of the model changed on {len(set(images))} images; a person's verdict still comes first")


def _show_estimate(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    total = found["total"]
    money = "no price is known" if total.get("usd_at_most") is None else f"{total['usd_at_most']:.4f} US dollars at most"
    typer.echo(f"{found['images']} images: {total.get('requests', 0)} requests, {total.get('answered', 0)} answered already, {money}")
    typer.echo(found["counted"])
