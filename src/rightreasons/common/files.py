"""Files that are written atomically, and folders that only their owner can read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError, ModelError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a temporary file beside ``path``, which then replaces it: a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(part)
    part.chmod(0o600)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 atomically."""
    write_bytes(path, text.encode())


def to_json(value: Any) -> str:  # noqa: ANN401 -- whatever JSON can hold
    """Valid JSON, indented. Raises ModelError naming the key of a number that is not finite, which JSON cannot express."""
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        where = next(_find_not_finite(value), "a value")
        raise ModelError(f"{where} is not finite (NaN or infinite), so this run cannot be measured: look at the checkpoint") from error


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
    """Makes a folder that only its owner can read. The ConfigError raised if it cannot be made calls it ``name``."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make the {name} {path}: {error.strerror}") from error
