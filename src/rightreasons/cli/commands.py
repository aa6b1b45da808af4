"""The commands. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rightreasons.cli import again, check, export, init, lvlm, name, profile, review, study, suspects, take, verdict
from rightreasons.cli.shared import STOPPED, AllowRemote, ConfigFile, Device, Out, default_folder, is_helper, note_left_out, print_table, register
from rightreasons.common.parallel import is_main

if TYPE_CHECKING:
    from rightreasons.common.progress import Reporter
    from rightreasons.project.project import Project
    from rightreasons.run import Run
    from rightreasons.runs.folder import RunFolder

# Threads that spin while they wait make small models up to a hundred times slower on a busy machine (docs/log.md). Torch reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes, make glibc keep what torch frees. Every step of training asks for the same blocks again,
# and mapping them anew took a quarter of its time (docs/log.md).
if platform.libc_ver()[0] == "glibc":
    for parameter, threshold in ((-1, 2**30), (-3, 2**27)):  # larger blocks are returned at once: keeping them would take memory without a bound
        ctypes.CDLL(None).mallopt(parameter, threshold)

app = typer.Typer(
    help="Find the shortcuts that an image classifier uses, have a vision-language model judge them, and remove them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lvlm.app, name="lvlm")
# The exit code of `find` while a person still has questions to answer.
NOT_ANSWERED = 3


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"rightreasons {installed_version('rightreasons')}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Options of the program itself, given before a command."""


AsJson = Annotated[bool, typer.Option("--json", help="Print metrics.json on standard output, and nothing else.")]
RetryUnknown = Annotated[bool, typer.Option("--retry-unknown", help="Ask again what a crash left unanswered. It may have been paid for.")]
MaxUsd = Annotated[float | None, typer.Option("--max-usd", min=0, help="Stop, resumably, before the next request could pass this many US dollars.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do all but ask: show one request as it would be sent, pictures as files. Sends nothing.")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="A setting that find has not used, such as align.epochs=12; or data.path, for moved data."),
]
Target = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the configuration it was made from.")]


@register(app, "rightreasons demo --out runs/demo")
def demo(out: Out = None, as_json: AsJson = False, device: Device = None) -> None:
    """The whole method on packaged handwritten digits: no connection, a simulated critic, about two minutes."""
    from rightreasons.pipeline.find import find as find_in
    from rightreasons.pipeline.fix import fix as align
    from rightreasons.pipeline.results import write_results
    from rightreasons.project.project import open_project
    from rightreasons.runs.folder import RunFolder
    from rightreasons.scoring.scores import score_key
    from rightreasons.studies.study import reference_scores

    reporter = _reporter()
    project = open_project({"data": {"path": "decoy-mnist:packaged"}}, source="demo", root=Path.cwd())
    folder = RunFolder(out or Path("runs/demo"))
    run = find_in(project, folder, reporter=reporter)
    alignment = align(run, reporter=reporter)
    stored = folder.load_scores(score_key(run, "reference"))
    reference = None if stored else reference_scores(run, folder.path / "reference", reporter)
    metrics = write_results(run, reporter, alignment=alignment, reference=reference)
    _show(metrics, folder, as_json)
    if not as_json:
        typer.echo("The critic was simulated from ground-truth masks; for a real one set [critic] lvlm = 'openai:MODEL' and base_url (see README).")


@register(app, "rightreasons inspect images --out runs/look")
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder, a table of labels, a built-in task, or a configuration (its [data] table).")],
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON on standard output, and nothing else.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image as well, to find the broken ones.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Rehearse a configuration's network as well: read, explain and train for a step.")] = False,
) -> None:
    """Show what a folder is read as: counts per split, class and group, sizes, problems, and a contact sheet. Sends nothing."""
    from rightreasons.cli.inspect import show_survey, survey_path

    reporter = _reporter()
    survey = survey_path(path, out, reporter, decode=decode, model=model)
    typer.echo(json.dumps(survey, indent=2)) if as_json else show_survey(survey, reporter)


@register(app, "rightreasons find examples/folder.toml --out runs/parts", shared=True)
def find(
    config: ConfigFile,
    out: Out = None,
    as_json: AsJson = False,
    allow_remote: AllowRemote = None,
    retry_unknown: RetryUnknown = False,
    max_usd: MaxUsd = None,
    dry_run: DryRun = False,
    device: Device = None,
) -> None:
    """Find what the classifier leans on and have each piece judged; writes a run folder and report.html."""
    from rightreasons.pipeline.find import find as find_in
    from rightreasons.pipeline.questions.open_questions import carried_backends
    from rightreasons.pipeline.results import write_results
    from rightreasons.project.project import read_project
    from rightreasons.runs.folder import RunFolder

    reporter = _reporter()
    project = read_project(config)
    if is_helper(project):
        return
    folder = RunFolder(out or default_folder(config))
    if dry_run:
        lvlm.show_dry_run(project, folder, reporter, as_json=as_json)
        return
    run = find_in(
        project,
        folder,
        reporter=reporter,
        allow_remote=tuple(allow_remote or ()),
        retry_unknown=retry_unknown,
        max_usd=max_usd,
        carried=None if retry_unknown else carried_backends(project, folder),
    )
    metrics = write_results(run, reporter)
    _tell_left_out(run, reporter)
    _show(metrics, folder, as_json)
    _tell_of_questions(run)
    _refuse_silence(run)


