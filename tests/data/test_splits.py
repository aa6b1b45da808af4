"""Splits made here: no patient in two of them, every class in each, and shares as near as whole patients allow."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rightreasons.data.splits import fill_splits, find_splits, is_split, name_split, shared_patients, split_of_path
from rightreasons.errors import DataError


def shares(splits: list[str], labels: list[int]) -> dict[tuple[str, int], float]:
    total, counts = Counter(labels), Counter(zip(splits, labels, strict=True))
    return {key: count / total[key[1]] for key, count in counts.items()}


@pytest.mark.parametrize("seed", range(5))
def test_without_patients_every_class_has_its_share(seed):
    labels = [0] * 400 + [1] * 100 + [2] * 20
    splits = fill_splits([None] * 520, labels, [None] * 520, seed=seed)
    found = shares(splits, labels)
    for label in range(3):
        for split in ("validation", "test"):
            assert found[split, label] == pytest.approx(0.15, abs=0.01)
    assert splits == fill_splits([None] * 520, labels, [None] * 520, seed=seed)
    assert splits != fill_splits([None] * 520, labels, [None] * 520, seed=seed + 1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("giant", [False, True])
def test_patients_stay_together_though_they_have_both_classes(seed, giant):
    draw = random.Random(seed)
    labels, patients = [], []
    for person in range(60):
        for _ in range(draw.randint(1, 8)):
            labels.append(int(draw.random() < 0.3))
            patients.append(f"P{person}")
    if giant:  # one patient has half of the images
        count = len(labels)
        labels += [int(draw.random() < 0.3) for _ in range(count)]
        patients += ["giant"] * count
    splits = fill_splits([None] * len(labels), labels, patients, seed=seed)
    where: dict[str, set[str]] = {}
    for split, patient in zip(splits, patients, strict=True):
        where.setdefault(patient, set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    if giant:
        assert where["giant"] == {"train"}, "who has half of the images is no sample of the others"
    found = shares(splits, labels)
    for label in (0, 1):
        for split in ("validation", "test"):
            assert 0.08 <= found[split, label] <= 0.22, found


@pytest.mark.parametrize(("images", "expected"), [(3, {"train": 1, "validation": 1, "test": 1}), (2, {"train": 1, "validation": 1})])
def test_a_class_of_few_images(images, expected):
    labels = [0] * 50 + [1] * images
    splits = fill_splits([None] * len(labels), labels, [None] * len(labels), seed=0)
    assert Counter(splits[50:]) == expected


def test_a_seed_gives_the_same_split_in_every_version():
    """A run folder of an earlier version goes on only if its images are drawn as they were."""
    splits = fill_splits([None] * 20, [0, 1] * 10, [None] * 20, seed=7)
    assert [row for row, split in enumerate(splits) if split == "validation"] == [6, 11, 12, 19]
    assert [row for row, split in enumerate(splits) if split == "test"] == [3, 18]


def test_two_images_of_each_patient():
    """Two eyes, two knees: 15 % of forty images are three whole patients."""
    splits = fill_splits([None] * 40, [0] * 40, [f"P{row // 2}" for row in range(40)], seed=0)
    assert Counter(splits) == {"train": 28, "validation": 6, "test": 6}


def test_who_has_many_images_is_drawn_first():
    """Those with few fill up what is missing. The other way round nobody with eight images is held out, and a third of the share is missing."""
    patients = [f"P{row // 8}" for row in range(40)] + [f"single {row}" for row in range(5)]
    splits = fill_splits([None] * 45, [0] * 45, patients, seed=0)
    assert Counter(splits) == {"train": 29, "validation": 8, "test": 8}


@pytest.mark.parametrize("seed", range(5))
def test_the_last_patient_of_a_class_is_trained_on(seed):
    """Both patients of class 1 would fit by their images of class 0."""
    labels, patients = [0] * 34, [None] * 34
    for person in ("A", "B"):
        labels += [1, 0, 0, 0]
        patients += [person] * 4
    splits = fill_splits([None] * 42, labels, patients, seed=seed)
    assert [splits[row] for row, label in enumerate(labels) if label == 1].count("train") == 1


def test_all_but_one_patient_of_a_class_can_be_held_out():
    """Ten of twelve images are one patient's, and 15 % are two: those of the two others."""
    labels, patients = [1] * 12 + [0] * 40, ["giant"] * 10 + [None] * 42
    splits = fill_splits([None] * 52, labels, patients, seed=0)
    assert splits[:12] == ["train"] * 10 + ["validation"] * 2


