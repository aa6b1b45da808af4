"""Files that people write to, line by line: a line is added, never changed, and is on the disk before anyone is told of it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rightreasons.common.text import clean_text
from rightreasons.errors import ConfigError

Record = TypeVar("Record")
# The longest name of a person, in characters.
LONGEST_NAME = 80


@contextlib.contextmanager
def people_held(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread writes what people said in this run folder, and holds it. It is held for milliseconds only."""
    handle = os.open(folder / ".people.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends JSON objects in one write, one a line, and waits until they are on the disk.

    Raises ConfigError if the disk does not take them; then no part of them stays in the file.
    """
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with people_held(path.parent):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            end = os.fstat(handle).st_size
            if end and os.pread(handle, 1, end - 1) != b"\n":  # an editor may leave out the last newline
                text = "\n" + text
            _write_whole(handle, text.encode(), end, path)
            if end == 0:
                _keep_name(path.parent)
        finally:
            os.close(handle)


def _keep_name(folder: Path) -> None:
    """Waits until the name of a new file in the folder is on the disk as well."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_whole(handle: int, content: bytes, end: int, path: Path) -> None:
    try:
        written = os.write(handle, content)
        os.fsync(handle)
    except OSError as error:
        os.ftruncate(handle, end)
        raise ConfigError(f"cannot write to {path}: {error.strerror}. Nothing was stored; make room and decide again") from error
    if written < len(content):
        os.ftruncate(handle, end)
        raise ConfigError(f"the disk of {path} is full: {written} of {len(content)} bytes fit. Nothing was stored; make room and decide again")


def read_lines(path: Path, read: Callable[[dict[str, Any]], Record]) -> list[Record]:
    """Each line of a file, as ``read`` makes of its object; none if there is no file. Raises ConfigError naming a line that it cannot read."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line.strip():
            try:
                said = json.loads(line)
                if not isinstance(said, dict):
                    raise ValueError(f"a JSON {type(said).__name__}; expected an object")
                records.append(read(said))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}: {error}. Correct or delete that line") from error
    return records


def read_name(said: str | None) -> str:
    """A person's name, without characters that cannot be shown. Raises ValueError for one that is empty or too long."""
    name = " ".join(clean_text(said or "").split())
    if not name:
        raise ValueError("a verdict needs the name of the person who decides")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters; expected at most {LONGEST_NAME}")
    return name


def now() -> str:
    """The present time as ISO 8601, in UTC and to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
