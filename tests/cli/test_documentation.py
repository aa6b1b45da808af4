"""What the documentation tells people to type: every configuration is one, and every command and option of it exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from rightreasons.cli import app
from rightreasons.config import Config, merge_tables, parse_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
# What a table that is shown alone leaves out.
REST = {
    "data": {"path": "images"},
    "model": {"source": "torchvision:resnet50"},
    "classes": {"benign": {"description": "A mole."}},
    "critic": {"lvlm": "openai:MODEL"},
}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands() -> list[str]:
    """Each call of `rightreasons` in a block or in a piece of code, on pages that tell how things are (the log tells how they were)."""
    found = []
    for page in PAGES:
        if page.name != "log.md":
            found += [line for block in blocks(page, "", "bash", "sh") for line in block.replace("\\\n", " ").splitlines()]
            found += re.findall(r"`([^`\n]*)`", page.read_text(encoding="utf-8"))
    calls = [re.search(r"(?:^|\s|/)(rightreasons (?!--|as )[a-z].*)", line.split(" #")[0]) for line in found]
    return sorted({part.strip() for call in calls if call for part in call[1].split(" && ") if part.startswith("rightreasons ")})


@pytest.mark.parametrize(("page", "text"), [(page.name, text) for page in PAGES for text in blocks(page, "toml")])
def test_a_configuration_of_the_documentation_is_one(page, text):
    tables = tomllib.loads(text)
    if tables.keys() <= Config.model_fields.keys():  # others are a budget's or prices
        parse_config(merge_tables(REST, tables), source=page)


def test_the_commands_of_the_documentation_exist():
    known, lines = typer.main.get_command(app), commands()
    assert len(lines) > 60
    wrong = []
    for line in lines:
        command, words = known, shlex.split(line)[1:]
        while words and hasattr(command, "commands"):
            name = words.pop(0)
            command = command.commands.get(name)
            if command is None:
                wrong.append(f"{line}: there is no command {name}")
                break
        if command is not None:
            options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
            wrong += [f"{line}: there is no option {word}" for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]
    assert wrong == []
