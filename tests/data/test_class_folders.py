"""Class folders and their splits: what lies in a folder goes before what it is called."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from rightreasons.errors import DataError
from tests.support.folders import names_of, noise, read, total, write_rows


def fill(root, *folders: str, count: int = 10) -> None:
    for folder in folders:
        noise(*(root / folder / f"{number}.png" for number in range(count)))


def counts(task) -> dict[str, int]:
    return {split: len(images) for split, images in task.splits.items()}


def test_a_class_called_train(tmp_path):
    """COCO, PASCAL VOC and CIFAR-100 have one."""
    fill(tmp_path, "boat", "bus", "train")
    assert read(tmp_path).classes == ("boat", "bus", "train")


def test_a_class_called_train_in_every_split(tmp_path):
    fill(tmp_path, "train/bus", "train/train", "test/bus", "test/train")
    task = read(tmp_path)
    assert task.classes == ("bus", "train") and counts(task)["test"] == 20


@pytest.mark.parametrize(
    ("train", "test"), [("training_set", "test_set"), ("seg_train", "seg_test"), ("Training", "Testing"), ("train2017", "test2017"), ("tr", "te")]
)
def test_splits_by_a_word_in_their_names(tmp_path, train, test):
    fill(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    task = read(tmp_path)
    assert task.classes == ("cat", "dog") and all(name.startswith(f"{test}/") for name in names_of(task)["test"]) and counts(task)["test"] == 20


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "test"), "train has 0 class folder"),
        (("train", "test", "unlabeled"), "train has 0 class folder"),
        (("val/cat", "val/dog", "test/cat", "test/dog"), "no training split, only 'test', 'val'"),
        (("cat", "dog", "test/cat", "test/dog"), "no training split, only 'test'"),
        (("train_val/cat", "train_val/dog", "test/cat", "test/dog"), "cannot be told which of 'train_val' is the train split"),
        (("train_1/cat", "train_1/dog", "train_2/cat", "train_2/dog"), "cannot be told which of 'train_1', 'train_2'"),
        (tuple(f"fold{number}" for number in range(5)), "are folds or parts by their names"),
        (tuple(f"fold{number}/{name}" for number in range(5) for name in ("cat", "dog")), "are folds or parts by their names"),
        (("part_1", "part_2"), "are folds or parts"),
        (tuple(f"patient{number:05d}/study1" for number in range(5)), "are patients or studies by their names"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, folders, words):
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("folders", [("fold1", "fold2"), ("patient1", "patient2"), ("train", "test")])
def test_folders_that_are_named_are_classes(tmp_path, folders):
    fill(tmp_path, *folders)
    assert set(read(tmp_path, names={name: name for name in folders}).classes) == set(folders)


def test_patients_beside_a_table_without_a_known_label(tmp_path):
    """CheXpert: a column for each finding, and none called label."""
    rows = []
    for number in range(20):
        noise(tmp_path / "train" / f"patient{number:05d}" / "study1" / "view1_frontal.png")
        rows.append([f"CheXpert-v1.0-small/train/patient{number:05d}/study1/view1_frontal.png", float(number % 2), ""])
    write_rows(tmp_path / "train.csv", "Path,Cardiomegaly,Edema", rows)
    with pytest.raises(DataError, match=r"patients or studies.*labels are in train.csv, name their column: \[data.columns\] label"):
        read(tmp_path)
    assert read(tmp_path, columns={"label": "Cardiomegaly"}).classes == ("0", "1")


def test_folders_without_images_are_told_and_data_in_another_form_refused(tmp_path):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "make.py").write_text("pass")
    task = read(tmp_path)
    assert task.classes == ("cat", "dog") and "the folder 'scripts' has no images and is no class" in task.problems
    (tmp_path / "bird").mkdir()
    np.save(tmp_path / "bird" / "0.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"bird has 1 files and no images that are read \(array"):
        read(tmp_path)


def test_the_same_folders_within_all_classes_are_told(tmp_path):
    """PlantVillage: the outer folders may be versions of one set."""
    fill(tmp_path, *(f"{version}/{name}" for version in ("color", "grayscale") for name in ("apple", "corn")))
    assert any("same 2 folders within ('apple', 'corn'): the outer ones (color, grayscale)" in problem for problem in read(tmp_path).problems)


def test_splits_within_the_classes_are_the_splits(tmp_path):
    fill(tmp_path, *(f"{name}/{split}" for name in ("cat", "dog") for split in ("Test", "train")), count=20)
    task = read(tmp_path)
    assert task.classes == ("cat", "dog") and task.told.startswith(f"class folders in {tmp_path}, with the splits within each (Test, train)")
    assert {entry.name.split("/")[1] for entry in task.splits["test"].entries} == {"Test"} and len(task.splits["test"]) == 40
    assert {entry.name.split("/")[1] for split in ("train", "validation") for entry in task.splits[split].entries} == {"train"}
    assert not any("folders within" in problem for problem in task.problems)
    fill(tmp_path, "cat/more", "dog/more", count=20)
    assert any("same 3 folders within ('Test', 'more', 'train')" in problem for problem in read(tmp_path).problems), "of unknown ones none is a split"


def test_a_class_of_three_images_is_told(tmp_path):
    fill(tmp_path, "cat", "dog", count=40)
    fill(tmp_path, "owl", count=3)
    assert [problem for problem in read(tmp_path).problems if "few" in problem] == [
        "few images: 1 of 'owl' in validation, 1 of 'owl' in test; the accuracy of such a class says little, since one image is a large part of it"
    ]


# ---- tables in the folders of splits, and splits in the folders that a table names


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_metadata_of_hugging_face_s_imagefolder(tmp_path, suffix):
    """datasets 5.2.0, folder-based builder: metadata.csv or metadata.jsonl in the folder of each split, with file_name relative to it."""
    for split, size in (("train", 40), ("test", 20)):
        noise(*(tmp_path / split / f"{number}.png" for number in range(size)))
        rows = [[f"{number}.png", number % 2] for number in range(size)]
        if suffix == "csv":
            write_rows(tmp_path / split / "metadata.csv", "file_name,label", rows)
        else:
            lines = [json.dumps({"file_name": name, "label": label, "box": [1, 2]}) for name, label in rows]
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    task = read(tmp_path)
    assert task.classes == ("0", "1") and counts(task)["test"] == 20 and total(task) == 60 and task.not_read == {}


@pytest.mark.parametrize(
    ("text", "words"), [("[1]\n", "line 1: a JSON object is expected"), ('{"file_name": "a.png", "label": 1}\nx\n', "not one JSON object per line")]
)
def test_json_lines_that_are_none(tmp_path, text, words):
    noise(tmp_path / "a.png")
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path, table="labels.jsonl")


def test_a_table_without_splits_whose_files_lie_in_folders_of_splits(tmp_path):
    rows = []
    for split in ("train", "test"):
        for number in range(30):
            noise(tmp_path / split / f"{split}{number}.png")
            rows.append([f"{split}/{split}{number}.png", "ab"[number % 2]])
    write_rows(tmp_path / "metadata.csv", "file_name,label", rows)
    task = read(tmp_path)
    assert sorted(names_of(task)["test"]) == sorted(f"test/test{number}.png" for number in range(30))
    assert "split by folder" in task.told
    noise(tmp_path / "more" / "x.png")
    write_rows(tmp_path / "metadata.csv", "file_name,label", [*rows, ["more/x.png", "a"]])
    assert any("the folders are not read as splits" in problem for problem in read(tmp_path).problems)


# ---- Parquet


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, labels, *, names: list[str] | None = None, start: int = 0) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [png(start + number) for number in range(len(labels))], "label": labels})
    if names:
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_a_parquet_file_s_own_name_goes_before_its_folder(tmp_path):
    write_parquet(tmp_path / "training_v2" / "train-00000-of-00001.parquet", [0, 1] * 30)
    write_parquet(tmp_path / "training_v2" / "test-00000-of-00001.parquet", [0, 1] * 10, start=60)
    task = read(tmp_path)
    assert counts(task)["test"] == 20 and all("test-00000" in name for name in names_of(task)["test"])


def test_turkish_and_telugu(tmp_path):
    write_parquet(tmp_path / "tr.parquet", [0, 1] * 20)
    write_parquet(tmp_path / "te.parquet", [0, 1] * 20, start=40)
    with pytest.raises(DataError, match="te.parquet and tr.parquet may be training and test or Turkish and Telugu"):
        read(tmp_path)
    write_parquet(tmp_path / "en.parquet", [0, 1] * 20, start=80)
    assert total(read(tmp_path)) == 120 and "validation and test made" in read(tmp_path).told


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[0], [1], [0, 1]] * 20, "has several classes in one cell in 60 of 60 rows"),
        ([{"name": "cat"}, {"name": "dog"}] * 30, "has several classes in one cell"),
        (["A", "B", "A|B"] * 20, "has several classes in one cell in 20 of 60 rows"),
        ([0.1, 0.25, 0.7] * 20, "has numbers with fractions"),
    ],
)
def test_parquet_labels_that_are_no_class(tmp_path, labels, words):
    write_parquet(tmp_path / "x.parquet", labels)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_nan_and_none_in_parquet_are_no_label(tmp_path):
    write_parquet(tmp_path / "x.parquet", [0.0, 1.0, float("nan")] * 20)
    task = read(tmp_path)
    assert task.classes == ("0", "1") and any("20 rows of x.parquet have no label" in problem for problem in task.problems)
    write_parquet(tmp_path / "x.parquet", ["a", "b", "None"] * 20)
    assert read(tmp_path).classes == ("a", "b") and any("'None' counts as missing" in problem for problem in read(tmp_path).problems)


def test_class_names_of_parquet(tmp_path):
    """Numbers count the names from 0, though names may be numbers themselves; -1 is unknown; any other number is refused."""
    write_parquet(tmp_path / "x.parquet", [0, 1, -1] * 20, names=["1", "0"])
    task = read(tmp_path)
    assert task.classes == ("1", "0") and total(task) == 40
    assert {task.classes[label] for label in task.splits["train"].labels.tolist()} == {"0", "1"}
    first = next(row for row, entry in enumerate(task.splits["train"].entries) if int(entry.name.split("#")[1]) % 3 == 0)
    assert task.splits["train"].entries[first].label == "1"
    write_parquet(tmp_path / "x.parquet", [0, 1, 2] * 20, names=["cat", "dog"])
    with pytest.raises(DataError, match="the label '2' stands for no class; the file names 2, counted from 0"):
        read(tmp_path)


def test_a_class_name_that_no_row_has(tmp_path):
    write_parquet(tmp_path / "x.parquet", [0, 2] * 30, names=["cat", "bird", "dog"])
    with pytest.raises(DataError, match=r"no image has the label 'bird'.*\[data\] names = \{ 'cat' = 'cat', 'bird' = '', 'dog' = 'dog' \}"):
        read(tmp_path)
    assert read(tmp_path, names={"cat": "cat", "bird": "", "dog": "dog"}).classes == ("cat", "dog")
