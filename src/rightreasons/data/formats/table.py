"""A table of labels: CSV as spreadsheets and scripts write it, or one JSON object per line, as Hugging Face's metadata.jsonl has them."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rightreasons.errors import DataError

JSON_LINES = ".jsonl"
TABLE_SUFFIXES = {".csv", ".tsv", JSON_LINES}
# Spreadsheets hold labels but are not read: their sheets, formulas and dates would have to be guessed.
SPREADSHEET_SUFFIXES = {".xlsx", ".xls", ".ods"}


@dataclass(frozen=True)
class Table:
    """The cells of a table, row by row, and the line of the file on which each row ends."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells of one column, white space around them taken off. Raises DataError if there is no such column."""
        if name not in self.columns:
            raise DataError(f"{self.path} has no column {name!r}; its columns are {_quoted(self.columns)}")
        place = self.columns.index(name)
        return [row[place].strip() for row in self.rows]

    def where(self, row: int) -> str:
        """Where a row stands, for an error."""
        return f"{self.path}, line {self.lines[row]}"


def read_header(path: Path) -> tuple[str, ...]:
    """The names of a table's columns. Raises DataError for a file that is no table."""
    if path.suffix.lower() == JSON_LINES:
        return _json_columns(path, itertools.islice(_read_objects(path), 1))
    with path.open("rb") as file:
        start = file.read(2**16)
    # A character may be cut in two at the end of what was read: the whole lines are enough.
    cut = start.rfind(b"\n")
    rows = _parse(path, start[: cut + 1] if len(start) == 2**16 and cut >= 0 and not start.startswith((b"\xff\xfe", b"\xfe\xff")) else start)
    return _check_columns(path, next(rows, (1, []))[1])


def read_table(path: Path) -> Table:
    """A CSV file in UTF-8 or UTF-16, with or without a byte-order mark; the separator is a comma, a semicolon, a tab or a bar; any line ends.

    A file of JSON lines is read as the table of its objects: a key that an object lacks is an empty cell. Raises DataError for a file that
    cannot be read so, naming the line.
    """
    if path.suffix.lower() == JSON_LINES:
        return _read_json_table(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error.strerror}") from error
    parsed = _parse(path, content)
    columns = _check_columns(path, next(parsed, (1, []))[1])
    rows, lines = [], []
    for line, cells in parsed:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {line}: {len(cells)} cells, and {len(columns)} columns are named in the first line ({_quoted(columns)})")
        rows.append(cells)
        lines.append(line)
    if not rows:
        raise DataError(f"{path} has no rows below its first line")
    return Table(path, columns, rows, lines)


def _read_json_table(path: Path) -> Table:
    objects = list(_read_objects(path))
    columns = _json_columns(path, objects)
    return Table(path, columns, [[_write_cell(one.get(name)) for name in columns] for _, one in objects], [line for line, _ in objects])


def _write_cell(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _json_columns(path: Path, objects: Iterable[tuple[int, Mapping[str, object]]]) -> tuple[str, ...]:
    return _check_columns(path, list(dict.fromkeys(key for _, one in objects for key in one)))


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a file of JSON lines, and the line of each."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    read = json.loads(line)
                    if not isinstance(read, dict):
                        raise DataError(f"{path}, line {number}: a JSON object is expected, {{...}}, but {line.strip()[:40]!r} is not one")
                    yield number, read
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not one JSON object per line ({error})") from error


def _parse(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """The rows and the line on which each ends."""
    text = _decode(path, content)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _decode(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not in UTF-8 (byte {content[error.start]:#x}); save the table as 'CSV UTF-8'") from error


def _find_delimiter(text: str) -> str:
    """The separator that the first line has most of."""
    first = text.split("\n", 1)[0]
    return max(",;\t|", key=first.count)


def _check_columns(path: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    if not any(columns):
        raise DataError(f"{path} is empty: a first line with the names of the columns is expected")
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns {twice!r}: give them different names")
    return columns


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
