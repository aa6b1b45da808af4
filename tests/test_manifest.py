"""Hashes of every image, as sha256sum has them, and images in two splits by what they are rather than by their names."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
import torch

from rightreasons.data.manifest import Leak, Listed, describe_leaks, find_leaks, hash_manifest, list_hashes
from rightreasons.data.task import TensorImages
from rightreasons.errors import UnreadableImage
from tests.test_images import open_files, write_images


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def test_equals_sha256sum(tmp_path):
    entries = write_images(tmp_path, 7)
    (tmp_path / "0003.png").write_bytes(b"x" * (2**21 + 5))
    told = subprocess.run(["sha256sum", *(entry.name for entry in entries)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = {line.split()[1]: line.split()[0] for line in told.splitlines()}
    calls: list[tuple[int, int]] = []
    listed = list_hashes({"train": open_files(tmp_path, entries[:4]), "test": open_files(tmp_path, entries[4:])}, lambda *at: calls.append(at))
    assert {line.name: line.sha256 for line in listed} == expected and calls == [(7, 7)]
    assert [(line.split, line.label) for line in listed] == [
        ("train", 0),
        ("train", 1),
        ("train", 0),
        ("train", 1),
        ("test", 0),
        ("test", 1),
        ("test", 0),
    ]
    assert all(line.bytes == (tmp_path / line.name).stat().st_size for line in listed)


def test_more_than_a_thousand_in_order(tmp_path):
    write_images(tmp_path, 3)
    from rightreasons.data.listing import Entry

    entries = [Entry(f"{number}", "a") for number in range(2345)]
    listed = list_hashes({"train": open_files(tmp_path, entries, open_source=lambda name: tmp_path / f"{int(name) % 3:04d}.png")}, quiet)
    assert [line.name for line in listed] == [entry.name for entry in entries] and len({line.sha256 for line in listed}) == 3


def test_leaks_whatever_the_name(tmp_path):
    entries = write_images(tmp_path, 8)
    same = (tmp_path / "0000.png").read_bytes()
    for number in (1, 5, 6):
        (tmp_path / f"000{number}.png").write_bytes(same)
    parts = {"train": entries[:4], "validation": entries[4:6], "test": entries[6:]}
    leaks = find_leaks(list_hashes({split: open_files(tmp_path, part) for split, part in parts.items()}, quiet))
    where = (("train", "0000.png"), ("train", "0001.png"), ("validation", "0005.png"), ("test", "0006.png"))
    assert leaks == [Leak(hashlib.sha256(same).hexdigest(), where)]
    assert describe_leaks(leaks).startswith("1 image is in more than one split, byte for byte, such as 0000.png (train) and 0005.png (validation)")
    assert describe_leaks(leaks * 2).startswith("2 images are in")


def test_what_is_no_leak(tmp_path):
    listed = [
        Listed("train", "a", 0, 1, "1"), Listed("train", "b", 0, 1, "1"), Listed("test", "c", 0, 1, "2"),
        Listed("validation drawn once more", "c", 0, 1, "2"), Listed("train", "unreadable", 0, 0, ""), Listed("test", "unreadable too", 0, 0, ""),
    ]  # fmt: skip
    assert find_leaks(listed) == []
    assert len(find_leaks([*listed, Listed("validation", "d", 0, 1, "2")])) == 1


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
    assert [leak.places for leak in find_leaks(listed)] == [(("train", "0"), ("test", "0"))]
    stored = list_hashes({"train": TensorImages((images * 255).byte(), labels)}, quiet)
    assert [line.name for line in stored] == list("01234") and stored[0].sha256 == stored[4].sha256 != stored[1].sha256


def test_the_hash_of_all_tells_every_change():
    line = Listed("train", "caf\udce9.png", 0, 1, "ab")
    others = [
        Listed("test", "caf\udce9.png", 0, 1, "ab"), Listed("train", "x", 0, 1, "ab"), Listed("train", "caf\udce9.png", 1, 1, "ab"),
        Listed("train", "caf\udce9.png", 0, 2, "ab"), Listed("train", "caf\udce9.png", 0, 1, "ac"),
    ]  # fmt: skip
    assert len({hash_manifest([each]) for each in (line, *others)}) == 6 and hash_manifest([line]) == hash_manifest([line])
    assert hash_manifest([line, others[0]]) != hash_manifest([others[0], line])
