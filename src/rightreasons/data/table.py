"""A table of labels: CSV as spreadsheets and scripts write it, and its columns by the names that people give them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rightreasons.errors import DataError

TABLE_SUFFIXES = {".csv", ".tsv"}
# What a column is called in the tables that people have, likeliest first; compared without case, spaces, "_" and "-".
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": (
        "img_filename", "filename", "file_name", "image_path", "img_path", "image_file", "filepath", "file_path", "file", "path",
        "image_name", "image_index", "image", "img", "image_id", "isic_id", "dicom", "sop_instance_uid", "patientId", "id",
    ),
    "label": ("y", "label", "labels", "class", "target", "diagnosis", "dx", "finding_labels", "category", "benign_malignant", "outcome"),
    "split": ("split", "partition", "subset", "set"),
    "attribute": ("a", "place", "attribute", "spurious", "shortcut", "confounder", "group"),
    "patient": ("patient", "patient_id", "subject", "subject_id", "case_id", "lesion_id", "person"),
    "mask": ("mask", "mask_path", "mask_file", "mask_filename"),
}  # fmt: skip
NEEDED = ("image", "label")


@dataclass(frozen=True)
class Table:
    """The cells of a table, row by row, and the line of the file on which each row ends."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells of one column, white space around them taken off. Raises DataError where there is no such column."""
        if name not in self.columns:
            raise DataError(f"{self.path} has no column {name!r}; its columns are {_quoted(self.columns)}")
        place = self.columns.index(name)
        return [row[place].strip() for row in self.rows]

    def where(self, row: int) -> str:
        """Where a row stands, for an error."""
        return f"{self.path}, line {self.lines[row]}"


def read_header(path: Path) -> tuple[str, ...]:
    """The names of a table's columns. Raises DataError for a file that is no table."""
    with path.open("rb") as file:
        start = file.read(2**16)
    # A character may be cut in two at the end of what was read: the whole lines are enough.
    cut = start.rfind(b"\n")
    rows = _parse(path, start[: cut + 1] if len(start) == 2**16 and cut >= 0 and not start.startswith((b"\xff\xfe", b"\xfe\xff")) else start)
    return _check_columns(path, next(rows, (1, []))[1])


def read_table(path: Path) -> Table:
    """A CSV file in UTF-8 or UTF-16, with or without a byte-order mark; the separator is a comma, a semicolon, a tab or a bar; any line ends.

    Raises DataError for a file that cannot be read so, naming the line.
    """
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


def match_columns(path: Path | str, columns: Iterable[str], chosen: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Which of ``columns`` is the image, the label, the split, the attribute, the patient and the mask: as ``chosen``, else by its name.

    Roles that no column fits are missing from the answer. Raises DataError for a chosen column that is not there.
    """
    columns = tuple(columns)
    by_plain = {_plain(name): name for name in reversed(columns)}
    found: dict[str, str] = {}
    for role, named in (chosen or {}).items():
        if named is not None:
            if named not in columns:
                raise DataError(f"{path} has no column {named!r}, which [data.columns] {role} names; its columns are {_quoted(columns)}")
            found[role] = named
    for role, names in NAMES.items():
        match = next((by_plain[_plain(name)] for name in names if _plain(name) in by_plain and by_plain[_plain(name)] not in found.values()), None)
        if role not in found and match is not None:
            found[role] = match
    return found


def require_columns(path: Path | str, columns: Iterable[str], found: Mapping[str, str]) -> None:
    """Raises DataError where the image or the label is in none of the columns."""
    for role in NEEDED:
        if role not in found:
            raise DataError(
                f"{path} has no column for the {role}: expected one named {', '.join(NAMES[role])}; found {_quoted(columns)}. "
                f"Name it: [data.columns] {role} = ..."
            )


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


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " _-")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
