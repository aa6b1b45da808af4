"""Rows that hold the images themselves, as Parquet and Hugging Face's datasets keep them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from rightreasons.data.cells import read_cell
from rightreasons.data.formats.columns import NAMES
from rightreasons.data.listing import Entry, Source
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError, UnreadableImage

# The separator between a file's name, a row's number and a column in an entry's name.
MARK = "#"


@dataclass(frozen=True)
class Rows:
    """The columns of one file or split but for the pixels, by role; ``class_names`` has what whole numbers in the label's column stand for."""

    place: str
    columns: Mapping[str, Sequence[Any]]
    class_names: Sequence[str] | None
    split: str | None
    bytes: int


def list_rows(rows: Rows, problems: list[str], named: Container[str] = ()) -> list[Entry]:
    """One entry a row. Rows without a label are left out and counted; ``named`` has the labels that [data] names speaks of.

    Raises DataError for a number that stands for no class.
    """
    labels = [_name_label(rows, cell, named) for cell in rows.columns["label"]]
    texts = {role: [read_cell(cell) for cell in rows.columns[role]] for role in ("split", "attribute", "patient") if role in rows.columns}
    masked = rows.columns.get("mask")
    entries = []
    for number, label in enumerate(labels):
        if label is None:
            continue
        own = {role: cells[number] for role, cells in texts.items()}
        entries.append(
            Entry(
                f"{rows.place}{MARK}{number}",
                label,
                rows.split if rows.split is not None else own.get("split"),
                own.get("patient"),
                own.get("attribute"),
                mask=f"{rows.place}{MARK}{number}{MARK}mask" if masked is not None and masked[number] else None,
                bytes=rows.bytes,
            )
        )
    if len(entries) < len(labels):
        words = sorted({str(cell) for cell in rows.columns["label"] if isinstance(cell, str) and cell and read_cell(cell, named) is None})
        hint = f"; {', '.join(map(repr, words[:3]))} counts as missing unless [data] names says what it is" if words else ""
        problems.append(f"{len(labels) - len(entries)} rows of {rows.place} have no label and are left out{hint}")
    if "patient" in texts and (unknown := texts["patient"].count(None)):
        problems.append(f"{unknown} rows of {rows.place} have no patient: each counts as a patient of its own")
    return entries


def split_name(name: str) -> tuple[str, int, str]:
    """The place, the row and the role ("image" or "mask") that an entry's name tells."""
    parts = name.split(MARK)
    role = parts.pop() if parts[-1] == "mask" else "image"
    return MARK.join(parts[:-1]), int(parts[-1]), role


def open_cell(cell: Any, tree: Tree) -> Source:  # noqa: ANN401 -- bytes, or a record of bytes and path
    """The image in a cell: its bytes, or the file below the folder that it names. Raises UnreadableImage if there is neither."""
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if content:
        return BytesIO(content)
    named = cell.get("path") if isinstance(cell, Mapping) else None
    if not named:
        raise UnreadableImage("the row has no image")
    try:
        found = tree.find(str(Path(named).resolve()) if Path(named).is_absolute() else named, where=lambda: "the row")
    except DataError as error:
        raise UnreadableImage(str(error)) from error
    if found is None:
        raise UnreadableImage(f"the row names the file {named!r}, which is not there")
    return tree.path(found)


def choose_image_column(place: str, candidates: Sequence[str], chosen: str | None) -> str:
    """The column of the pixels among those that can hold any. Raises DataError if there is none, or it cannot be told."""
    if chosen is not None and chosen in candidates:
        return chosen
    if chosen is not None or not candidates:
        expected = f"{chosen!r}, which [data.columns] image names," if chosen is not None else "one"
        raise DataError(f"{place}: a column with the images as bytes is expected, {expected} and found were {', '.join(candidates) or 'none'}")
    likely = [name for name in ("image", "img", "bytes", "image_bytes", "content", "png", "jpg", *NAMES["image"]) if name in candidates]
    if not likely and len(candidates) > 1:
        raise DataError(f"{place}: the columns {', '.join(candidates)} may all hold the images: name one, [data.columns] image = {candidates[0]!r}")
    return likely[0] if likely else candidates[0]


def _name_label(rows: Rows, cell: object, named: Container[str]) -> str | None:
    """The label of a cell, by the class names if it is a number that stands for one; None if there is none."""
    text = read_cell(cell, named)
    if text is None or rows.class_names is None or (isinstance(cell, str) and cell in rows.class_names):
        return text
    # Hugging Face writes -1 for a class that is not known.
    if text == "-1":
        return None
    if not text.isdigit() or int(text) >= len(rows.class_names):
        raise DataError(f"{rows.place}: the label {text!r} stands for no class; the file names {len(rows.class_names)}, counted from 0")
    return rows.class_names[int(text)]