@register(app, "rightreasons fix runs/parts", shared=True)
def fix(
    run_folder: Target,
    out: Out = None,
    as_json: AsJson = False,
    change: Change = None,
    accept: Annotated[bool, typer.Option("--accept", help="Take the repair although the harm guard rejects it.")] = False,
    device: Device = None,
) -> None:
    """Fine-tune the model with the verdicts, human ones first; writes aligned.safetensors and the scores after."""
    from rightreasons.pipeline.fix import fix as align
    from rightreasons.pipeline.results import write_results

    reporter = _reporter()
    if not is_main():  # a helper only reads the folder
        is_helper(_named(run_folder, out, change).read())
        return
    run, target = _load(run_folder, out, change)
    is_helper(run.project)
    alignment = align(run, reporter=reporter, out=target.path, accept=accept)
    metrics = write_results(run, reporter, alignment=alignment, folder=target)
    _tell_left_out(run, reporter)
    _show(metrics, target, as_json)


@register(app, "rightreasons score runs/parts --json")
def score(run_folder: Target, out: Out = None, as_json: AsJson = False, change: Change = None, device: Device = None) -> None:
    """Score the model before and after on the test split."""
    from rightreasons.pipeline.results import write_results

    reporter = _reporter()
    run, target = _load(run_folder, out, change)
    metrics = write_results(run, reporter, folder=target, again=True)
    _tell_left_out(run, reporter)
    _show(metrics, target, as_json)


register(app, "rightreasons init images --out config.toml")(init.init)
register(app, "rightreasons verdict runs/parts 132 S1 spurious --by NAME")(verdict.verdict)
register(app, "rightreasons review runs/parts", stopping=STOPPED)(review.review)
register(app, "rightreasons study runs/parts --size 60", stopping=STOPPED)(study.study)
register(app, "rightreasons check runs/parts --model new.pt --max-flip-rate 0.1", failed=check.CANNOT_CHECK)(check.check)
register(app, "rightreasons name runs/parts")(name.name)
register(app, "rightreasons suspects runs/parts --as csv --as coco")(suspects.suspects)
register(app, 'rightreasons import runs/parts marks.json --by "Dr Ann"', "import")(take.import_marks)
register(app, "rightreasons export runs/parts --to handover")(export.export)
register(app, "rightreasons profile runs/parts")(profile.profile)
register(app, 'rightreasons ask-again runs/parts 132 140 --role judge --by "Dr Ann"', "ask-again")(again.ask_again)


