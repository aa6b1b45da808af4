"""A folder of images with a table of labels: Waterbirds and other sets of WILDS, SubpopBench, a hospital's export, a pile of files with a CSV.

One row is one image, in columns whose names and values tell what they are (``columns``) or that the configuration names. Several tables that are
called after the splits (train.csv, test.csv), or lie in their folders (train/metadata.csv, as Hugging Face's imagefolder has them), are read as
one. Labels of images in DICOM come this way as well.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rightreasons.config import DataConfig
from rightreasons.data.cells import read_cell
from rightreasons.data.formats.columns import NAMES, choose_columns, match_columns, require_columns
from rightreasons.data.formats.table import TABLE_SUFFIXES, Table, read_header, read_table
from rightreasons.data.formats.unused import tell_unused
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.splits import find_splits, name_split, split_of_path
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError


@dataclass(frozen=True)
class Known:
    """A published set, told by its columns: what its codes for labels and attributes mean."""

    name: str
    columns: frozenset[str]
    labels: Mapping[str, str]
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """The entry of one row, and where it stands: the table's own name and the line of it."""

    entry: Entry
    table: str
    line: int


# Sagawa et al. 2020, as released with group DRO and in WILDS.
WATERBIRDS = Known(
    "Waterbirds",
    frozenset({"img_filename", "y", "split", "place"}),
    {"0": "landbird", "1": "waterbird"},
    {"0": "land", "1": "water"},
)
# Yang et al. 2023: one form for many sets, whose codes stand for something else in each.
SUBPOPBENCH = Known("SubpopBench", frozenset({"id", "filename", "split", "y", "a"}), {}, {})
KNOWN = (WATERBIRDS, SUBPOPBENCH)
# The names of the table in a split's folder in Hugging Face's imagefolder.
METADATA = ("metadata.csv", "metadata.jsonl")
# So many cells of a column are looked up to see whether it names files.
SOME_CELLS = 50


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether there is a table with a column for the image and one for the label, or one whose columns the configuration names."""
    named = any(column is not None for column in config.columns.model_dump().values())
    return config.table is not None or bool(_tables_in(tree, config)) or (named and bool(list_tables(tree)))


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every row's image. Rows without a label, and rows whose file is not there, are left out and counted.

    Raises DataError for a table without the columns that are needed, a name that leaves the folder, two rows that disagree on one image, or
    where not one file is there.
    """
    names = _choose_tables(tree, config)
    rows: list[Row] = []
    told, problems, left_out = [], [], dict(tree.left_out)
    known = None
    for split, name in names.items():
        table = read_table(tree.path(name))
        columns = choose_columns(
            table.path,
            table.columns,
            config.columns.model_dump(),
            table.column,
            problems,
            named=config.names,
            names_files=lambda column, role, table=table: _names_files(tree, table, column, role),
        )
        require_columns(table.path, table.columns, columns, table.column)
        unused = tell_unused(table.columns, columns, config.columns.model_dump(), table.column, config.names, has_split=split is not None)
        problems += [note for note in unused if note not in problems]
        known = next((one for one in KNOWN if one.columns <= set(table.columns)), None)
        rows += _read_rows(tree, table, columns, split, known, config, problems, left_out)
        used = ", ".join(f"{role} {column!r}" for role, column in columns.items() if role in NAMES)
        told.append(f"{name} ({used})")
    if not rows:
        raise DataError(f"{tree.root}: {' and '.join(told)} name no image file that is there; {'; '.join(problems)}")
    kind = known.name if known else "a table of labels"
    entries = _merge(rows, problems)
    if all(entry.split is None for entry in entries):
        entries, by_folder = _split_by_folder(entries, problems)
        told += by_folder
    return Listing(
        "table",
        f"{kind}: {', '.join(told)}",
        entries,
        tree.path,
        names=known.labels if known else {},
        problems=problems,
        left_out=left_out,
        read=frozenset(names.values()),
    )


def list_tables(tree: Tree) -> list[str]:
    """The tables right in the folder, whatever is in them."""
    return [name for name in tree.files if "/" not in name and posixpath.splitext(name)[1].lower() in TABLE_SUFFIXES]


def _tables_in(tree: Tree, config: DataConfig) -> list[str]:
    """The tables right in the folder that have the columns needed, else the metadata of its splits that have them."""

    def has_columns(name: str) -> bool:
        try:
            columns = read_header(tree.path(name))
            matched = match_columns(tree.path(name), columns, config.columns.model_dump())
        except DataError:
            return False  # another table than the one that is looked for; named in the error where there is no other
        return {"image", "label"} <= matched.keys()

    nested = [f"{folder}/{name}" for folder in tree.below("") if find_splits(folder) for name in METADATA if f"{folder}/{name}" in tree.files]
    return [name for name in list_tables(tree) if has_columns(name)] or [name for name in nested if has_columns(name)]


def _choose_tables(tree: Tree, config: DataConfig) -> dict[str | None, str]:
    """The table, under None; or one for each split, under its split."""
    if config.table is not None:
        name = tree.find(config.table, where=lambda: "[data] table")
        if name is None:
            raise DataError(f"[data] table = {config.table!r}: there is no such file in {tree.root}")
        return {None: name}
    found = _tables_in(tree, config)
    if len(found) == 1 and "/" not in found[0]:
        return {None: found[0]}
    if not found:
        # The one table that there is tells best what is missing.
        tables = list_tables(tree)
        if not tables:
            raise DataError(f"{tree.root} has no table of labels (*.csv, *.tsv)")
        return {None: tables[0]}
    by_split: dict[str | None, str] = {}
    for name in found:
        splits = find_splits(posixpath.dirname(name) or posixpath.splitext(name)[0])
        if len(splits) != 1 or splits & by_split.keys():
            raise DataError(f"{tree.root} has several tables of labels ({', '.join(found)}): name one, [data] table = {found[0]!r}")
        by_split[splits.pop()] = name
    return by_split


