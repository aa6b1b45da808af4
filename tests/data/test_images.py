"""The dataset of image files: the pixels of ``decode`` one by one, whatever reads them, keeps them or breaks off."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.data import images as images_module
from rightreasons.data.decode import decode_image
from rightreasons.data.images import ImageFiles, PixelCache, Reading, labels_of
from rightreasons.data.listing import Entry
from rightreasons.data.loading import read_batches
from rightreasons.errors import DataError, UnreadableImage
from tests.support.soak import resident_mib

SIZE = (8, 8)


def write_images(folder: Path, count: int, *, side: int = 12) -> list[Entry]:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")
    return [Entry(f"{number:04d}.png", "ab"[number % 2]) for number in range(count)]


def open_files(folder: Path, entries: list[Entry], *, limit: int = 2**20, open_source=None, resize: bool = True, size=SIZE) -> ImageFiles:
    reading = Reading(open_source or (lambda name: folder / name), "rgb", size, None, resize)
    return ImageFiles(entries, labels_of(entries, ("a", "b")), reading, skipped={}, cache=PixelCache(limit))


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("limit", [0, 5 * 3 * 64, 2**20])
def test_equals_decoding_one_by_one(tmp_path, monkeypatch, threads, limit):
    monkeypatch.setattr(images_module, "THREADS", threads)
    entries = write_images(tmp_path, 23)
    dataset = open_files(tmp_path, entries, limit=limit)
    one_by_one = torch.stack([decode_image(tmp_path / entry.name, mode="rgb", size=SIZE) for entry in entries])
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        start = 0
        for batch in read_batches(dataset, indices=order, batch_size=5):
            rows = order[start : start + 5]
            assert (batch.indices == rows).all() and (batch.labels == rows % 2).all()
            assert torch.equal(batch.images, one_by_one[rows].float() / 255)
            start += len(batch)
        assert start == 23
    assert torch.equal(dataset[4][0], one_by_one[4].float() / 255) and dataset[5][1] == 1 and len(dataset) == 23


def test_the_cache_is_bounded_and_shared(tmp_path):
    entries = write_images(tmp_path, 10)
    each = 3 * SIZE[0] * SIZE[1]
    opened: list[str] = []

    def open_source(name: str) -> Path:
        opened.append(name)
        return tmp_path / name

    first = open_files(tmp_path, entries, limit=4 * each + 1, open_source=open_source)
    second = ImageFiles(entries[:4], first.labels[:4], first.reading, skipped=first.skipped, cache=first.cache)
    # One batch of four, so that it is they that are kept.
    list(read_batches(first, indices=range(4)))
    list(read_batches(first))
    assert first.cache.bytes == 4 * each <= first.cache.limit and len(first.cache._kept) == 4
    assert sorted(opened) == sorted(entry.name for entry in entries)
    list(read_batches(second))
    assert len(opened) == 10, "the other split finds them in the cache"
    list(read_batches(first))
    assert sorted(opened[10:]) == sorted(entry.name for entry in entries[4:]), "what had no room is read again"


def test_what_is_read_cannot_change_what_is_kept(tmp_path):
    dataset = open_files(tmp_path, write_images(tmp_path, 3))
    before = dataset[0][0].clone()
    dataset[0][0].zero_()
    for batch in read_batches(dataset):
        batch.images.zero_()
    assert torch.equal(dataset[0][0], before) and before.sum() > 0


def test_put_from_many_threads():
    cache = PixelCache(limit=10 * 50)
    pixels = torch.zeros(1, 10, 5, dtype=torch.uint8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.put(f"{number % 40}", pixels), range(2000)))
    assert cache.bytes == 500 == sum(kept.nbytes for kept in cache._kept.values())


def test_the_next_batch_is_read_while_this_one_is_worked_on(tmp_path):
    """The reader of the second batch says when it starts, and waits until the first one is in hand: one after the other would stand still."""
    entries = write_images(tmp_path, 6)
    started, in_hand = threading.Event(), threading.Event()
    counts: list[str] = []

    def open_source(name: str) -> Path:
        counts.append(name)
        if name == "0002.png":
            started.set()
            assert in_hand.wait(20), "the first batch was not handed out before the second was read"
        return tmp_path / name

    batches = read_batches(open_files(tmp_path, entries, open_source=open_source), batch_size=2)
    first = next(batches)
    assert started.wait(20), "nobody reads ahead"
    assert first.indices.tolist() == [0, 1] and not {"0004.png", "0005.png"} & set(counts), "one batch ahead, and no more"
    in_hand.set()
    assert [batch.indices.tolist() for batch in batches] == [[2, 3], [4, 5]]


def test_an_error_in_the_reader_reaches_the_caller(tmp_path):
    entries = write_images(tmp_path, 6)

    def open_source(name: str) -> Path:
        if name == "0003.png":
            raise RuntimeError("the disk is on fire")
        return tmp_path / name

    before = threading.active_count()
    batches = read_batches(open_files(tmp_path, entries, open_source=open_source), batch_size=2)
    assert next(batches).indices.tolist() == [0, 1]
    with pytest.raises(RuntimeError, match="on fire"):
        list(batches)
    assert threading.active_count() == before


@pytest.mark.parametrize("end", ["close", "forget", "raise"])
def test_no_thread_is_left(tmp_path, end):
    before = threading.active_count()
    batches = read_batches(open_files(tmp_path, write_images(tmp_path, 20)), batch_size=2)
    next(batches)
    if end == "close":
        batches.close()
    elif end == "raise":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)
    else:
        del batches
        gc.collect()
    assert threading.active_count() == before


def test_unreadable_files_are_named_and_not_opened_again(tmp_path):
    entries = write_images(tmp_path, 8)
    (tmp_path / "0002.png").write_bytes(b"text")
    (tmp_path / "0005.png").unlink()
    opened: list[str] = []
    dataset = open_files(tmp_path, entries, limit=0, open_source=lambda name: opened.append(name) or tmp_path / name)
    for _ in range(2):
        assert torch.cat([batch.indices for batch in read_batches(dataset, batch_size=3)]).tolist() == [0, 1, 3, 4, 6, 7]
    assert dataset.skipped == {"0002.png": "not an image that can be read: a text file", "0005.png": "No such file or directory"}
    assert opened.count("0002.png") == opened.count("0005.png") == 1 and opened.count("0000.png") == 2
    with pytest.raises(UnreadableImage, match="^0002.png: not an image"):
        dataset[2]
    with pytest.raises(DataError, match="none of the 2 images"):
        list(read_batches(dataset, indices=[2, 5]))


def test_a_batch_without_a_readable_image_is_passed_over(tmp_path):
    entries = write_images(tmp_path, 6)
    for number in (2, 3):
        (tmp_path / f"000{number}.png").write_bytes(b"")
    assert [batch.indices.tolist() for batch in read_batches(open_files(tmp_path, entries), batch_size=2)] == [[0, 1], [4, 5]]


def test_another_size_than_the_rest(tmp_path):
    entries = write_images(tmp_path, 4)
    Image.fromarray(np.zeros((9, 11, 3), np.uint8)).save(tmp_path / "0001.png")
    dataset = open_files(tmp_path, entries, resize=False, size=(12, 15))
    assert [batch.indices.tolist() for batch in read_batches(dataset)] == [[0, 2, 3]]
    assert dataset.skipped == {"0001.png": "11x9 pixels, and the others have 15x12: set [data] size to resize all of them"}


def test_images_in_memory(tmp_path):
    entries = write_images(tmp_path, 4)
    held = {entry.name: BytesIO((tmp_path / entry.name).read_bytes()) for entry in entries}
    from_files, from_bytes = open_files(tmp_path, entries), open_files(tmp_path, entries, open_source=held.__getitem__)
    for _ in range(2):
        assert torch.equal(next(read_batches(from_bytes)).images, next(read_batches(from_files)).images)
        from_bytes.cache = PixelCache(0)
    assert list(from_bytes.fingerprints(range(len(from_bytes)))) == list(from_files.fingerprints(range(len(from_files))))


def test_memory_is_flat_over_many_files(tmp_path):
    """5,000 names of ten files, with room for three hundred: the process is as large after the last thousand as after the first."""
    write_images(tmp_path, 10)
    entries = [Entry(f"{number}", "ab"[number % 2]) for number in range(5000)]
    each, side = 3 * 64 * 64, (64, 64)
    dataset = open_files(tmp_path, entries, limit=300 * each, open_source=lambda name: tmp_path / f"{int(name) % 10:04d}.png", size=side)
    grown = []
    for number, batch in enumerate(read_batches(dataset, batch_size=100)):
        assert len(batch) == 100
        if number % 10 == 9:
            grown.append(resident_mib())
    assert len(grown) == 5 and dataset.cache.bytes == 300 * each
    # Four thousand of them as bytes would be 47 MiB, as floats four times that.
    assert grown[-1] - grown[0] < 16, grown
