"""Plain class folders: ``FOLDER/CLASS/*.png``, or ``FOLDER/train/CLASS/*.png`` beside ``validation`` and ``test``, or ``FOLDER/CLASS/train/*.png``.

What a folder is called does not decide alone. ``train`` is a split if class folders lie in it, and a class if images do, beside other classes.
Folders that are called masks, folds or patients are no classes, unless [data] names says so.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rightreasons.config import DataConfig
from rightreasons.data.beside import doubtful_classes, holds_images_by_name, kind_by_suffix
from rightreasons.data.formats.table import SPREADSHEET_SUFFIXES, TABLE_SUFFIXES
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.splits import SPLITS, find_splits
from rightreasons.data.tree import IMAGE_SUFFIXES, Tree
from rightreasons.errors import DataError

# Folders that are called so, with a number behind, are no classes if all of them are.
_FOLDS = re.compile(r"(k?fold|cv|split|part|batch|shard|chunk|set)s?[ _-]*\d+$", re.IGNORECASE)
_PATIENTS = re.compile(r"(patient|pat|subject|subj|sub|case|study|exam|visit|session|scan|participant)s?[ _-]*\d+$", re.IGNORECASE)
# More of these files in a class folder without images are data in another form.
_DATA_KINDS = ("array, volume and weight files", "video and sound files", "images in a format that is not read", "archives")


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether at least two folders with images in them lie in the folder, or in its training split."""
    root = split_folders(tree, config.names).get("train") or enter_images(tree, "")
    return len(_holding(tree, root)) >= 2


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every image with its folder's name as label. Raises DataError for a folder that has not two classes, or whose splits have other ones."""
    return list_class_folders(tree, config, format="class-folders", told="class folders")


