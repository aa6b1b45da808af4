"""Parquet with the images' bytes in a column, as the Hugging Face hub and data lakes keep them."""

from __future__ import annotations

import bisect
import json
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from rightreasons.config import DataConfig
from rightreasons.data.formats.columns import choose_columns, require_columns
from rightreasons.data.formats.rows import Rows, choose_image_column, list_rows, open_cell, split_name
from rightreasons.data.formats.unused import tell_unused
from rightreasons.data.listing import Listing, Source
from rightreasons.data.splits import SHORT_SPLITS, split_of_path, split_words
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError, MissingExtra

SUFFIX = ".parquet"
# The most bytes of encoded images that are kept from row groups, since neighbours in a file are often read together.
KEPT_BYTES = 2**28


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether there are Parquet files."""
    return any(name.endswith(SUFFIX) for name in tree.files)


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every row. The split is what the file's own name says, else its nearest folder's. Raises DataError if a column is missing."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    entries, problems = [], []
    classes: tuple[str, ...] | None = None
    images: dict[str, _ImageColumn] = {}
    used: dict[str, str] = {}
    files = [name for name in tree.files if name.endswith(SUFFIX)]
    for name in files:
        try:
            file = pq.ParquetFile(tree.path(name), memory_map=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{tree.path(name)} is no Parquet file that can be read: {' '.join(str(error).split())[:200]}") from error
        schema = file.schema_arrow
        used = _match(name, file, config, problems)
        class_names = _class_names(schema, used["label"])
        classes = classes or (tuple(class_names) if class_names else None)
        stored = file.read(columns=[used[role] for role in ("label", "split", "attribute", "patient") if role in used])
        columns: dict[str, Sequence[Any]] = {
            role: stored.column(used[role]).to_pylist() for role in ("label", "split", "attribute", "patient") if role in used
        }
        if "mask" in used:
            present = file.read(columns=[used["mask"]]).column(used["mask"]).is_valid().to_pylist()
            columns["mask"] = present
        images[name] = _ImageColumn(file, {role: used[role] for role in ("image", "mask") if role in used})
        entries += list_rows(Rows(name, columns, class_names, split_of_path(name), tree.files[name]), problems, config.names)
    if not images:
        raise DataError(f"{tree.root} has no Parquet file (*{SUFFIX})")
    if all(entry.split is None for entry in entries):
        _check_short_names(files)
    told = f"{len(images)} Parquet file(s) ({', '.join(f'{role} {column!r}' for role, column in used.items())})"
    cache = _Groups()

    def open_source(name: str) -> Source:
        place, row, role = split_name(name)
        return open_cell(cache.cell(place, images[place], row, role), tree)

    return Listing("parquet", told, entries, open_source, classes=classes, problems=problems, left_out=tree.left_out, read=frozenset(files))


class _ImageColumn:
    """Where each row of a file is: its row group, and its place there."""

    def __init__(self, file: Any, columns: dict[str, str]) -> None:  # noqa: ANN401 -- pyarrow is an extra
        self.file, self.columns = file, columns
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self.starts = [0, *accumulate(counts)]

    def locate(self, row: int) -> tuple[int, int]:
        group = bisect.bisect_right(self.starts, row) - 1
        return group, row - self.starts[group]


class _Groups:
    """The row groups read last, as long as they fit; one reader at a time, since a Parquet file has one position."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, place: str, column: _ImageColumn, row: int, role: str) -> Any:  # noqa: ANN401
        group, offset = column.locate(row)
        key = (place, group, role)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = column.file.read_row_group(group, columns=[column.columns[role]]).column(0)
                while len(self._kept) > 1 and sum(part.nbytes for part in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][offset].as_py()


def _check_short_names(files: Sequence[str]) -> None:
    """Raises DataError if the names of all files may be splits or languages."""
    if len(files) > 1 and all(SHORT_SPLITS & {*split_words(posixpath.basename(name).removesuffix(SUFFIX))} for name in files):
        raise DataError(
            f"{' and '.join(files[:3])} may be training and test or Turkish and Telugu: call them train.parquet and test.parquet, "
            "or give the tables a column 'split'"
        )


def _match(name: str, file: Any, config: DataConfig, problems: list[str]) -> dict[str, str]:  # noqa: ANN401
    """Which column of a file is what; pixels are in columns of bytes, or of records that hold bytes."""
    schema = file.schema_arrow
    holders = [field.name for field in schema if _holds_bytes(field.type)]
    chosen = config.columns.model_dump()
    plain = [field.name for field in schema if field.name not in holders]

    def values(column: str) -> list[Any]:
        return file.read(columns=[column]).column(0).to_pylist()

    found = choose_columns(posixpath.basename(name), plain, {**chosen, "image": None, "mask": None}, values, problems, named=config.names)
    found["image"] = choose_image_column(name, [column for column in holders if column not in (chosen["mask"] or "mask")], chosen["image"])
    found.pop("mask", None)
    mask = chosen["mask"] or "mask"
    if mask in holders:
        found["mask"] = mask
    require_columns(posixpath.basename(name), schema.names, found)
    unused = tell_unused(plain, found, chosen, values, config.names, has_split=split_of_path(name) is not None)
    problems += [note for note in unused if note not in problems]
    return found


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: Any, label: str) -> list[str] | None:  # noqa: ANN401
    """What the numbers of a ClassLabel column stand for, where the Hugging Face library wrote the file."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        feature = json.loads(stored)["info"]["features"][label]
        return list(feature["names"]) if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None  # written by another version of it: the labels are numbers then
