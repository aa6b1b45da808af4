"""The command ask-again: chosen images judged again, with the words that experts changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rightreasons.cli.shared import AllowRemote
from rightreasons.common.text import clean_text

if TYPE_CHECKING:
    from rightreasons.pipeline.again import Judged


def ask_again(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    images: Annotated[
        list[int] | None,
        typer.Argument(metavar="[IMAGE]...", help="The images' numbers in the report; none: those whose answers could not be read."),
    ] = None,
    role: Annotated[
        Literal["critic", "judge", "either"],
        typer.Option("--role", help="critic: the pictures anew; judge: the critiques that are there; either: the critic where there is no critique."),
    ] = "either",
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who has them judged again; kept with the verdicts.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it will cost. Sends nothing.")] = False,
    allow_remote: AllowRemote = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0, help="Stop before the next request could pass this many US dollars.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")] = False,
) -> None:
    """Have images judged again, with descriptions and few-shot pairs as they are now. A person's verdict still comes first.

    An answer that could be read is not asked for twice; one that could not is asked for anew, and paid for.
    """
    from rightreasons.common.progress import Terminal
    from rightreasons.errors import ConfigError
    from rightreasons.pipeline.again import judge_again
    from rightreasons.pipeline.questions.appeals import estimate_appeal
    from rightreasons.project.project import project_of_run
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    project = project_of_run(folder)
    if estimate:
        _show_estimate(estimate_appeal(project, folder, images or (), role), as_json=as_json)
        return
    if not (by or "").strip():
        raise ConfigError("verdicts that are asked for again need the name of the person who asks: add --by NAME")
    judged = judge_again(
        project,
        folder,
        images or (),
        role=role,
        by=str(by),
        reporter=Terminal(),
        allow_remote=tuple(allow_remote or ()),
        max_usd=max_usd,
    )
    _tell_silence(judged)
    rows = [{"image": new.index, "segment": f"S{new.segment + 1}", "before": old.value, "value": new.value} for old, new in judged.changes]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"image {row['image']}, {row['segment']}: {row['before']} -> {row['value']}")
    typer.echo(f"{len(rows)} verdicts of the model changed on {judged.images} images; a person's verdict still comes first")


def _tell_silence(judged: Judged) -> None:
    """Says on standard error where there is still no usable answer, or that nobody was asked."""
    for image, problem in judged.problems.items():
        typer.echo(f"image {image}: still no usable answer: {clean_text(problem)}", err=True)
    if judged.sent == 0:
        typer.echo(
            "nothing was sent: the same questions have their answers in the ledger; other words, or --role critic, make other questions", err=True
        )


def _show_estimate(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    total = found["total"]
    money = "no price is known" if total.get("usd_at_most") is None else f"{total['usd_at_most']:.4f} US dollars at most"
    typer.echo(f"{found['images']} images: {total.get('requests', 0)} requests, {total.get('answered', 0)} answered already, {money}")
    typer.echo(found["counted"])
