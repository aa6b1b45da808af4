"""Hashes of every image, as sha256sum has them, and images in two splits by what they are rather than by their names."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
import torch

from rightreasons.data.manifest import Leak, Listed, describe_conflicts, describe_leaks, find_conflicts, find_leaks, hash_manifest, list_hashes
from rightreasons.data.task import TensorImages
from rightreasons.errors import UnreadableImage
from tests.data.test_images import open_files, write_images


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def test_equals_sha256sum(tmp_path):
    entries = write_images(tmp_path, 7)
    (tmp_path / "0003.png").write_bytes(b"x" * (2**21 + 5))
    told = subprocess.run(["sha256sum", *(entry.name for entry in entries)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = {line.split()[1]: line.split()[0] for line in told.splitlines()}
    calls: list[tuple[int, int]] = []
    listed = list_hashes({"train": open_files(tmp_path, entries[:4]), "test": open_files(tmp_path, entries[4:])}, lambda *at: calls.append(at))
    assert {entry.name: line.sha256 for entry, line in zip(entries, listed, strict=True)} == expected and calls == [(0, 7), (7, 7)]
    assert [(line.split, line.label) for line in listed] == [
        ("train", 0),
        ("train", 1),
        ("train", 0),
        ("train", 1),
        ("test", 0),
        ("test", 1),
        ("test", 0),
    ]
    assert [line.bytes for line in listed] == [(tmp_path / entry.name).stat().st_size for entry in entries]
    assert [line.index for line in listed] == [0, 1, 2, 3, 0, 1, 2]


def test_more_than_a_thousand_in_order(tmp_path):
    write_images(tmp_path, 3)
    from rightreasons.data.listing import Entry

    entries = [Entry(f"{number}", "a") for number in range(2345)]
    listed = list_hashes({"train": open_files(tmp_path, entries, open_source=lambda name: tmp_path / f"{int(name) % 3:04d}.png")}, quiet)
    assert [line.index for line in listed] == list(range(2345)) and len({line.sha256 for line in listed}) == 3


def test_leaks_whatever_the_name(tmp_path):
    entries = write_images(tmp_path, 8)
    same = (tmp_path / "0000.png").read_bytes()
    for number in (1, 5, 6):
        (tmp_path / f"000{number}.png").write_bytes(same)
    parts = {"train": entries[:4], "validation": entries[4:6], "test": entries[6:]}
    splits = {split: open_files(tmp_path, part) for split, part in parts.items()}
    listed = list_hashes(splits, quiet)
    assert len({line.sha256 for line in listed[::3]}) == 2 and ".png" not in str(listed), "a name may be a patient's"
    leaks = find_leaks(listed)
    where = (("train", 0), ("train", 1), ("validation", 1), ("test", 0))
    assert leaks == [Leak(hashlib.sha256(same).hexdigest(), where)]
    assert describe_leaks(leaks, splits).startswith(
        "1 image is in more than one split, byte for byte, such as 0000.png (train) and 0005.png (validation)"
    )
    assert describe_leaks(leaks * 2, splits).startswith("2 images are in")


def test_what_is_no_leak(tmp_path):
    listed = [
        Listed("train", 0, 0, 1, "1"), Listed("train", 1, 0, 1, "1"), Listed("test", 2, 0, 1, "2"),
        Listed("validation drawn once more", 2, 0, 1, "2"), Listed("train", 3, 0, 0, ""), Listed("test", 4, 0, 0, ""),
    ]  # fmt: skip
    assert find_leaks(listed) == []
    assert len(find_leaks([*listed, Listed("validation", 5, 0, 1, "2")])) == 1


def test_one_image_under_two_labels_of_a_split(tmp_path):
    listed = [
        Listed("train", 0, 0, 9, "1"), Listed("train", 1, 1, 9, "1"), Listed("train", 2, 0, 9, "1"), Listed("train", 3, 0, 9, "2"),
        Listed("train", 4, 0, 9, "2"), Listed("test", 0, 1, 9, "2"), Listed("train", 5, 0, 0, ""), Listed("train", 6, 1, 0, ""),
        Listed("validation drawn once more", 0, 0, 9, "3"), Listed("validation drawn once more", 1, 1, 9, "3"),
    ]  # fmt: skip
    conflicts = find_conflicts(listed)
    assert conflicts == [Leak("1", (("train", 0), ("train", 1), ("train", 2)))]
    splits = {"train": open_files(tmp_path, write_images(tmp_path, 7))}
    told = describe_conflicts(conflicts, listed, splits, ("cat", "dog"))
    assert told.startswith("1 image is under two labels, byte for byte, such as 0000.png (cat) and 0001.png (dog) in train")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), UnreadableImage("the row has no image")])
def test_unreadable_ones_have_no_hash_and_are_left_out(tmp_path, error):
    entries = write_images(tmp_path, 3)

    def open_source(name: str):
        if name == "0001.png":
            raise error
        return tmp_path / name

    dataset = open_files(tmp_path, entries, open_source=open_source)
    listed = list_hashes({"train": dataset}, quiet)
    assert [(line.bytes > 0, line.sha256 != "") for line in listed] == [(True, True), (False, False), (True, True)]
    assert dataset.skipped == {"0001.png": "No such file or directory" if isinstance(error, OSError) else "the row has no image"}


def test_datasets_of_others(in_memory):
    images, labels = torch.rand(5, 3, 4, 4), torch.arange(5) % 2
    images[4] = images[0]
    listed = list_hashes({"train": in_memory(images[:4], labels[:4]), "test": in_memory(images[4:], labels[4:])}, quiet)
    assert [line.sha256 for line in listed] == [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    assert [leak.places for leak in find_leaks(listed)] == [(("train", 0), ("test", 0))]
    stored = list_hashes({"train": TensorImages((images * 255).byte(), labels)}, quiet)
    assert [line.index for line in stored] == list(range(5)) and stored[0].sha256 == stored[4].sha256 != stored[1].sha256


def test_the_hash_of_all_tells_every_change():
    line = Listed("train", 7, 0, 1, "ab")
    others = [
        Listed("test", 7, 0, 1, "ab"), Listed("train", 8, 0, 1, "ab"), Listed("train", 7, 1, 1, "ab"),
        Listed("train", 7, 0, 2, "ab"), Listed("train", 7, 0, 1, "ac"),
    ]  # fmt: skip
    assert len({hash_manifest([each]) for each in (line, *others)}) == 6 and hash_manifest([line]) == hash_manifest([line])
    assert hash_manifest([line, others[0]]) != hash_manifest([others[0], line])