@register(app, "rightreasons bench decoy-mnist --seeds 1 --json")
def bench(
    study: Annotated[str, typer.Argument(help="The name of a study, such as decoy-mnist, or a TOML file.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Finished ones are not run again.")] = 1,
    methods: Annotated[str | None, typer.Option(help="Only these methods, separated by commas.")] = None,
    critic: Annotated[list[str] | None, typer.Option(help="Another critic, such as simulated:0.87; given several times, one row for each.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many processes; each has its share of the threads.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run every row at a tiny size, into OUT/smoke: does it run at all?")] = False,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON on standard output, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """Reproduce a table: every method on every seed, one JSON file each, resumable. Writes OUT/STUDY/table.* and figure.*"""
    from rightreasons.errors import StudyUnfinished
    from rightreasons.studies.definition import split_names
    from rightreasons.studies.sheets import make_sheets
    from rightreasons.studies.study import describe_failures, open_study, run_study

    opened = open_study(study, critics=critic or (), smoke=smoke)
    table = run_study(
        opened,
        seeds=range(seeds),
        methods=split_names(methods, opened.names) if methods else None,
        out=out or Path("runs/bench"),
        reporter=_reporter(),
        jobs=jobs,
    )
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        sheets, notes = make_sheets(table)
        for sheet in sheets:
            print_table(sheet.title, sheet.columns, sheet.rows)
        typer.echo("\n".join(notes))
    if table["failed"]:
        raise StudyUnfinished(describe_failures(table))


def _reporter() -> Reporter:
    from rightreasons.common.progress import Terminal

    return Terminal()


class _Named(NamedTuple):
    """The run that a folder or a configuration names, with what is changed of its settings, and the folder that results go to."""

    source: RunFolder
    file: Path | None
    changes: dict[str, Any]
    target: RunFolder

    def load(self) -> Run:
        """The run, to go on with."""
        from rightreasons.run import load_run

        return load_run(self.source, file=self.file, changes=self.changes)

    def read(self) -> Project:
        """Its project alone."""
        from rightreasons.project.project import read_run_project

        return read_run_project(self.source, file=self.file, changes=self.changes)


def _named(target: Path, out: Path | None, change: list[str] | None) -> _Named:
    from rightreasons.config import read_assignments
    from rightreasons.runs.folder import RunFolder

    changes = read_assignments(change or [])
    for table, key in (("data", "path"), ("model", "checkpoint")):
        if key in changes.get(table, {}):  # said here and now, so it starts from here
            changes[table][key] = str(Path(changes[table][key]).absolute())
    if target.suffix == ".toml":
        source = RunFolder(out or default_folder(target))
        return _Named(source, target, changes, source)
    source = RunFolder(target)
    return _Named(source, None, changes, RunFolder(out) if out else source)


def _load(target: Path, out: Path | None, change: list[str] | None) -> tuple[Run, RunFolder]:
    """The run that a folder or a configuration names, and the folder that results go to."""
    named = _named(target, out, change)
    return named.load(), named.target


def _tell_left_out(run: Run, reporter: Reporter) -> None:
    note_left_out(run.project.task.skipped, reporter, "`rightreasons inspect --decode --json` names them all")


def _show(metrics: dict[str, Any], folder: RunFolder, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    columns = {name: metrics[name] for name in ("before", "after", "rejected") if metrics[name]} | metrics["reference"]
    title = f"{metrics['task']}: {metrics['outcome']}" + _who_judged(metrics["critic"])
    rows = []
    attribution = ("mu_align", "mu_align_floor", "shortcut_lift", "spurious_share")
    for key in ("accuracy", "worst_group_accuracy", "average_group_accuracy", *attribution, "swap_flip_rate"):
        values = [scores[key] for scores in columns.values()]
        if any(value is not None for value in values):
            rows.append([key, *("-" if value is None else f"{value:.3f}" for value in values)])
    scored = metrics["data"]["images"].get("test")
    print_table(title, ["" if scored is None else f"{scored} test images", *columns], rows)
    typer.echo(metrics["explanation"])
    if metrics["alignment"]:
        failed = ", but the repair did not take" if metrics["alignment"]["effect"] == "did not take" else ""
        typer.echo(f"fine-tuning: {metrics['alignment']['outcome']}{failed}")
    typer.echo(f"report: {folder.path / 'report.html'}")


def _who_judged(critic: dict[str, Any]) -> str:
    """A warning that no model gave the verdicts, if so; empty for a model's verdicts."""
    if critic["segments"] and critic["overruled"] == critic["segments"]:
        return " (verdicts by a person)"
    return f" ({critic['backend']} critic)" if critic["backend"] in ("simulated", "scripted") else ""


def _tell_of_questions(run: Run) -> None:
    """If a person is the critic and has not answered yet, prints what to do next and exits with code 3."""
    from rightreasons.lvlm.backends.human import Human
    from rightreasons.records import settle_verdicts

    if not any(verdict.is_open for verdict in settle_verdicts(run.verdicts).values()):
        return
    typer.echo(
        f"these segments wait for a person: `rightreasons review {run.folder.path}` shows them in a browser, to be decided one by one;", err=True
    )
    typer.echo(f"`rightreasons verdict {run.folder.path} --list` prints them as a table to fill in", err=True)
    critic = run.config.critic
    for spec in dict.fromkeys((critic.lvlm, critic.judge or critic.lvlm)):
        kind, _, file = spec.partition(":")
        if kind == "human":
            count, path = Human(file, run.project.root).count_waiting()
            asked = "1 question" if count == 1 else f"{count} questions"
            typer.echo(
                f"or answer as a model would: {asked} without an answer in {path}, whose form docs/critic.md shows; then the same command goes on",
                err=True,
            )
    raise typer.Exit(NOT_ANSWERED)


def _refuse_silence(run: Run) -> None:
    """Raises LVLMError for an LVLM that gave no usable verdict at all, after everything it answered was saved."""
    from rightreasons.errors import LVLMError
    from rightreasons.records import settle_verdicts

    settled = list(settle_verdicts(run.verdicts).values())
    if settled and all(verdict.problem for verdict in settled):
        problem = (settled[0].problem or "").rstrip(".")
        raise LVLMError(
            f"{run.criticism.lvlm} gave no usable verdict on any of {len(settled)} segments; the first problem: {problem}. "
            f"Its answers are in {run.folder.ledger}; try another model. {_tell_unread(run)}".rstrip(" .")
        )
    if unread := _tell_unread(run):
        typer.echo(unread, err=True)


def _tell_unread(run: Run) -> str:
    """Which command asks again where an answer could not be read, since no other does; "" if every answer could be read."""
    from rightreasons.critic.votes import find_unread

    unread = len(find_unread(run.verdicts))
    if unread == 0:
        return ""
    images = "1 image has an answer" if unread == 1 else f"{unread} images have answers"
    return (
        f"{images} that could not be read, and no command asks for them again by itself, since they may have been paid for: "
        f"`rightreasons ask-again {run.folder.path} --by NAME` does"
    )


if __name__ == "__main__":
    sys.exit(app())
