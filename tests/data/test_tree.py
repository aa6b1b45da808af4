"""What is listed below a folder and what is not, and which of it a table's words mean; names that nobody should have given to a file included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rightreasons.data.tree import is_image, list_tree
from rightreasons.errors import DataError
from tests.support.helpers import environment

ODD = ["with space.png", "quotes\"'`.png", "new\nline.png", "猫と犬.jpg", "дом.png", "-rf.png", "a\\b.png", "C:x.png", "100%&#.png", " edges .png"]
# Bytes that are no UTF-8, as Python hands them on: Latin-1's e with an accent.
LATIN = os.fsdecode(b"caf\xe9.png")


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def find(tree, name, base=""):
    return tree.find(name, where=lambda: "table.csv, line 2,", base=base)


def test_files_in_order_with_their_length(tmp_path):
    names = ["b/2.png", "b/10.png", "a/c/1.jpg", "top.csv", "b.png", "b-/x.png"]
    tree = list_tree(fill(tmp_path, *names))
    assert list(tree.files) == sorted(names) and all(size == len(name) for name, size in tree.files.items())
    assert tree.folders == {"a", "a/c", "b", "b-"} and not tree.left_out
    assert tree.below("") == ["a", "b", "b-"] and tree.below("a") == ["c"] and tree.below("b") == []
    assert tree.images("b") == ["b/10.png", "b/2.png"], "and not those of b-"
    assert tree.images("") == sorted(set(names) - {"top.csv"}) == tree.images()
    assert tree.path("b/2.png").read_bytes() == b"b/2.png"


def test_agrees_with_find(tmp_path):
    fill(tmp_path, *(f"{a}/{b}/{c}.png" for a in "xyz" for b in "pq" for c in range(7)), ".hidden/1.png", "x/.thumb.png", "__MACOSX/x/1.png")
    (tmp_path / "empty").mkdir()
    told = subprocess.run(
        ["find", ".", "-name", ".?*", "-prune", "-o", "-name", "__MACOSX", "-prune", "-o", "-type", "f", "-printf", "%P\\0"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    expected = {os.fsdecode(name) for name in told.stdout.split(b"\0") if name}
    assert set(list_tree(tmp_path).files) == expected and len(expected) == 42


@pytest.mark.parametrize(("name", "found"), [("a.PNG", True), ("a.JpEg", True), ("a.tiff", True), ("a.DCM", True), ("a.csv", False), ("png", False),
                                            (".png", False), ("a.png.txt", False), ("a.b.png", True)])  # fmt: skip
def test_images_are_told_by_their_suffix(name, found):
    assert is_image(name) is found and is_image(f"folder.png/{name}") is found


def test_links(tmp_path):
    root, outside = tmp_path / "root", fill(tmp_path / "outside", "secret.png")
    fill(root, "in/a.png", "b.png")
    (root / "file").symlink_to(root / "in" / "a.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "relative.png").symlink_to("../outside/secret.png")
    (root / "outfolder").symlink_to(outside)
    (root / "folder").symlink_to("in")
    (root / "in" / "up").symlink_to("..")
    (root / "broken.png").symlink_to("nothing.png")
    (root / "self.png").symlink_to("self.png")
    (root / "one.png").symlink_to("two.png")
    (root / "two.png").symlink_to("one.png")
    (root / "twice.png").symlink_to("out.png")
    os.mkfifo(root / "pipe.png")
    tree = list_tree(root)
    assert list(tree.files) == ["b.png", "file", "in/a.png"] and tree.files["file"] == len("in/a.png") and tree.folders == {"in"}
    assert tree.left_out == {
        "out.png": "a link out of the folder", "relative.png": "a link out of the folder", "outfolder": "a link out of the folder",
        "twice.png": "a link out of the folder", "folder": "a link to a folder", "in/up": "a link to a folder",
        "broken.png": "a link that leads nowhere", "self.png": "a link that leads nowhere", "one.png": "a link that leads nowhere",
        "two.png": "a link that leads nowhere",
    }  # fmt: skip
    assert find(tree, "out.png") is None and find(tree, "outfolder/secret.png") is None
    (tmp_path / "link").symlink_to(root)
    assert list_tree(tmp_path / "link").files == tree.files, "the folder itself may be a link"
    assert find(list_tree(tmp_path / "link"), str(root / "b.png")) == "b.png", "by whatever name"


def test_what_a_link_leads_to_is_not_looked_for_elsewhere(tmp_path):
    root = fill(tmp_path / "root", "secret.png")
    (root / "linked").symlink_to(fill(tmp_path / "outside", "secret.png"))
    assert find(list_tree(root), "linked/secret.png") is None and find(list_tree(root), "secret.png") == "secret.png"


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot read the folder .*nowhere: No such file"):
        list_tree(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Not a directory"):
        list_tree(fill(tmp_path, "a.png") / "a.png")


def test_a_folder_without_permission(tmp_path):
    """Root may read everything, so that the question is put by another user."""
    fill(tmp_path, "open/a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    code = f"""
