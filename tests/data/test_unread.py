"""What lies in a folder and is not read is counted by kind, by inspect and before find."""

from __future__ import annotations

import json

import pytest

from tests.support.folders import noise, read, write_rows
from tests.support.helpers import invoke


@pytest.fixture
def folder(tmp_path):
    """Two classes, and what else people have in such a folder."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        noise(*(root / name / f"{number}.png" for number in range(20)))
    noise(root / "loose.png")
    for name in "README.txt cat/notes.md clip.mp4 dog/all.zip .DS_Store dog/x.npy extra/t.csv weird .git/config scan.heic".split():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


KINDS = {
    "text files": 2, "hidden files and folders": 2, "images that no class and no row has": 1, "video and sound files": 1, "archives": 1,
    "array, volume and weight files": 1, "tables": 1, "other files": 1, "images in a format that is not read": 1,
}  # fmt: skip


def test_counted_by_kind(folder):
    task = read(folder)
    assert task.not_read == KINDS
    told = next(problem for problem in task.problems if problem.startswith("not read: "))
    assert all(f"{count} {kind} (such as " in told for kind, count in KINDS.items())


def test_inspect_tells_it(folder):
    result = invoke("inspect", folder, "--out", folder.parent / "look", "--json")
    assert json.loads(result.stdout)["not_read"] == KINDS
    assert "not read: " in invoke("inspect", folder, "--out", folder.parent / "look").stderr


def test_images_that_no_row_has(tmp_path):
    noise(*(tmp_path / "images" / f"{number}.png" for number in range(30)))
    write_rows(tmp_path / "labels.csv", "file,label", [[f"{number}.png", "ab"[number % 2]] for number in range(25)])
    write_rows(tmp_path / "more.csv", "name,age", [["x", 3]])
    assert read(tmp_path).not_read == {"images that no class and no row has": 5, "tables": 1}
