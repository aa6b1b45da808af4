"""Images in files, as a dataset: decoded by several threads at the size that is needed, and kept while there is room."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.data.decode import Mode, decode_image, read_header
from rightreasons.data.listing import Entry, Source
from rightreasons.data.loading import Batch, collate
from rightreasons.data.task import Fingerprint
from rightreasons.data.window import Window, Windows
from rightreasons.errors import UnreadableImage

# The most bytes of decoded pixels that are kept, for all splits of a task together.
CACHE_BYTES = 2**30
# A larger image is not kept: to decode it takes little beside the network's pass over it, and few of them would fill the cache.
LARGEST_KEPT = 2**22
THREADS = min(8, os.cpu_count() or 1)


class PixelCache:
    """Decoded pixels, until ``limit`` bytes are full. Nothing is thrown out again.

    Every epoch reads all images once, in a new order, so that what is kept is read as often as what would take its place.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Tensor | None:
        """The pixels kept under a name."""
        return self._kept.get(name)

    def put(self, name: str, pixels: Tensor) -> None:
        """Keeps pixels, where there is room."""
        with self._lock:
            if name not in self._kept and pixels.nbytes <= LARGEST_KEPT and self.bytes + pixels.nbytes <= self.limit:
                self._kept[name] = pixels
                self.bytes += pixels.nbytes


@dataclass(frozen=True)
class Reading:
    """How every image of a task is read: from which file, at which size (height, width), with which channels, through which window."""

    open_source: Callable[[str], Source]
    mode: Mode
    size: tuple[int, int]
    window: Window | Windows | None
    resize: bool


class ImageFiles(Dataset):
    """Images with labels. ``skipped`` holds the files that turned out to be unreadable, and why; it is shared by a task's splits, as is ``cache``."""

    # ``read_batches`` reads the next batch while this one is worked on.
    reads_ahead = True

    def __init__(self, entries: Sequence[Entry], labels: Tensor, reading: Reading, *, skipped: dict[str, str], cache: PixelCache) -> None:
        self.entries, self.labels, self.reading, self.skipped, self.cache = entries, labels, reading, skipped, cache

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image as (channel, height, width) in 0 to 1, and its label. Raises UnreadableImage for a file that is no such image."""
        return self._pixels(index).float() / 255, int(self.labels[index])

    def read(self, indices: Tensor) -> Batch:
        """The readable images among ``indices``."""
        rows: list[int] = indices.tolist()
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self._try, rows))
        return collate([(row, pixels.float() / 255, int(self.labels[row])) for row, pixels in zip(rows, found, strict=True) if pixels is not None])

    def own_pixels(self, index: int, longest: int) -> UInt8[Tensor, "channel height width"]:
        """The file's own pixels and proportions, made smaller where a side is longer than ``longest``; all of what ``[index]`` shows, and no more.

        Raises UnreadableImage. Nothing is kept.
        """
        name, reading = self.entries[index].name, self.reading
        try:
            source = reading.open_source(name)
            header = read_header(source)
            scale = min(1.0, longest / max(header.width, header.height))
            size = (max(1, round(header.height * scale)), max(1, round(header.width * scale)))
            return decode_image(source, mode=reading.mode, size=size, window=reading.window)
        except UnreadableImage as error:
            raise UnreadableImage(f"{name}: {error}") from error

    def own_size(self, index: int) -> tuple[int, int]:
        """Height and width of the file's own pixels, as it is shown. Raises UnreadableImage."""
        header = read_header(self.reading.open_source(self.entries[index].name))
        return header.height, header.width

    @property
    def unreadable(self) -> list[int]:
        """The images that could not be read so far."""
        return [row for row, entry in enumerate(self.entries) if entry.name in self.skipped]

    def unreadable_classes(self) -> list[int]:
        """The labels of which no image can be decoded. One of each class is, where the first can be; what cannot is in ``skipped`` then."""

        def has_one(label: int) -> bool:
            return any(self._try(row) is not None for row in (self.labels == label).nonzero()[:, 0].tolist())

        labels: list[int] = self.labels.unique().tolist()
        with ThreadPoolExecutor(THREADS) as pool:
            return [label for label, found in zip(labels, pool.map(has_one, labels), strict=True) if not found]

    def fingerprints(self, indices: Sequence[int]) -> Iterator[Fingerprint]:
        """Index, label, length and SHA-256 of these images' files."""

        def hash_one(row: int) -> Fingerprint:
            entry = self.entries[row]
            try:
                length, digest = _hash_source(self.reading.open_source(entry.name))
            except (OSError, UnreadableImage) as error:
                self.skipped[entry.name] = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
                length, digest = 0, ""
            return Fingerprint(row, int(self.labels[row]), length, digest)

        with ThreadPoolExecutor(THREADS) as pool:
            # A thousand at a time: all of them at once would be a queue of as many tasks.
            for start in range(0, len(indices), 1000):
                yield from pool.map(hash_one, indices[start : start + 1000])

    def _try(self, row: int) -> UInt8[Tensor, "channel height width"] | None:
        if self.entries[row].name in self.skipped:
            return None
        try:
            return self._pixels(row)
        except UnreadableImage:
            return None

    def _pixels(self, row: int) -> UInt8[Tensor, "channel height width"]:
        name, reading = self.entries[row].name, self.reading
        kept = self.cache.get(name)
        if kept is not None:
            return kept
        try:
            size = reading.size if reading.resize else None
            pixels = decode_image(reading.open_source(name), mode=reading.mode, size=size, window=reading.window)
            if pixels.shape[1:] != reading.size:
                height, width = pixels.shape[1:]
                raise UnreadableImage(
                    f"{width}x{height} pixels, and the others have {reading.size[1]}x{reading.size[0]}: set [data] size to resize all of them"
                )
        except UnreadableImage as error:
            self.skipped[name] = str(error)
            raise UnreadableImage(f"{name}: {error}") from error
        self.cache.put(name, pixels)
        return pixels


def _hash_source(source: Source) -> tuple[int, str]:
    if isinstance(source, BytesIO):
        return source.getbuffer().nbytes, hashlib.sha256(source.getbuffer()).hexdigest()
    digest = hashlib.sha256()
    with Path(source).open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
        return file.tell(), digest.hexdigest()


def labels_of(entries: Sequence[Entry], classes: Sequence[str]) -> Tensor:
    """The place of each entry's label among ``classes``."""
    place = {name: number for number, name in enumerate(classes)}
    return torch.tensor([place[entry.label] for entry in entries], dtype=torch.int64)
