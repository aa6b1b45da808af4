"""The commands `rightreasons lvlm ...`: what a model can do, what a run will cost, and batch files that a person carries."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rightreasons.cli.shared import AllowRemoteWords, ConfigFile, Out, default_folder, print_table, register

if TYPE_CHECKING:
    from rightreasons.common.progress import Reporter
    from rightreasons.pipeline.questions.batch_files import Imported
    from rightreasons.project.project import Project
    from rightreasons.runs.folder import RunFolder

app = typer.Typer(help="The vision-language model: what it can do, what it will cost, and requests carried by hand.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@register(app, "rightreasons lvlm probe config.toml --allow-remote api.example.com")
def probe(config: ConfigFile, allow_remote: AllowRemoteWords = None, as_json: AsJson = False) -> None:
    """What the server and model of a configuration can do, each ability tried with a real call. A few small calls with made-up pictures."""
    from rightreasons.lvlm.probe import probe as probe_lvlm
    from rightreasons.project.project import open_lvlms, read_project

    critic, judge = open_lvlms(read_project(config), tuple(allow_remote or ()))
    models = [critic] if judge is critic else [critic, judge]
    try:
        for lvlm in models:
            lvlm.check()
        found = {lvlm.name: probe_lvlm(lvlm) for lvlm in models}
    finally:
        for lvlm in models:
            lvlm.close()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    abilities = list(dict.fromkeys(key for abilities in found.values() for key in abilities))
    print_table("what it can do", ["", *found], [[key, *(_show(abilities.get(key)) for abilities in found.values())] for key in abilities])


@register(app, "rightreasons lvlm estimate config.toml")
def estimate(
    config: ConfigFile,
    out: Out = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="How long an answer takes; `lvlm probe` measures it.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Calls, tokens, US dollars and time of `find`, before a cent is spent. Asks no server."""
    from rightreasons.lvlm.ledger.ledger import Ledger
    from rightreasons.pipeline.questions.estimate import estimate_plan
    from rightreasons.pipeline.questions.open_questions import plan_or_bound
    from rightreasons.project.project import price_file, read_project
    from rightreasons.runs.folder import RunFolder

    project, folder = read_project(config), RunFolder(out or default_folder(config))
    with plan_or_bound(project, folder) as plan, Ledger(folder.ledger) if plan.finished else nullcontext() as ledger:
        found = estimate_plan(plan, ledger, prices=price_file(project), seconds_per_answer=seconds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    columns = {**found["roles"], "in all": found["total"]}
    keys = [key for key in found["total"] if key != "seconds_likely"]
    rows = [[key.replace("_", " "), *(_show(column[key]) for column in columns.values())] for key in keys]
    print_table(f"{found['images']} images", ["", *columns], rows)
    for role, summary in found["roles"].items():
        day = f", price of {summary['price_date']}" if summary["price_date"] else ""
        typer.echo(f"{role}: {summary['model']}" + (day if summary["usd_at_most"] is not None else ", no price is known: see docs/critic.md, Prices"))
    typer.echo(f"time: about {found['total']['seconds_likely'] / 60:.0f} min")
    typer.echo(found["counted"])


@register(app, "rightreasons lvlm export runs/moles --to requests.jsonl")
def export(
    run_folder: RunArgument,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="Where to write; a.jsonl becomes a-001.jsonl and so on if one file would be too large.")
    ],
    answers: Annotated[bool, typer.Option("--answers", help="Write the stored answers instead, for another person's `lvlm import`.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the requests that can be sent now as a provider's batch file: the critic's, and once those are imported the judge's. Sends nothing."""
    from rightreasons.lvlm.ledger.ledger import Ledger
    from rightreasons.pipeline.questions.batch_files import export_answers, export_requests
    from rightreasons.pipeline.questions.open_questions import plan_of_folder
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    with plan_of_folder(folder) as plan, Ledger(folder.ledger) as ledger:
        count = export_answers(folder.ledger, to) if answers else 0
        paths = [to] if answers else export_requests(plan.open_questions(ledger), ledger, to)
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in paths], "answers": count}))
    elif answers:
        typer.echo(f"{count} answers in {to}")
    elif not paths:
        typer.echo("every question has its answer: `rightreasons find` with the same --out makes the report")
    else:
        typer.echo("\n".join(f"wrote {path}" for path in paths))
        typer.echo(f"They contain images. Bring the answers back with: rightreasons lvlm import {run_folder} ANSWERS")


