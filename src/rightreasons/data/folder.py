"""Plain class folders: ``FOLDER/CLASS/*.png``, or ``FOLDER/train/CLASS/*.png`` beside ``validation`` and ``test``."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

from rightreasons.config import DataConfig
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.splits import SPLITS
from rightreasons.data.table import TABLE_SUFFIXES
from rightreasons.data.tree import IMAGE_SUFFIXES, Tree
from rightreasons.errors import DataError


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether at least two folders with images in them lie in the folder, or in its training split."""
    root = split_folders(tree).get("train", "")
    return sum(bool(tree.images(_join(root, name))) for name in tree.below(root)) >= 2


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every image with its folder's name as label. Raises DataError for a folder that has not two classes, or whose splits have other ones."""
    return list_class_folders(tree, format="class-folders", told="class folders")


def list_class_folders(tree: Tree, *, format: str, told: str, attribute: Callable[[str], str] | None = None) -> Listing:  # noqa: A002
    """The listing of class folders; ``attribute`` tells the shortcut of an image by its name, where folders tell it."""
    roots: Mapping[str | None, str] = split_folders(tree) or {None: ""}
    first = roots.get("train", "")
    classes = tuple(tree.below(first))
    where = tree.root / first
    if len(classes) < 2:
        deeper = f". If the data lie in {classes[0]!r}, name that folder: {where / classes[0]}" if classes else ""
        raise DataError(
            f"{where} has {len(classes)} class folder(s) {list(classes)}; at least two are needed, one a class, with its images inside{deeper}"
        )
    entries = []
    for split, root in roots.items():
        unknown = [name for name in tree.below(root) if name not in classes]
        if unknown:
            tables = [name for name in tree.files if "/" not in name and posixpath.splitext(name)[1].lower() in TABLE_SUFFIXES]
            hint = f"; if the labels are in {' and '.join(tables[:3])}, name their column: [data.columns] label = ..." if tables else ""
            some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            raise DataError(f"{tree.root / root} has the class folder {unknown[0]!r}, which the training split does not have ({some}){hint}")
        found = [
            Entry(file, name, split, attribute=attribute(file) if attribute else None, bytes=tree.files[file])
            for name in classes
            for file in tree.images(_join(root, name))
        ]
        if not found:
            raise DataError(
                f"{tree.root / root}: no images in its class folders ({', '.join(classes)}); looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        entries += found
    told = f"{told} in {tree.root}" + (f" ({', '.join(roots.values())})" if None not in roots else "")
    return Listing(format, told, entries, tree.path, classes=classes, problems=_passed_over(tree, roots), left_out=tree.left_out)


def split_folders(tree: Tree) -> dict[str | None, str]:
    """The folders of the splits, by the split; none unless there is a training split."""
    below = {name.lower(): name for name in tree.below("")}
    found: dict[str | None, str] = {}
    for split, words in SPLITS.items():
        name = next((below[word] for word in words if word in below and not word.isdigit()), None)
        if name is not None:
            found[split] = name
    return found if "train" in found else {}


def _passed_over(tree: Tree, roots: Mapping[str | None, str]) -> list[str]:
    """What lies beside the folders of the splits and is not read."""
    if None in roots:
        return []
    beside = [name for name in tree.below("") if name not in roots.values() and tree.images(name)]
    return [f"{len(tree.images(name))} images in the folder {name!r} are not read: it is none of {', '.join(roots.values())}" for name in beside]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