def _names_files(tree: Tree, table: Table, column: str, role: str) -> bool:
    """Whether one of some cells of a column names a file that is there, as the image or as the mask."""
    cells = table.column(column)
    base = posixpath.dirname(table.path.relative_to(tree.root).as_posix())

    def is_there(cell: str) -> bool:
        try:
            return bool(cell) and tree.find(cell, where=lambda: "", base=base, mask=role == "mask") is not None
        except DataError:
            return role == "mask"  # no one file; the error comes when the rows are read, if no other column is better

    return any(map(is_there, cells[:: max(1, len(cells) // SOME_CELLS)]))


def _read_rows(
    tree: Tree,
    table: Table,
    columns: Mapping[str, str],
    split: str | None,
    known: Known | None,
    config: DataConfig,
    problems: list[str],
    left_out: dict[str, str],
) -> list[Row]:
    cells = {role: table.column(column) for role, column in columns.items()}
    base = posixpath.dirname(table.path.relative_to(tree.root).as_posix())
    empty: list[str] = []
    words: Counter[str] = Counter()
    missing: list[str] = []
    splits: dict[str, str] = {}
    rows = []
    for row, image in enumerate(cells["image"]):
        label = read_cell(cells["label"][row], config.names)
        if read_cell(image) is None or label is None:
            empty.append(f"line {table.lines[row]}")
            words[cells["label"][row]] += 1
            continue
        name = tree.find(image, where=lambda row=row: table.where(row), base=base)
        if name is None:
            missing.append(image)
            continue
        own = {role: read_cell(cells[role][row]) for role in ("split", "attribute", "patient", "mask") if role in cells}
        mask = own.get("mask")
        if mask is not None:
            found = tree.find(mask, where=lambda row=row: table.where(row), base=base, mask=True)
            if found is None:
                raise DataError(f"{table.where(row)} names the mask {mask!r}, and there is no such file in {tree.root}")
            mask = found
        word = own.get("split")
        if word is not None and word not in splits:
            splits[word] = name_split(word, where=table.where(row))
        attribute = own.get("attribute")
        entry = Entry(
            name,
            label,
            split if split is not None or word is None else splits[word],
            own.get("patient"),
            known.attributes.get(attribute, attribute) if known and attribute is not None else attribute,
            mask=mask,
            bytes=tree.files[name],
        )
        rows.append(Row(entry, table.path.name, table.lines[row]))
    if empty:
        written = [word for word in words if word and read_cell(word, config.names) is None]
        hint = f"; {_some([repr(word) for word in written])} counts as missing unless [data] names says what it is" if written else ""
        problems.append(f"{len(empty)} rows of {table.path.name} have no image or no label and are left out ({_some(empty)}){hint}")
    if "patient" in cells and (unknown := sum(row.entry.patient is None for row in rows)):
        problems.append(f"{unknown} rows of {table.path.name} have no patient: each counts as a patient of its own")
    if missing:
        problems.append(f"{len(missing)} of {len(table.rows)} rows of {table.path.name} name files that are not in {tree.root} ({_some(missing)})")
        for image in missing:
            left_out.setdefault(image, "named in the table, and not there")
    return rows


def _split_by_folder(entries: list[Entry], problems: list[str]) -> tuple[list[Entry], list[str]]:
    """The entries with the split that their folder's name means, if this gives training and another split, and a sentence that says so."""
    folders = {posixpath.dirname(entry.name) for entry in entries}
    splits = {folder: split_of_path(folder) for folder in folders}
    found = set(splits.values())
    if "train" not in found or len(found) < 2:
        return entries, []
    if None in found:
        problems.append("some images lie in folders that are called after splits and others do not: the folders are not read as splits")
        return entries, []
    return [replace(entry, split=splits[posixpath.dirname(entry.name)]) for entry in entries], ["split by folder"]


def _merge(rows: Sequence[Row], problems: list[str]) -> list[Entry]:
    """One entry an image. Raises DataError if rows disagree on it."""
    merged: dict[str, Row] = {}
    repeated = 0
    for row in rows:
        earlier = merged.setdefault(row.entry.name, row)
        if earlier is row:
            continue
        repeated += 1
        for key in ("label", "split", "patient", "attribute", "mask"):
            first, second = getattr(earlier.entry, key), getattr(row.entry, key)
            if first != second:
                raise DataError(
                    f"{_both_lines(earlier, row)}: two rows name {row.entry.name}, with the {key} {first!r} and {second!r}: "
                    "one row per image is expected, or rows that agree"
                )
    if repeated:
        problems.append(f"{repeated} rows repeat an image that an earlier row names, and say the same of it")
    return [row.entry for row in merged.values()]


def _both_lines(first: Row, second: Row) -> str:
    if first.table == second.table:
        return f"{first.table}, lines {first.line} and {second.line}"
    return f"{first.table}, line {first.line}, and {second.table}, line {second.line}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
