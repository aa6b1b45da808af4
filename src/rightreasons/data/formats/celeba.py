"""CelebA (Liu et al. 2015): ``img_align_celeba/*.jpg`` with its lists of attributes, partitions and people, as text or as Kaggle's CSV.

The task of the literature (Sagawa et al. 2020) is the default: is the hair blond, where sex is the shortcut. [data.columns] label and attribute name
other attributes. Of one person all images are in one split, by the set's own partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rightreasons.config import DataConfig
from rightreasons.data.formats.table import read_table
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError

LABEL, ATTRIBUTE = "Blond_Hair", "Male"
ATTRIBUTES, PARTITION, IDENTITY = "list_attr_celeba", "list_eval_partition", "identity_CelebA"


def recognise(tree: Tree, config: DataConfig) -> bool:
    """By the name of the list of attributes."""
    return _find(tree, ATTRIBUTES) is not None


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every image of the list. Raises DataError if a list has another form, or an attribute is not in it."""
    found = _find(tree, ATTRIBUTES)
    if found is None:
        raise DataError(f"{tree.root} has no {ATTRIBUTES}.txt or .csv, which CelebA comes with")
    path = tree.path(found)
    attributes = _read_attributes(path)
    label, attribute = config.columns.label or LABEL, config.columns.attribute or ATTRIBUTE
    for role, name in (("label", label), ("attribute", attribute)):
        if name not in attributes.names:
            raise DataError(f"{path} has no attribute {name!r} for [data.columns] {role}; it has {', '.join(attributes.names)}")
    splits, people = _read_pairs(tree, PARTITION), _read_pairs(tree, IDENTITY)
    yes, no = attributes.names.index(label), attributes.names.index(attribute)
    entries, missing = [], []
    for image, values in attributes.rows.items():
        name = tree.find(image, where=lambda: str(path))
        if name is None:
            missing.append(image)
            continue
        if splits and image not in splits:
            raise DataError(f"{PARTITION} has no line for {image}, which {path} has")
        shown = attribute if values[no] else f"not {attribute}"
        entries.append(Entry(name, label if values[yes] else f"not {label}", splits.get(image), people.get(image), shown, bytes=tree.files[name]))
    if not entries:
        raise DataError(f"{path} names {len(missing)} images, such as {missing[0]}, and none of them is below {tree.root}")
    problems = [f"{len(missing)} images of {path.name} are not there, such as {missing[0]}"] if missing else []
    told = f"CelebA: {path.name}, label {label!r}, attribute {attribute!r}"
    return Listing(
        "celeba", told, entries, tree.path, classes=(f"not {label}", label), problems=problems,
        left_out=tree.left_out | dict.fromkeys(missing, "named in the list, and not there"),
        read=frozenset(filter(None, (_find(tree, stem) for stem in (ATTRIBUTES, PARTITION, IDENTITY)))),
    )  # fmt: skip


class _Attributes:
    """The names of the attributes, and which of them each image has."""

    def __init__(self, names: list[str], rows: Mapping[str, list[bool]]) -> None:
        self.names, self.rows = names, rows


def _find(tree: Tree, stem: str) -> str | None:
    return next((name for name in (f"{stem}.txt", f"{stem}.csv", f"Anno/{stem}.txt", f"Eval/{stem}.txt") if name in tree.files), None)


def _read_attributes(path: Path) -> _Attributes:
    if path.suffix == ".csv":
        table = read_table(path)
        return _Attributes(list(table.columns[1:]), {row[0].strip(): [_is_set(path, cell) for cell in row[1:]] for row in table.rows})
    lines = _read_lines(path)
    # The official list begins with the number of images.
    start = 1 if len(lines) > 1 and len(lines[0]) == 1 else 0
    names = lines[start]
    rows = {}
    for number, (image, *cells) in enumerate(lines[start + 1 :], start=start + 2):
        if len(cells) != len(names):
            raise DataError(f"{path}, line {number}: {len(cells)} values, and {len(names)} attributes are named above")
        rows[image] = [_is_set(path, cell) for cell in cells]
    return _Attributes(names, rows)


def _read_pairs(tree: Tree, stem: str) -> dict[str, str]:
    """Image and value of a list of two columns; nothing if there is no such list."""
    found = _find(tree, stem)
    if found is None:
        return {}
    path = tree.path(found)
    if path.suffix == ".csv":
        return {row[0].strip(): row[1].strip() for row in read_table(path).rows}
    lines = _read_lines(path)
    wrong = next((number for number, cells in enumerate(lines, start=1) if len(cells) != 2), None)
    if wrong is not None:
        raise DataError(f"{path}, line {wrong}: an image and one value are expected")
    return {cells[0]: cells[1] for cells in lines}


def _read_lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}") from error


def _is_set(path: Path, cell: str) -> bool:
    value = cell.strip()
    if value not in ("1", "-1", "0"):
        raise DataError(f"{path} has the value {cell!r}: an attribute is 1 where it is there, and -1 or 0 where it is not")
    return value == "1"
