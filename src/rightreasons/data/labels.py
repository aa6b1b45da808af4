"""A folder of images with a table of labels: Waterbirds and other sets of WILDS, SubpopBench, a hospital's export, a pile of files with a CSV.

One row is one image, in columns whose names tell what they are (``table.NAMES``) or that the configuration names. Several tables that are called
after the splits (train.csv, test.csv) are read as one. Labels of images in DICOM come this way as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rightreasons.config import DataConfig
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.splits import find_split, name_split
from rightreasons.data.table import NAMES, TABLE_SUFFIXES, Table, match_columns, read_header, read_table, require_columns
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError


@dataclass(frozen=True)
class Known:
    """A published set, told by its columns: what its codes for labels and attributes mean."""

    name: str
    columns: frozenset[str]
    labels: Mapping[str, str]
    attributes: Mapping[str, str]


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
    rows: list[Entry] = []
    told, problems, left_out = [], [], dict(tree.left_out)
    known = None
    for split, name in names.items():
        table = read_table(tree.path(name))
        columns = match_columns(table.path, table.columns, config.columns.model_dump())
        require_columns(table.path, table.columns, columns)
        known = next((one for one in KNOWN if one.columns <= set(table.columns)), None)
        rows += _read_rows(tree, table, columns, split, known, problems, left_out)
        used = ", ".join(f"{role} {column!r}" for role, column in columns.items() if role in NAMES)
        told.append(f"{name} ({used})")
    if not rows:
        raise DataError(f"{tree.root}: {' and '.join(told)} name no image file that is there; {'; '.join(problems)}")
    kind = known.name if known else "a table of labels"
    entries = _merge(rows, names, problems)
    return Listing(
        "table", f"{kind}: {', '.join(told)}", entries, tree.path, names=known.labels if known else {}, problems=problems, left_out=left_out
    )


def list_tables(tree: Tree) -> list[str]:
    """The tables right in the folder, whatever is in them."""
    return [name for name in tree.files if "/" not in name and posixpath.splitext(name)[1].lower() in TABLE_SUFFIXES]


def _tables_in(tree: Tree, config: DataConfig) -> dict[str, tuple[str, ...]]:
    """The tables right in the folder that have the columns needed, and their columns."""
    found = {}
    for name in list_tables(tree):
        try:
            columns = read_header(tree.path(name))
            matched = match_columns(tree.path(name), columns, config.columns.model_dump())
        except DataError:
            continue  # another table than the one that is looked for; named in the error where there is no other
        if {"image", "label"} <= matched.keys():
            found[name] = columns
    return found


def _choose_tables(tree: Tree, config: DataConfig) -> dict[str | None, str]:
    """The table, under None; or one for each split, under its split."""
    if config.table is not None:
        name = tree.find(config.table, where=lambda: "[data] table")
        if name is None:
            raise DataError(f"[data] table = {config.table!r}: there is no such file in {tree.root}")
        return {None: name}
    found = list(_tables_in(tree, config))
    if len(found) == 1:
        return {None: found[0]}
    if not found:
        # The one table that there is tells best what is missing.
        tables = list_tables(tree)
        if not tables:
            raise DataError(f"{tree.root} has no table of labels (*.csv, *.tsv)")
        return {None: tables[0]}
    by_split: dict[str | None, str] = {}
    for name in found:
        split = find_split(re.split(r"[\W_]+", posixpath.splitext(name)[0]))
        if split is None or split in by_split:
            raise DataError(f"{tree.root} has several tables of labels ({', '.join(found)}): name one, [data] table = {found[0]!r}")
        by_split[split] = name
    return by_split


def _read_rows(
    tree: Tree,
    table: Table,
    columns: Mapping[str, str],
    split: str | None,
    known: Known | None,
    problems: list[str],
    left_out: dict[str, str],
) -> list[Entry]:
    cells = {role: table.column(column) for role, column in columns.items()}
    base = posixpath.dirname(table.path.relative_to(tree.root).as_posix())
    empty: list[str] = []
    missing: list[str] = []
    splits: dict[str, str] = {}
    rows = []
    for row, (image, label) in enumerate(zip(cells["image"], cells["label"], strict=True)):
        if not image or not label:
            empty.append(f"line {table.lines[row]}")
            continue
        name = tree.find(image, where=lambda row=row: table.where(row), base=base)
        if name is None:
            missing.append(image)
            continue
        own = {role: cells[role][row] or None for role in ("split", "attribute", "patient", "mask") if role in cells}
        mask = own.get("mask")
        if mask is not None:
            found = tree.find(mask, where=lambda row=row: table.where(row), base=base)
            if found is None:
                raise DataError(f"{table.where(row)} names the mask {mask!r}, and there is no such file in {tree.root}")
            mask = found
        word = own.get("split")
        if word is not None and word not in splits:
            splits[word] = name_split(word, where=table.where(row))
        attribute = _tidy(own.get("attribute"))
        rows.append(
            Entry(
                name,
                _tidy(label) or label,
                split if split is not None or word is None else splits[word],
                own.get("patient"),
                known.attributes.get(attribute, attribute) if known and attribute is not None else attribute,
                mask=mask,
                bytes=tree.files[name],
            )
        )
    if empty:
        problems.append(f"{len(empty)} rows of {table.path.name} have no image or no label and are left out ({_some(empty)})")
    if missing:
        problems.append(f"{len(missing)} of {len(table.rows)} rows of {table.path.name} name files that are not in {tree.root} ({_some(missing)})")
        for image in missing:
            left_out.setdefault(image, "named in the table, and not there")
    return rows


def _merge(rows: Sequence[Entry], names: Mapping[str | None, str], problems: list[str]) -> list[Entry]:
    """One entry an image. Raises DataError where rows disagree on it."""
    merged: dict[str, Entry] = {}
    repeated = 0
    for entry in rows:
        earlier = merged.setdefault(entry.name, entry)
        if earlier is entry:
            continue
        repeated += 1
        for key in ("label", "split", "patient", "attribute", "mask"):
            if getattr(earlier, key) != getattr(entry, key):
                raise DataError(
                    f"{', '.join(names.values())}: two rows name {entry.name}, with the {key} {getattr(earlier, key)!r} and {getattr(entry, key)!r}: "
                    "one row an image is expected"
                )
    if repeated:
        problems.append(f"{repeated} rows repeat an image that an earlier row names, and say the same of it")
    return list(merged.values())


def _tidy(label: str | None) -> str | None:
    """Numbers as pandas writes them where a cell was empty: 1.0 is 1."""
    return label.removesuffix(".0") if label is not None and re.fullmatch(r"-?\d+\.0", label) else label


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
