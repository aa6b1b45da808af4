"""The command inspect: what a path is read as, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rightreasons.cli.shared import note_left_out, print_table
from rightreasons.common.files import make_private_folder, write_bytes
from rightreasons.common.progress import Reporter
from rightreasons.common.text import clean_text
from rightreasons.config import parse_data, read_toml
from rightreasons.data import open_data, task_defaults
from rightreasons.data.survey import THUMBNAIL, choose_rows, draw_sheet, survey_task
from rightreasons.errors import ConfigError

if TYPE_CHECKING:
    from rightreasons.project.project import Project


def survey_path(path: str, out: Path | None, reporter: Reporter, *, decode: bool, model: bool = False) -> dict[str, Any]:
    """Surveys a folder, a table, a built-in task or a configuration's [data], and writes the contact sheet. Raises DataError as ``open_data`` does.

    With ``model`` a configuration's network is rehearsed on its data, the problems name what was taken of its checkpoint, and the errors of
    ``rehearse`` can be raised too.
    """
    root, table = Path.cwd(), {"path": path}
    if path.endswith(".toml"):
        root, table = Path(path).parent, read_toml(Path(path)).get("data")
        if not isinstance(table, dict):
            raise ConfigError(f"{path} has no table [data]: give it one, or name the folder itself")
    config = parse_data(table, source=path)
    if config.size is None and not task_defaults(config.path):
        # Images of several sizes are reported here, and are not an error.
        config = config.model_copy(update={"size": THUMBNAIL})
    with reporter.stage("list"):
        task = open_data(config, root=root, seed=0)
    survey = survey_task(task, reporter, decode=decode)
    if model:
        project = _rehearse(path, reporter)
        survey["model"] = dict(project.rehearsal.found)
        survey["problems"] = [*survey["problems"], *project.notes]
    folder = out or Path("runs") / "inspect" / Path(config.path).stem
    make_private_folder(folder, "folder")
    sheet = folder / "contact-sheet.png"
    write_bytes(sheet, draw_sheet(task, choose_rows(task)))
    then = f"find {path}" if path.endswith(".toml") else None if task_defaults(path) else f"init {path}"
    return {**survey, "left_out": dict(task.skipped), "contact_sheet": str(sheet), "next": then}


def _rehearse(path: str, reporter: Reporter) -> Project:
    from rightreasons.project.project import read_project

    if not path.endswith(".toml"):
        raise ConfigError(f"--model needs a configuration (a .toml file), which names the network; {path} is not one")
    with reporter.stage("rehearse"):
        return read_project(Path(path))


def show_survey(survey: dict[str, Any], reporter: Reporter) -> None:
    """Prints the survey as a table and sentences."""
    typer.echo(clean_text(f"{survey['path']} is read as {survey['read_as']}"))
    known = any(counts["groups"] for counts in survey["splits"].values())
    rows = []
    for split, counts in survey["splits"].items():
        rows.append([split, "", str(counts["images"]) + (f" of {counts['patients']} patients" if counts["patients"] else "")])
        rows += [["", clean_text(name), str(count)] for name, count in (counts["groups"] or counts["classes"]).items()]
    print_table("images", ["split", "group" if known else "class", "count"], rows)
    if survey["sizes"]:
        typer.echo("sizes: " + ", ".join(f"{size} ({count})" for size, count in list(survey["sizes"].items())[:5]))
    for kind, (low, high) in survey["windows"].items():
        typer.echo(f"black and white ({kind}): {low:g} and {high:g}")
    if "model" in survey:
        print_table("rehearsed with the network", ["", "found"], [[tried, clean_text(found)] for tried, found in survey["model"].items()])
    for problem in survey["problems"]:
        reporter.note(clean_text(problem))
    note_left_out(survey["left_out"], reporter, "--json names them all")
    typer.echo(f"contact sheet: {survey['contact_sheet']} (it has images of yours)")
    if survey["next"] is not None:
        typer.echo(clean_text(f"next: rightreasons {survey['next']}"))