def list_class_folders(
    tree: Tree,
    config: DataConfig,
    *,
    format: str,
    told: str,
    attribute: Callable[[str], str] | None = None,
) -> Listing:
    """The listing of class folders; ``attribute`` tells the shortcut of an image by its name, where folders tell it."""
    roots: Mapping[str | None, str] = split_folders(tree, config.names) or {None: enter_images(tree, "")}
    first = roots.get("train", roots.get(None, ""))
    problems = _passed_over(tree, roots)
    classes = _name_classes(tree, first, roots, config, problems)
    entries, inner = [], []
    for split, root in roots.items():
        unknown = [name for name in _holding(tree, root) if name not in classes]
        if unknown:
            some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            raise DataError(
                f"{tree.root / root} has the class folder {unknown[0]!r}, which the training split does not have ({some}){hint_at_tables(tree)}"
            )
        found = [(name, file) for name in classes for file in tree.images(_join(root, name))]
        if not found:
            raise DataError(
                f"{tree.root / root}: no images in its class folders ({', '.join(classes)}); looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        entries += [Entry(file, name, split, attribute=attribute(file) if attribute else None, bytes=tree.files[file]) for name, file in found]
        inner += [posixpath.dirname(file)[len(_join(root, name)) + 1 :] for name, file in found]
    told = f"{told} in {tree.root / first if None in roots else tree.root}" + (f" ({', '.join(roots.values())})" if None not in roots else "")
    if attribute is None and (same := _same_within(classes, entries, inner)):
        splits = _splits_within(same) if None in roots else {}
        if splits:
            entries = [replace(entry, split=splits[folder.partition("/")[0]]) for entry, folder in zip(entries, inner, strict=True)]
            inner = [folder.partition("/")[2] for folder in inner]
            told += f", with the splits within each ({', '.join(splits)})"
        else:
            inside, outer = ", ".join(map(repr, same[:3])), ", ".join(classes[:3])
            problems.append(f"all class folders have the same {len(same)} folders within ({inside}): the outer ones ({outer}) are read as classes")
    problems += _tell_same_names(entries)
    return Listing(
        format,
        told,
        entries,
        tree.path,
        classes=classes,
        problems=problems,
        left_out=tree.left_out,
        inner=inner if attribute is None else None,
    )


def split_folders(tree: Tree, named: Collection[str] = ()) -> dict[str | None, str]:
    """The folders of the splits, by the split; none if there is no training split. Folders that are ``named`` are classes.

    Raises DataError if the folders' names do not tell which is which.
    """
    base = enter_images(tree, "")
    holding = _holding(tree, base)
    spoken = {name: splits for name in holding if name not in named and (splits := _splits_of(name))}
    chosen = _choose_splits(tree, base, holding, spoken)
    found: dict[str | None, str] = {}
    for split in SPLITS:
        folders = [name for name in chosen if _exact(name) == split] or [name for name in chosen if split in spoken[name]]
        vague = next((name for name in folders if len(spoken[name]) > 1), None)
        if len(folders) > 1 or vague is not None:
            raise DataError(
                f"{tree.root / base}: it cannot be told which of {', '.join(map(repr, folders))} is the {split} split: call one folder {split!r}"
            )
        if folders:
            found[split] = enter_images(tree, _join(base, folders[0]))
    if found and "train" not in found:
        raise DataError(
            f"{tree.root / base} has no training split, only {', '.join(map(repr, chosen))}: call a folder 'train', or name every folder that is a "
            "class in [data] names"
        )
    return found


def _choose_splits(tree: Tree, base: str, holding: Sequence[str], spoken: Collection[str]) -> list[str]:
    """Those of the folders with images (``holding``) that are splits, and not classes called "train"; ``spoken`` have a word for a split."""
    within = {name: {*_holding(tree, _join(base, name))} for name in holding}
    exact = [name for name in spoken if _exact(name)]
    if len(spoken) == len(holding):
        return list(spoken)
    if not any(within[name] for name in spoken):
        # Among other folders with images, those of one split are a class; those of two are splits without classes.
        return exact if len({_exact(name) for name in exact}) > 1 else []
    chosen = [name for name in spoken if within[name]]
    others = [name for name in holding if name not in chosen]
    # One folder with folders among several without is a class, unless the classes are in it.
    alone = len(chosen) == 1 and len(others) > 1 and not any(within[name] for name in others)
    return [] if alone and not within[chosen[0]] & {*others} else chosen


def enter_images(tree: Tree, folder: str) -> str:
    """``folder``, or the folder of images in it if that alone has images, in folders of their own: ``images/CLASS`` beside ``masks/CLASS``."""
    holding = _holding(tree, folder)
    inside = _join(folder, holding[0]) if len(holding) == 1 else folder
    return inside if inside != folder and holds_images_by_name(holding[0]) and _holding(tree, inside) else folder


def _name_classes(tree: Tree, first: str, roots: Mapping[str | None, str], config: DataConfig, problems: list[str]) -> tuple[str, ...]:
    """The class folders. Raises DataError if they are fewer than two, or no classes by their names."""
    where = tree.root / first
    empty = [name for name in tree.below(first) if not any(tree.images(_join(root, name)) for root in roots.values())]
    classes = tuple(name for name in tree.below(first) if name not in empty)
    masks = sum(kind == "mask" for kind in tree.beside.values())
    if len(classes) < 2:
        deeper = f". If the data lie in {classes[0]!r}, name that folder: {where / classes[0]}" if classes else ""
        hollow = f". No images of a class are in {', '.join(map(repr, empty[:3]))}" if empty else ""
        aside = f". {masks} files are masks and no images of a class: a table with the columns filename, label and mask can name both"
        raise DataError(
            f"{where} has {len(classes)} class folder(s) {list(classes)}; at least two are needed, one a class, with its images inside"
            f"{deeper}{hollow}{aside if masks else ''}{hint_at_tables(tree)}"
        )
    _check_are_classes(tree, where, classes, config)
    for name in empty:
        kinds = Counter(kind_by_suffix(file) for file in tree.inside(_join(first, name)))
        data = [kind for kind in _DATA_KINDS if kinds[kind]]
        if data:
            raise DataError(
                f"{where / name} has {kinds.total()} files and no images that are read ({', '.join(data)}): convert them, or move it away"
            )
        if not any(file in tree.beside for file in tree.inside(_join(first, name))):
            problems.append(f"the folder {name!r} has no images and is no class")
    return classes


def _check_are_classes(tree: Tree, where: Path, classes: tuple[str, ...], config: DataConfig) -> None:
    """Raises DataError if folders are folds, patients or masks by their names and [data] names does not say that they are classes."""
    unsettled = [name for name in classes if name not in config.names]
    for pattern, what in ((_FOLDS, "folds or parts"), (_PATIENTS, "patients or studies")):
        if unsettled == list(classes) and all(pattern.match(name) for name in classes):
            raise DataError(
                f"{where}: the folders {', '.join(map(repr, classes[:3]))} are {what} by their names, and no classes: put the images of each class "
                f"into a folder of its own, or name every folder in [data] names if they are classes{hint_at_tables(tree)}"
            )
    doubtful = [name for name in doubtful_classes(tree, classes) if name in unsettled]
    if doubtful:
        raise DataError(
            f"{where}: the folder {doubtful[0]!r} beside {', '.join(repr(name) for name in classes if name not in doubtful)} may hold masks of their "
            f"images or be a class. If it is a class, name every class in [data] names; if not, {doubtful[0]!r} = '' there leaves it out, and "
            "a table with the columns filename, label and mask can name masks of the shortcut"
        )


def _same_within(classes: Sequence[str], entries: Sequence[Entry], inner: Sequence[str]) -> list[str]:
    """The few folders that all class folders have within, in order; none if these differ. They may be the classes as well, or the splits."""
    within: dict[str, set[str]] = {name: set() for name in classes}
    for entry, folder in zip(entries, inner, strict=True):
        within[entry.label].add(folder.partition("/")[0])
    same = within[classes[0]]
    return [] if len(same) < 2 or "" in same or any(found != same for found in within.values()) else sorted(same)


def _splits_within(folders: Sequence[str]) -> dict[str, str]:
    """The split that each of the folders within a class means; none unless each means another one, and one of them training."""
    found = {folder: spoken.pop() for folder in folders if len(spoken := _splits_of(folder)) == 1}
    return found if len({*found.values()}) == len(folders) and "train" in found.values() else {}


def _tell_same_names(entries: Sequence[Entry]) -> list[str]:
    """A note if images lie beside others of the same name with another suffix."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(posixpath.splitext(entry.name)[0], entry.name), entry.name) for entry in entries]
    twice = [pair for pair in pairs if pair[0] != pair[1]]
    if not twice:
        return []
    return [f"{len(twice)} images have the name of another but for the suffix, such as {' and '.join(twice[0])}: if one is a copy, move it away"]


def hint_at_tables(tree: Tree) -> str:
    """What to do with a table or a spreadsheet right in the folder, as the end of an error; empty if there is none."""
    tables, sheets = (
        [name for name in tree.files if "/" not in name and posixpath.splitext(name)[1].lower() in suffixes]
        for suffixes in (TABLE_SUFFIXES, SPREADSHEET_SUFFIXES)
    )
    if tables:
        return f"; if the labels are in {' and '.join(tables[:3])}, name their column: [data.columns] label = ..."
    return f"; if the labels are in {' and '.join(sheets[:3])}, save it as CSV UTF-8 (.csv): spreadsheets are not read" if sheets else ""


def _passed_over(tree: Tree, roots: Mapping[str | None, str]) -> list[str]:
    """What lies beside the folders of the splits and is not read."""
    if None in roots:
        return []
    tops = [root.partition("/")[0] for root in roots.values()]
    counts = {name: len(tree.images(name)) for name in tree.below("") if name not in tops}
    return [f"{count} images in the folder {name!r} are not read: it is none of {', '.join(tops)}" for name, count in counts.items() if count]


def _holding(tree: Tree, folder: str) -> list[str]:
    """The folders right below a folder that have images in them."""
    return [name for name in tree.below(folder) if tree.images(_join(folder, name))]


def _splits_of(folder: str) -> set[str]:
    exact = _exact(folder)
    return {exact} if exact is not None else find_splits(folder)


def _exact(folder: str) -> str | None:
    """The split that a folder's whole name means."""
    return next((split for split, words in SPLITS.items() if folder.lower() in words and not folder.isdigit()), None)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
