"""A folder that Hugging Face's ``datasets`` wrote with ``save_to_disk``. Read by that library, from the folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rightreasons.config import DataConfig
from rightreasons.data.formats.columns import choose_columns, require_columns
from rightreasons.data.formats.rows import Rows, choose_image_column, list_rows, open_cell, split_name
from rightreasons.data.formats.unused import tell_unused
from rightreasons.data.listing import Listing, Source
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError, MissingExtra


def recognise(tree: Tree, config: DataConfig) -> bool:
    """By the files that ``save_to_disk`` writes beside the data."""
    return "dataset_dict.json" in tree.files or {"state.json", "dataset_info.json"} <= tree.files.keys()


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every row of every split. Raises DataError if a column is missing, or the library cannot read the folder."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "huggingface") from error
    try:
        stored = datasets.load_from_disk(str(tree.root))
    except Exception as error:  # pyarrow's, json's and the library's own
        raise DataError(f"{tree.root} is no folder that datasets can read: {' '.join(str(error).split())[:200]}") from error
    parts = stored if isinstance(stored, datasets.DatasetDict) else {None: stored}
    entries, problems = [], []
    classes: tuple[str, ...] | None = None
    pixels: dict[str, tuple[Any, dict[str, str]]] = {}
    used: dict[str, str] = {}
    for split, part in parts.items():
        place = str(split or "rows")
        used = _match(split, part, config, datasets, problems)
        label = part.features[used["label"]]
        class_names = label.names if isinstance(label, datasets.ClassLabel) else None
        classes = classes or (tuple(class_names) if class_names else None)
        holders = {role: used[role] for role in ("image", "mask") if role in used}
        raw = part.select_columns(list(holders.values()))
        for column in holders.values():
            raw = raw.cast_column(column, datasets.Image(decode=False))
        pixels[place] = (raw, holders)
        columns: dict[str, Sequence[Any]] = {role: part[column][:] for role, column in used.items() if role not in holders}
        if "mask" in holders:
            columns["mask"] = [cell is not None for cell in raw[holders["mask"]]]
        entries += list_rows(Rows(place, columns, class_names, None if split is None else str(split), len(part)), problems, config.names)
    told = f"a dataset that Hugging Face's datasets saved ({', '.join(f'{role} {column!r}' for role, column in used.items())})"

    def open_source(name: str) -> Source:
        place, row, role = split_name(name)
        part, holders = pixels[place]
        return open_cell(part[row][holders[role]], tree)

    return Listing("huggingface", told, entries, open_source, classes=classes, problems=problems, left_out=tree.left_out, read=frozenset(tree.files))


def _match(split: object, part: Any, config: DataConfig, datasets: Any, problems: list[str]) -> dict[str, str]:  # noqa: ANN401 -- an extra
    place, features = str(split or "rows"), part.features
    chosen = config.columns.model_dump()
    holders = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    mask = chosen["mask"] or "mask"
    plain = [name for name in features if name not in holders]

    def values(column: str) -> list[Any]:
        return part[column][:]

    found = choose_columns(place, plain, {**chosen, "image": None, "mask": None}, values, problems, named=config.names)
    found.pop("mask", None)
    found["image"] = choose_image_column(place, [name for name in holders if name != mask], chosen["image"])
    if mask in holders:
        found["mask"] = mask
    require_columns(place, list(features), found)
    unused = tell_unused(plain, found, chosen, values, config.names, has_split=split is not None)
    problems += [note for note in unused if note not in problems]
    return found
