"""Files that are written whole or not at all, and folders that only their owner can read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError, ModelError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a temporary name beside ``path``, which then takes its place: a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(part)
    part.chmod(0o600)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """A file, written atomically."""
    write_atomically(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, written atomically."""
    write_bytes(path, text.encode())


def to_json(value: Any) -> str:  # noqa: ANN401 -- whatever JSON can hold
    """Valid JSON, indented. Raises ModelError, naming the keys, for a number that is not finite: JSON has no word for it."""
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        where = next(_find_not_finite(value), "a value")
        raise ModelError(f"{where} is not finite (NaN or infinite), so that nothing can be said of this run: look at the checkpoint") from error


def _find_not_finite(value: object, place: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _find_not_finite(inner, f"{place}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _find_not_finite(inner, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def make_private_folder(path: Path, name: str) -> None:
    """A folder that only its owner can read, called ``name`` in the ConfigError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make the {name} {path}: {error.strerror}") from error
