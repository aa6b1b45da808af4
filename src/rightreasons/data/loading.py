"""Read a dataset in batches. The one place where images are read, and where a corrupt one is named, skipped and counted."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rightreasons.common.memory import BATCH_BYTES, DRAWN_IMAGE_BYTES, KEPT_IMAGE_BYTES, LARGEST_BATCH, how_many
from rightreasons.data.items import check_dataset, read_item
from rightreasons.errors import DataError, UnreadableImage


@dataclass(frozen=True)
class Batch:
    """Images in 0 to 1, their labels, and where they stand in the dataset."""

    indices: Int[Tensor, " image"]
    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)


class StoredImages:
    """The images at ``indices`` of a dataset, indexed by row as a tensor is; kept in memory if all of them fit, else read whenever asked for.

    A row is a number, or a tensor or slice of them. Whatever could not be read when the labels were is left out.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int] | Tensor) -> None:
        self.dataset, self.indices = dataset, torch.as_tensor(indices, dtype=torch.int64)
        self._kept: Tensor | None = None
        self._lock = threading.Lock()  # somebody's dataset may not bear several readers

    def __len__(self) -> int:
        return len(self.indices)

    def __reduce__(self) -> tuple[type[StoredImages], tuple[Dataset, Tensor]]:
        """In another process the images are read again."""
        return StoredImages, (self.dataset, self.indices)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        """(row, channel, height, width), or (channel, height, width) of a single row. Raises DataError for an image that cannot be read again."""
        with self._lock:
            if self._kept is None and len(self) and self._bytes() <= KEPT_IMAGE_BYTES:
                self._kept = self._read(self.indices)
            if self._kept is not None:
                return self._kept[rows]
            wanted = self.indices[rows]
            return self._read(wanted.view(-1)).view(*wanted.shape, *self.shape)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(channel, height, width) of every image."""
        return tuple(self._read(self.indices[:1]).shape[1:])

    def _bytes(self) -> int:
        return len(self) * math.prod(self.shape) * torch.float32.itemsize

    def _read(self, indices: Tensor) -> Tensor:
        distinct, places = indices.unique(return_inverse=True)
        images = read_all(self.dataset, distinct)
        if len(images) < len(distinct):
            missing = sorted(set(distinct.tolist()) - set(images.indices.tolist()))
            raise DataError(f"image {missing[0]} was read before and cannot be read now: the files have changed, or their disk fails")
        return images.images[places]


def read_batches(dataset: Dataset, *, indices: Sequence[int] | Tensor | None = None, batch_size: int | None = None) -> Iterator[Batch]:
    """The images at ``indices`` (default: all, in order), ``batch_size`` at a time; unreadable ones are left out.

    By default a batch has as many images as ``BATCH_BYTES`` hold, ``LARGEST_BATCH`` at most.
    A dataset with ``read(indices) -> Batch`` is asked for whole batches, and where it ``reads_ahead`` for the next one while this one is worked on;
    any other is asked for one item at a time. Raises DataError if not a single image of the dataset could be read.
    """
    wanted = range(count_images(dataset)) if indices is None else indices
    size = batch_size or fitting_size(dataset, wanted)
    read_any = False
    for batch in read_parts(dataset, (wanted[start : start + size] for start in range(0, len(wanted), size))):
        if len(batch):
            read_any = True
            yield batch
    if len(wanted) and not read_any:
        raise none_readable(dataset, wanted)


def read_parts(dataset: Dataset, parts: Iterable[Sequence[int] | Tensor]) -> Iterator[Batch]:
    """The images of each part as a batch, without the unreadable ones: the batch of a part in which none can be read is empty."""
    read, numbers = _reader(dataset), (torch.as_tensor(part, dtype=torch.int64) for part in parts)
    yield from _ahead(read, numbers) if getattr(dataset, "reads_ahead", False) else map(read, numbers)


def fitting_size(dataset: Dataset, indices: Sequence[int] | Tensor | None = None) -> int:
    """As many images as ``BATCH_BYTES`` hold, by the size of the first that can be read: the default of ``read_batches``."""
    wanted, read = range(count_images(dataset)) if indices is None else indices, _reader(dataset)
    for index in wanted if len(wanted) > 1 else ():
        first = read(torch.tensor([int(index)]))
        if len(first):
            return how_many(first.images.nbytes, BATCH_BYTES, LARGEST_BATCH)
    return LARGEST_BATCH


def none_readable(dataset: Dataset, indices: Sequence[int] | Tensor) -> DataError:
    """The error if not a single one of the images at ``indices`` could be read; it says why the first could not."""
    return DataError(f"none of the {len(indices)} images asked for could be read{_say_why(dataset, int(indices[0]))}")


def read_all(dataset: Dataset, indices: Sequence[int] | Tensor, batch_size: int | None = None) -> Batch:
    """The images at ``indices`` as one batch: for sets that are known to be small."""
    images, columns, row = None, [], 0
    for batch in read_batches(dataset, indices=indices, batch_size=batch_size):
        if images is None:  # filled batch by batch: to join them at the end would take twice the memory
            images = torch.empty(len(indices), *batch.images.shape[1:])
        images[row : row + len(batch)] = batch.images
        columns.append((batch.indices, batch.labels))
        row += len(batch)
    if images is None:
        return collate([])
    found, labels = (torch.cat(column) for column in zip(*columns, strict=True))
    return Batch(found, images[:row], labels)


def some_images(dataset: Dataset, count: int, generator: torch.Generator, budget: int = DRAWN_IMAGE_BYTES) -> Batch:
    """``count`` random images as one batch, or all where there are fewer, or as many as ``budget`` bytes hold."""
    order = torch.randperm(count_images(dataset), generator=generator)[:count]
    return read_all(dataset, fit_images(dataset, order, budget))


def fit_images(dataset: Dataset, indices: Tensor, budget: int) -> Tensor:
    """As many of the ``indices`` as have their images in ``budget`` bytes, by the size of the first that can be read."""
    first = next(read_batches(dataset, indices=indices, batch_size=1), None)
    return indices if first is None else indices[: how_many(first.images.nbytes, budget)]


def own_pixels(dataset: Dataset, index: int, longest: int) -> UInt8[Tensor, "channel height width"] | None:
    """The pixels of the file that an image was read from, no side longer than ``longest``; None if the dataset has no such files.

    They show all of what the image shows, at the file's own proportions. Raises UnreadableImage.
    """
    if isinstance(dataset, Subset):
        return own_pixels(dataset.dataset, dataset.indices[index], longest)
    read: Callable[[int, int], Tensor] | None = getattr(dataset, "own_pixels", None)
    return None if read is None else read(index, longest)


def own_size(dataset: Dataset, index: int) -> tuple[int, int] | None:
    """Height and width of the file that an image was read from; None if the dataset has no such files. Raises UnreadableImage."""
    if isinstance(dataset, Subset):
        return own_size(dataset.dataset, dataset.indices[index])
    read: Callable[[int], tuple[int, int]] | None = getattr(dataset, "own_size", None)
    return None if read is None else read(index)


def count_images(dataset: Dataset | DataLoader) -> int:
    """How many items a dataset has. Raises DataError for an iterable dataset, a DataLoader, or an empty one."""
    check_dataset(dataset)
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
    """Items (index, image, label) as one batch. Raises DataError if images differ in shape."""
    if not items:
        return Batch(torch.empty(0, dtype=torch.int64), torch.empty(0, 0, 0, 0), torch.empty(0, dtype=torch.int64))
    shapes = {tuple(image.shape) for _, image, _ in items}
    if len(shapes) > 1:
        raise DataError(f"images of one shape are needed, and a batch has {sorted(shapes)}: resize them in the dataset")
    indices, images, labels = zip(*items, strict=True)
    return Batch(torch.tensor(indices), torch.stack(images), torch.tensor(labels))


def _say_why(dataset: Dataset, index: int) -> str:
    """Why an image cannot be read, as the end of a sentence; empty if it can be read now."""
    try:
        dataset[index]
    except UnreadableImage as error:
        return f"; the first, {error}"
    return ""


def _reader(dataset: Dataset) -> Callable[[Tensor], Batch]:
    return getattr(dataset, "read", None) or (lambda part: _read_items(dataset, part))


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
            item = dataset[index]
        except UnreadableImage:
            continue
        items.append((index, *read_item(item, index)))
    return collate(items)
