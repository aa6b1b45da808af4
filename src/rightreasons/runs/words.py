"""words.jsonl: what experts changed in the descriptions of the classes and in the judge's few-shot pairs, change by change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rightreasons.records import ClassDescription, Words
from rightreasons.runs.appended import append_lines, read_lines
from rightreasons.runs.folder import RunFolder


def add_words(folder: RunFolder, words: Words) -> None:
    """Appends what was changed as one line; it is on the disk when this returns."""
    append_lines(folder.path / "words.jsonl", [asdict(words)])


def load_words(folder: RunFolder) -> list[Words]:
    """Every change in the order of the file; the last one counts. Raises ConfigError naming a line that is none."""

    def read(said: dict[str, Any]) -> Words:
        classes = tuple(ClassDescription(**item) for item in said["classes"])
        return Words(classes, said["examples"], str(said["by"]), str(said["at"]))

    return read_lines(folder.path / "words.jsonl", read)