@register(app, "rightreasons lvlm import runs/moles batch_output.jsonl", name="import")
def import_(
    run_folder: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Batch output of a provider, exported answers, or a person's queue file.")],
    as_json: AsJson = False,
) -> None:
    """Read answers back in. The same file a second time changes nothing."""
    from rightreasons.errors import ConfigError
    from rightreasons.lvlm.ledger.ledger import Ledger
    from rightreasons.pipeline.questions.batch_files import import_answers
    from rightreasons.pipeline.questions.open_questions import plan_of_folder
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    with plan_of_folder(folder) as plan, Ledger(folder.ledger) as ledger:
        counts = import_answers(plan, ledger, file)
        still_open = sum(1 for _ in plan.open_questions(ledger))
    if as_json:
        typer.echo(json.dumps({**vars(counts), "open": still_open}, indent=2))
    else:
        _print_import(counts, still_open, run_folder)
    if not (counts.recorded or counts.already):
        raise ConfigError(f"{file} has no answer to any question of {run_folder}: was it exported from this run, with these settings?")


def show_dry_run(project: Project, folder: RunFolder, reporter: Reporter, *, as_json: bool) -> None:
    """`find --dry-run`: runs every stage before the critic, then shows one request as it would be sent."""
    from rightreasons.lvlm.ledger.ledger import Ledger
    from rightreasons.pipeline.questions.dry_run import show_request
    from rightreasons.pipeline.questions.open_questions import inspect_project

    with inspect_project(project, folder, reporter) as plan, Ledger(folder.ledger) as ledger:
        shown = show_request(plan, ledger, folder.path / "dry-run")
    if as_json:
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    if shown is None:
        typer.echo("nothing would be sent: every question has its answer")
        return
    typer.echo(json.dumps(shown["request"], indent=2, ensure_ascii=False))
    for picture in shown["pictures"]:
        typer.echo(f"{picture['file']}: {picture['size'][0]} x {picture['size'][1]} pixels, {picture['bytes']:,} bytes")
    where = shown["goes_to"] or "nowhere: the model runs in this process"
    typer.echo(f"would go to: {where} ({shown['model']}, as the {shown['role']})\nnot in it: {shown['stripped']}")
    if (near := shown["close_up"]) is not None:
        typer.echo(
            f"after the first answers, one close-up may follow for each segment that is unsure, at most {near['segments']:,}; the first would be "
            f"{near['file']}, at most {near['input_tokens_at_most']:,} tokens in and {near['output_tokens_at_most']:,} out"
        )
    typer.echo(f"at most {shown['input_tokens_at_most']:,} tokens in and {shown['output_tokens_at_most']:,} out. Nothing was sent.")


def _print_import(counts: Imported, still_open: int, run_folder: Path) -> None:
    typer.echo(f"{counts.recorded} answers recorded ({counts.no_answer} of them refusals or cut off), {counts.already} were recorded already")
    for what, entries in (
        ("came twice, the first was taken", counts.duplicate),
        ("failed at the provider, and can be exported again", counts.failed),
        ("are malformed", counts.malformed),
        ("belong to no question of this run", counts.unknown),
    ):
        if entries:
            typer.echo(f"{len(entries)} {what}, such as {entries[0]}", err=True)
    command = f"lvlm export {run_folder} --to FILE" if still_open else "find"
    typer.echo(f"{still_open} questions are open now; next: rightreasons {command}")


def _show(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
