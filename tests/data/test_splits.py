"""Splits made here: no patient in two of them, every class in each, and shares as near as whole patients allow."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rightreasons.data.splits import fill_splits, find_splits, name_split, split_of_path
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


def test_a_split_that_is_given_stays():
    given = ["train"] * 40 + ["test"] * 10
    splits = fill_splits(given, [0, 1] * 25, [None] * 50, seed=0)
    assert splits[40:] == ["test"] * 10 and Counter(splits[:40]) == {"train": 34, "validation": 6}
    with pytest.raises(DataError, match="1 of 50 images have no split"):
        fill_splits([None, *given[1:]], [0, 1] * 25, [None] * 50, seed=0)
    with pytest.raises(DataError, match="no training split, only test"):
        fill_splits(["test"] * 50, [0, 1] * 25, [None] * 50, seed=0)


def test_what_splits_are_called():
    assert [name_split(word, where="") for word in (" Train", "0", "0.0", "VAL", "1", "dev", "te", "2.0")] == [
        *["train"] * 3, *["validation"] * 3, *["test"] * 2
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "splits"),
    [
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