def test_a_split_that_is_given_stays():
    given = ["train"] * 40 + ["test"] * 10
    splits = fill_splits(given, [0, 1] * 25, [None] * 50, seed=0)
    assert splits[40:] == ["test"] * 10 and Counter(splits[:40]) == {"train": 34, "validation": 6}
    with pytest.raises(DataError, match="1 of 50 images have no split"):
        fill_splits([None, *given[1:]], [0, 1] * 25, [None] * 50, seed=0)
    with pytest.raises(DataError, match="no training split, only test"):
        fill_splits(["test"] * 50, [0, 1] * 25, [None] * 50, seed=0)
    with pytest.raises(DataError, match="only test and validation: name one of train, training, tr, 0$"):
        fill_splits(["test", "validation"] * 25, [0, 1] * 25, [None] * 50, seed=0)


def test_a_share_is_of_the_images_that_are_not_given_elsewhere():
    """Where only the test is missing it is 15 % of the training images; where both are, each is 15 % of all."""
    given = ["train"] * 100 + ["validation"] * 10
    assert Counter(fill_splits(given, [0] * 110, [None] * 110, seed=0)) == {"train": 85, "validation": 10, "test": 15}
    assert Counter(fill_splits([None] * 100, [0] * 100, [None] * 100, seed=0)) == {"train": 70, "validation": 15, "test": 15}


def test_patients_in_two_splits():
    splits = ["train", "train", "test", "validation", "test", "train"]
    assert shared_patients(splits, ["B", "C", "B", "A", "A", None]) == ["A", "B"]
    assert shared_patients(splits, ["A", "A", "B", "C", "B", "A"]) == [] == shared_patients(splits, [None] * 6), "an image without one is its own"
    with pytest.raises(ValueError, match="zip"):
        shared_patients(splits, ["A"])


def test_what_splits_are_called():
    assert [name_split(word, where="") for word in (" Train", "0", "0.0", "VAL", "1", "dev", "te", "2.0")] == [
        *["train"] * 3, *["validation"] * 3, *["test"] * 2
    ]  # fmt: skip

    known = "train: train, training, tr, 0; validation: validation, val, valid, va, dev, 1; test: test, testing, te, 2"
    with pytest.raises(DataError, match=f"^row 7: the split 'holdout' is not known; known are {known}$"):
        name_split("holdout", where="row 7")


def test_whether_a_word_is_a_split():
    assert all(is_split(word) for word in (" Train", "TEST ", "1.0", "va")) and not any(is_split(word) for word in ("", "3", "1.00", "left"))


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("TRAIN", {"train"}), ("testA", {"test"}),
        ("valid", {"validation"}), ("Training", {"train"}), ("training_set", {"train"}), ("testset", {"test"}), ("TrainData", {"train"}),
        ("val2017", {"validation"}), ("seg_train", {"train"}), ("stage_2_test_images", {"test"}), ("train-00000-of-00002", {"train"}),
        ("train_val", {"train", "validation"}), ("tr", set()), ("te", set()), ("labels", set()), ("0", set()), ("trains", set()), ("latest", set()),
    ],
)  # fmt: skip
def test_splits_in_names(name, splits):
    """A word for a split may stand anywhere in a name; "tr" and "te" are languages as well, and numbers are no splits."""
    assert find_splits(name) == splits


def test_a_file_s_own_name_goes_before_its_folders_and_the_nearest_folder_before_others():
    assert split_of_path("training_v2/test-00000.parquet") == "test" and split_of_path("train/old_test/data.parquet") == "test"
    assert split_of_path("training_data/shard-0.parquet") == "train" and split_of_path("data/0.parquet") is None
    with pytest.raises(DataError, match="speaks of test and train"):
        split_of_path("data/train_test.parquet")
