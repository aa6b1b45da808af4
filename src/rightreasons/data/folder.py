"""Plain class folders: ``FOLDER/CLASS/*.png``, or ``FOLDER/train/CLASS/*.png`` beside ``validation`` and ``test``.

Without split folders the product splits: 70, 15 and 15 %, seeded, class by class. Headers are read when the folder is opened, so
that a mistake shows before any long work; pixels are decoded when they are asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch, collate
from rightreasons.data.task import Task
from rightreasons.errors import DataError, UnreadableImage
from rightreasons.seeds import seeded

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
SHARES = (0.7, 0.15)
_MODES = {"grey": "L", "rgb": "RGB"}


@dataclass(frozen=True)
class _File:
    path: Path
    label: int


class FolderImages(Dataset):
    """Image files with labels, read when asked for. ``skipped`` holds the files that could not be decoded, and why."""

    def __init__(self, files: list[_File], *, size: int | None, mode: str, skipped: dict[Path, str]) -> None:
        self.files, self.size, self.mode, self.skipped = files, size, mode, skipped
        self.labels = torch.tensor([file.label for file in files], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image as (channel, height, width) in 0 to 1, and its label. Raises UnreadableImage for a corrupt file."""
        file = self.files[index]
        try:
            with Image.open(file.path) as opened:
                image = opened.convert(_MODES[self.mode])
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            self.skipped[file.path] = str(error)
            raise UnreadableImage(f"{file.path}: {error}") from error
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
        return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).contiguous(), file.label

    def read(self, indices: Tensor) -> Batch:
        """The readable ones among ``indices``."""
        items = []
        for index in indices.tolist():
            if self.files[index].path in self.skipped:
                continue
            try:
                items.append((index, *self[index]))
            except UnreadableImage:
                continue
        return collate(items)


def open_class_folder(folder: Path, *, size: int | None, mode: str | None, seed: int) -> Task:
    """The folder as a task. ``size`` (pixels) and ``mode`` ("grey", "rgb") convert every image; without them all must agree.

    Raises DataError for a folder without classes or images, with one class, or with images of mixed size or mode.
    """
    by_split = {split: next((folder / name for name in names if (folder / name).is_dir()), None) for split, names in SPLITS.items()}
    skipped: dict[Path, str] = {}
    has_splits = by_split["train"] is not None
    roots = {split: root for split, root in by_split.items() if root is not None} if has_splits else {"train": folder}
    classes = _class_names(roots["train"])
    files = {split: _list_files(root, classes) for split, root in roots.items()}
    headers = _read_headers([file for part in files.values() for file in part], skipped)
    mode = mode or _agreed_mode(headers)
    if size is None:
        _check_one_size(headers)
    readable = {split: [file for file in part if file.path in headers] for split, part in files.items()}
    splits = {split: FolderImages(part, size=size, mode=mode, skipped=skipped) for split, part in _make_splits(readable, len(classes), seed).items()}
    for split, images in splits.items():
        missing = [name for label, name in enumerate(classes) if not (images.labels == label).any()]
        if missing:
            raise DataError(f"{folder}: the {split} split has no readable image of class {missing[0]!r}: each class needs some in each split")
    return Task(str(folder), classes, splits, _manifest(folder, readable), skipped=skipped)


def _class_names(root: Path) -> tuple[str, ...]:
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error.strerror}") from error
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folder(s) {names}; at least two are needed, one a class, with its images inside")
    return tuple(names)


def _list_files(root: Path, classes: tuple[str, ...]) -> list[_File]:
    unknown = sorted({path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")} - set(classes))
    if unknown:
        raise DataError(f"{root} has the class folder {unknown[0]!r}, which the training split does not have ({', '.join(classes)})")
    files = []
    for label, name in enumerate(classes):
        inside = root / name
        found = sorted(path for path in inside.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()) if inside.is_dir() else []
        files.extend(_File(path, label) for path in found)
    if not files:
        raise DataError(f"{root}: no images in its class folders ({', '.join(classes)}); looked for {', '.join(sorted(SUFFIXES))}")
    return files


def _read_headers(files: list[_File], skipped: dict[Path, str]) -> dict[Path, tuple[tuple[int, int], str]]:
    """Size and mode of every file whose header can be read; the others go to ``skipped``."""
    headers = {}
    for file in files:
        try:
            with Image.open(file.path) as image:
                headers[file.path] = (image.size, image.mode)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            skipped[file.path] = str(error)
    if not headers:
        raise DataError(f"none of {len(files)} files is a readable image; the first: {next(iter(skipped.values()), '')}")
    return headers


def _agreed_mode(headers: dict[Path, tuple[tuple[int, int], str]]) -> str:
    modes = {path: ("grey" if mode in ("1", "L") else "rgb" if mode in ("RGB", "P") else mode) for path, (_, mode) in headers.items()}
    if len(set(modes.values())) > 1 or not set(modes.values()) <= _MODES.keys():
        raise DataError(f"images of mixed or unusual mode: {_two_examples(modes)}; set [data] mode = 'grey' or 'rgb' to convert all of them")
    return next(iter(modes.values()))


def _check_one_size(headers: dict[Path, tuple[tuple[int, int], str]]) -> None:
    sizes = {path: f"{width}x{height}" for path, ((width, height), _) in headers.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"images of mixed size: {_two_examples(sizes)}; set [data] size = 224 (or another side in pixels) to resize all of them")


def _two_examples(values: dict[Path, str]) -> str:
    counts = Counter(values.values())
    examples = {value: path for path, value in reversed(values.items())}
    return ", ".join(f"{value} ({counts[value]} files, such as {examples[value]})" for value, _ in counts.most_common(3))


def _make_splits(files: dict[str, list[_File]], classes: int, seed: int) -> dict[str, list[_File]]:
    """The splits as given; those that are missing are cut from the training split, class by class."""
    if {"validation", "test"} <= files.keys():
        return files
    train, validation, test = [], [], []
    keep = {"validation": "validation" not in files, "test": "test" not in files}
    for label in range(classes):
        mine = [file for file in files["train"] if file.label == label]
        order = [mine[i] for i in torch.randperm(len(mine), generator=seeded(seed, "folder split", label)).tolist()]
        held_out = max(1, round((1 - sum(SHARES)) * len(order)))
        if keep["validation"]:
            validation, order = validation + order[:held_out], order[held_out:]
        if keep["test"]:
            test, order = test + order[:held_out], order[held_out:]
        train += order
    by_path = lambda part: sorted(part, key=lambda file: file.path)  # noqa: E731 -- a name for two uses on one line
    return {"train": by_path(train), "validation": files.get("validation") or by_path(validation), "test": files.get("test") or by_path(test)}


def _manifest(folder: Path, files: dict[str, list[_File]]) -> str:
    """SHA-256 over names and sizes of the files: it changes when a file is added, taken away or rewritten."""
    digest = hashlib.sha256()
    for split in sorted(files):
        for file in files[split]:
            digest.update(f"{split}\0{file.path.relative_to(folder)}\0{file.path.stat().st_size}\n".encode())
    return digest.hexdigest()
