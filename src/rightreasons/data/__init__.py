"""Opens the task that a path or a name stands for. There is one file per folder format, and one per built-in task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rightreasons.config import DataConfig, Format
from rightreasons.data.assemble import assemble_task
from rightreasons.data.beside import look_beside
from rightreasons.data.built_in import biased_mnist, decoy_mnist, solar, stamps
from rightreasons.data.built_in.planted import FEW
from rightreasons.data.formats import celeba, class_folders, huggingface, isic, label_table, parquet, spuco
from rightreasons.data.task import Task
from rightreasons.data.tree import IMAGE_SUFFIXES, Tree, list_tree
from rightreasons.data.unread import describe_unread, list_unread
from rightreasons.errors import DataError

# A task's name may carry a variant: "decoy-mnist:packaged".
_TASKS = {"biased-mnist": biased_mnist, "decoy-mnist": decoy_mnist, "solar": solar, "stamps": stamps}
# Each has ``recognise(tree, config)`` and ``list_images(tree, config)``. The first that recognises a folder reads it, so the strictest come first.
_FORMATS: dict[Format, ModuleType] = {
    "huggingface": huggingface,
    "parquet": parquet,
    "celeba": celeba,
    "isic": isic,
    "table": label_table,
    "spuco": spuco,
    "class-folders": class_folders,
}


def open_data(config: DataConfig, *, root: Path, seed: int) -> Task:
    """The task that ``config.path`` names: a built-in one, or a folder (relative to ``root``, where the configuration lies).

    A table of labels stands for the folder that it lies in. Raises DataError if there is nothing of that name, or it cannot be used.
    """
    name, *variant = config.path.split(":")
    if name in _TASKS:
        return _TASKS[name].open_task(tuple(variant), size=config.size, seed=seed)
    path = root / config.path
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise DataError(f"[data] path = {config.path[:80]!r}: {error.strerror}") from error
    if is_file and path.suffix.lower() in label_table.TABLE_SUFFIXES:
        path, config, is_folder = path.parent, config.model_copy(update={"table": path.name}), True
    if not is_folder:
        what = "is a file" if is_file else "does not exist"
        raise DataError(
            f"[data] path = {config.path!r}: {path} {what}; a folder of images, a table of labels (.csv, .tsv) or a built-in task is needed "
            f"({', '.join(_TASKS)})"
        )
    tree = look_beside(list_tree(path), config.names)
    kind = config.format if config.format != "auto" else _recognise(tree, config)
    listing = _FORMATS[kind].list_images(tree, config)
    unread = list_unread(tree, listing)
    task = assemble_task(listing, config, name=str(path), seed=seed)
    problems = [*task.problems, *describe_unread(unread)]
    return replace(task, problems=problems, not_read={kind: len(names) for kind, names in unread.items()})


def task_defaults(path: str) -> dict[str, Any]:
    """The model, classes and settings that a built-in task brings, as configuration tables; none for a folder."""
    name, *variant = path.split(":")
    return _TASKS[name].defaults(tuple(variant)) if name in _TASKS else {}


def small_variant(path: str) -> str:
    """The built-in task's variant for a try, on data that come with a package or on few of its images; any other path as it is."""
    name, *variant = path.split(":")
    offered = _TASKS[name].VARIANTS if name in _TASKS else ()
    small = next((word for word in ("packaged", FEW) if word in offered), None)
    return path if small is None or small in variant else f"{path}:{small}"


def _recognise(tree: Tree, config: DataConfig) -> Format:
    """The format of a folder. A folder that no format recognises is read as class folders, so that the error says what is missing."""
    for kind, module in _FORMATS.items():
        if module.recognise(tree, config):
            return kind
    tables = label_table.list_tables(tree)
    if tables:
        return "table"
    images = tree.images()
    if not tree.folders:
        there = f"{len(images)} images, such as {images[0]}" if images else f"no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        raise DataError(
            f"{tree.root} has {there}, 0 class folders and no table of labels: put the images of each class into a folder of their own, "
            f"at least two, or add a table (labels.csv) with the columns 'filename' and 'label'{class_folders.hint_at_tables(tree)}"
        )
    return "class-folders"