import os
from pathlib import Path
from rightreasons.data.tree import list_tree
os.chdir("/")
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
list_tree(Path({str(tmp_path)!r}))
"""
    for folder in [tmp_path, *tmp_path.parents][: len(tmp_path.parents) - 1]:
        if folder.owner() == Path.home().owner() and "pytest" in str(folder):
            folder.chmod(0o755)
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert "DataError: cannot read the folder" in done.stderr and done.stderr.rstrip().endswith("closed: Permission denied"), done.stderr


@pytest.mark.parametrize("name", [*ODD, LATIN])
def test_odd_names_are_found(tmp_path, name):
    tree = list_tree(fill(tmp_path, f"cat/{name}"))
    assert list(tree.files) == [f"cat/{name}"] and tree.path(f"cat/{name}").exists() and tree.images("cat") == [f"cat/{name}"]
    assert find(tree, f"cat/{name}") == f"cat/{name}" and find(tree, name, base="cat") == f"cat/{name}"
    if "\\" not in name and ":" not in name and name.strip() == name:
        assert find(tree, name) == find(tree, name.rpartition(".")[0]) == f"cat/{name}"


def test_odd_names_are_told():
    """JSON as the commands print it, and the notes of the terminal, whatever its encoding."""
    names = [*ODD, LATIN]
    assert json.loads(json.dumps(names).encode("ascii")) == names
    code = f"from rightreasons.common.progress import Terminal; t = Terminal(); [t.note(f'left out {{name}}: why') for name in {names!r}]"
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(PYTHONIOENCODING=encoding), timeout=60)
        assert done.returncode == 0 and done.stderr.count(b"note: left out") == len(names), done.stderr


def test_find(tmp_path):
    tree = list_tree(fill(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/dog/2.JPG", "meta/t.csv", "scan", "v1.5/x.png", "odd.png/y.jpg"))
    cases = {
        "train/cat/1.png": "train/cat/1.png", "./train/cat/1.png": "train/cat/1.png", "train//cat/./1.png": "train/cat/1.png",
        " train/cat/1.png ": "train/cat/1.png", "train\\cat\\1.png": "train/cat/1.png", "train/dog/../cat/1.png": "train/cat/1.png",
        "cat/1.png": "train/cat/1.png", "cat/1": "train/cat/1.png", "2.JPG": "train/dog/2.JPG", "2": "train/dog/2.JPG", "scan": "scan",
        f"{tmp_path}/train/dog/2.JPG": "train/dog/2.JPG", "x": "v1.5/x.png", "some/prefix/train/cat/1.png": "train/cat/1.png",
        f"{tmp_path.name}/train/cat/1.png": "train/cat/1.png", "3.png": None, "2.png": None, "cat/2.JPG": None, "test/dog/2.JPG": None, "dog": None,
        "train": None, "": None, ".": None, "odd": None,
    }  # fmt: skip
    assert {name: find(tree, name) for name in cases} == cases
    assert find(tree, "../train/cat/1.png", base="meta") == "train/cat/1.png" and find(tree, "2.JPG", base="meta") == "train/dog/2.JPG"
    assert find(tree, "t.csv", base="meta") == "meta/t.csv"


@pytest.mark.parametrize("name", ["1.png", "1", "./1.png", "a/../1.png"])
def test_ambiguous_names(tmp_path, name):
    tree = list_tree(fill(tmp_path, "train/cat/1.png", "train/dog/1.png"))
    with pytest.raises(DataError, match=r"^table.csv, line 2, names .*, which may be train/cat/1.png or train/dog/1.png: name it by its path"):
        find(tree, name)


def test_two_suffixes_of_one_name_are_ambiguous(tmp_path):
    with pytest.raises(DataError, match=r"may be a.jpg or a.png"):
        find(list_tree(fill(tmp_path, "a.jpg", "a.png")), "a")


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "..", "..\\x.png", "C:\\x.png", "c:/x.png", "\\\\server\\share\\x.png"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    fill(tmp_path, "x.png")
    tree = list_tree(fill(tmp_path / "root", "a/b.png", "x.png"))
    with pytest.raises(DataError, match=r"^table.csv, line 2, names .*(a file outside of|a path on another machine)"):
        find(tree, name)
    with pytest.raises(DataError, match="a file outside"):
        find(tree, f"{tmp_path}/root-other/x.png")


def test_the_published_root_is_not_needed_twice(tmp_path):
    """CheXpert's table begins every path with the name of the folder that it lies in."""
    root = fill(tmp_path / "CheXpert-v1.0-small", *(f"train/patient{n}/study1/view1_frontal.jpg" for n in range(3)))
    for top in (root, tmp_path):
        found = find(list_tree(top), "CheXpert-v1.0-small/train/patient1/study1/view1_frontal.jpg")
        assert found is not None and (top / found) == root / "train/patient1/study1/view1_frontal.jpg"


def test_a_relative_root(tmp_path, monkeypatch):
    fill(tmp_path / "data", "a/1.png")
    monkeypatch.chdir(tmp_path)
    tree = list_tree(Path("data"))
    assert list(tree.files) == ["a/1.png"] and find(tree, str(tmp_path / "data/a/1.png")) == "a/1.png" == find(tree, "data/a/1.png")


def test_many_files_of_one_name(tmp_path):
    """CheXpert has 190,000 of three names, and its table begins each path with a folder more: an index finds them, no search."""
    names = [f"patient{number:05d}/study1/view1_frontal.jpg" for number in range(4000)]
    tree = list_tree(fill(tmp_path, *names))
    began = time.process_time()
    assert [find(tree, f"CheXpert-v1.0-small/train/{name}") for name in names] == names
    assert [find(tree, name.removesuffix(".jpg")) for name in names] == names
    assert find(tree, "study1/view1_frontal.jpg", base="patient00007") == "patient00007/study1/view1_frontal.jpg"
    assert time.process_time() - began < 5, "some 0.1 s by an index; minutes where each name is compared with all"


def test_hidden_files_and_folders_are_not_listed_and_named(tmp_path):
    tree = list_tree(fill(tmp_path, "a.png", ".DS_Store", ".git/config", ".git/HEAD", "b/._a.png"))
    assert list(tree.files) == ["a.png"] and tree.hidden == (".DS_Store", ".git", "b/._a.png")
