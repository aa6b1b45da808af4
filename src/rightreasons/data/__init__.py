"""Data: what a path or a task's name is read as. One file per folder format, one per built-in task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rightreasons.config import DataConfig
from rightreasons.data import decoy_mnist, solar, stamps
from rightreasons.data.folder import open_class_folder
from rightreasons.data.task import Task
from rightreasons.errors import DataError

# A task's name may carry a variant: "decoy-mnist:packaged".
_TASKS = {"decoy-mnist": decoy_mnist, "solar": solar, "stamps": stamps}


def open_data(config: DataConfig, *, root: Path, seed: int) -> Task:
    """The task that ``config.path`` names: a built-in one, or a folder (relative to ``root``, where the configuration lies).

    Raises DataError where there is neither, or the folder cannot be used.
    """
    name, *variant = config.path.split(":")
    if name in _TASKS:
        return _TASKS[name].open_task(tuple(variant), size=config.size, seed=seed)
    folder = root / config.path
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise DataError(f"[data] path = {config.path[:80]!r}: {error.strerror}") from error
    if not is_folder:
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"[data] path = {config.path!r}: {folder} {what}; a folder of images or a built-in task is needed ({', '.join(_TASKS)})")
    return open_class_folder(folder, size=config.size, mode=config.mode, seed=seed)


def task_defaults(path: str) -> dict[str, Any]:
    """The model, classes and settings that a built-in task brings, as configuration tables; none for a folder."""
    name, *variant = path.split(":")
    return _TASKS[name].defaults(tuple(variant)) if name in _TASKS else {}
