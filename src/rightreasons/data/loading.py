"""Read a dataset in batches. The one place where images are read, and where a corrupt one is named, skipped and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.errors import DataError, UnreadableImage


@dataclass(frozen=True)
class Batch:
    """Images in 0 to 1, their labels, and where they stand in the dataset."""

    indices: Int[Tensor, " image"]
    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)


def read_batches(dataset: Dataset, *, indices: Sequence[int] | Tensor | None = None, batch_size: int = 256) -> Iterator[Batch]:
    """The images at ``indices`` (default: all, in order), ``batch_size`` at a time; unreadable ones are left out.

    A dataset with ``read(indices) -> Batch`` is asked for whole batches, and where it ``reads_ahead`` for the next one while this one is worked on;
    any other is asked for one item at a time. Raises DataError where not a single image of the dataset could be read.
    """
    wanted = range(count_images(dataset)) if indices is None else indices
    parts = (torch.as_tensor(wanted[start : start + batch_size], dtype=torch.int64) for start in range(0, len(wanted), batch_size))
    read: Callable[[Tensor], Batch] = getattr(dataset, "read", None) or (lambda part: _read_items(dataset, part))
    read_any = False
    for batch in _ahead(read, parts) if getattr(dataset, "reads_ahead", False) else map(read, parts):
        if len(batch):
            read_any = True
            yield batch
    if len(wanted) and not read_any:
        raise DataError(f"none of the {len(wanted)} images asked for could be read")


def read_all(dataset: Dataset, indices: Sequence[int] | Tensor, batch_size: int = 256) -> Batch:
    """The images at ``indices`` as one batch: for sets that are known to be small."""
    batches = list(read_batches(dataset, indices=indices, batch_size=batch_size))
    return Batch(torch.cat([b.indices for b in batches]), torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]))


def some_images(dataset: Dataset, count: int, generator: torch.Generator) -> Batch:
    """``count`` random images as one batch, or all where there are fewer."""
    return read_all(dataset, torch.randperm(count_images(dataset), generator=generator)[:count])


def count_images(dataset: Dataset) -> int:
    """How many items a dataset has. Raises DataError for an iterable dataset, or an empty one."""
    try:
        count = len(dataset)  # pyright: ignore[reportArgumentType] -- that is what is being asked
    except TypeError as error:
        raise DataError(f"a dataset with a length is needed (map style), and {type(dataset).__name__} has none") from error
    if count == 0:
        raise DataError(f"the dataset {type(dataset).__name__} is empty")
    return count


def check_labels(labels: Int[Tensor, " image"], indices: Int[Tensor, " image"], classes: int, split: str = "") -> None:
    """Raises DataError for a label that no class has."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if wrong:
        index, label = int(indices[wrong[0]]), int(labels[wrong[0]])
        place = f" of {split}" if split else ""
        raise DataError(f"image {index}{place} has the label {label}, and there are {classes} classes: labels count from 0 to {classes - 1}")


def collate(items: Sequence[tuple[int, Tensor, int]]) -> Batch:
    """Items (index, image, label) as one batch. Raises DataError where images differ in shape."""
    if not items:
        return Batch(torch.empty(0, dtype=torch.int64), torch.empty(0, 0, 0, 0), torch.empty(0, dtype=torch.int64))
    shapes = {tuple(image.shape) for _, image, _ in items}
    if len(shapes) > 1:
        raise DataError(f"images of one shape are needed, and a batch has {sorted(shapes)}: resize them in the dataset")
    indices, images, labels = zip(*items, strict=True)
    return Batch(torch.tensor(indices), torch.stack(images), torch.tensor(labels))


def _ahead(read: Callable[[Tensor], Batch], parts: Iterable[Tensor]) -> Iterator[Batch]:
    """Every part read, each while the one before it is worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for part in parts:
            following = pool.submit(read, part)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _read_items(dataset: Dataset, indices: Tensor) -> Batch:
    items = []
    for index in indices.tolist():
        try:
            image, label = dataset[index]
        except UnreadableImage:
            continue
        items.append((index, torch.as_tensor(image, dtype=torch.float32), int(label)))
    return collate(items)
