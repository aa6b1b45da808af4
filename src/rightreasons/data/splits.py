"""The three splits: as the data have them, or made here: seeded, class by class, and with all images of a patient in one of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch

from rightreasons.common.seeds import seeded
from rightreasons.errors import DataError

# The names that people and published data sets give to the splits.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "tr", "0"),
    "validation": ("validation", "val", "valid", "va", "dev", "1"),
    "test": ("test", "testing", "te", "2"),
}
# Words of two letters, which are languages as well ("tr" is Turkish and "te" Telugu).
SHORT_SPLITS = frozenset(word for words in SPLITS.values() for word in words if len(word) == 2)
# "trainset", "testdata": what follows the word for a split without a mark between them.
_ENDING = re.compile(r"(?<=[a-z]{3})(set|data|images|imgs)$")
# The share of the training images that becomes a split made here.
HELD_OUT = 0.15


def name_split(word: str, *, where: str) -> str:
    """Which of the three splits a word means. Raises DataError, which begins with ``where``, for any other word."""
    plain = word.strip().lower().removesuffix(".0")
    for split, words in SPLITS.items():
        if plain in words:
            return split
    valid = "; ".join(f"{split}: {', '.join(words)}" for split, words in SPLITS.items())
    raise DataError(f"{where}: the split {word!r} is not known; known are {valid}")


def is_split(word: str) -> bool:
    """Whether ``name_split`` knows a word."""
    return any(word.strip().lower().removesuffix(".0") in words for words in SPLITS.values())


def find_splits(name: str) -> set[str]:
    """The splits that the words of a file's or folder's own name mean ("training_set-00000"). Numbers and words of two letters mean none."""
    words = {_ENDING.sub("", word) for word in split_words(name)}
    return {split for split, called in SPLITS.items() if any(len(word) > 2 and word in called for word in words)}


def split_of_path(path: str) -> str | None:
    """The split that a path means: by its last part that has a word for one, which is the file's own name before its folders.

    Raises DataError if that part speaks of several splits ("train_test.parquet").
    """
    for part in reversed(path.split("/")):
        found = find_splits(part)
        if len(found) > 1:
            raise DataError(f"{path}: the name {part!r} speaks of {' and '.join(sorted(found))}: let it name one split, or give a column 'split'")
        if found:
            return found.pop()
    return None


def split_words(name: str) -> list[str]:
    """The words of a name in lower case, without digits: "TrainSet-01" has "train" and "set"."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]", name)]


def fill_splits(given: Sequence[str | None], labels: Sequence[int], patients: Sequence[str | None], *, seed: int) -> list[str]:
    """The split of each image: as given; where there is no validation or no test split, a part of the training images becomes it.

    Of every class about 15 % is held out for each, drawn by ``seed``. Images of one patient stay together, so that their share of a class is
    met as nearly as whole patients allow. Raises DataError if some images have a split and others have none.
    """
    known = {split for split in given if split is not None}
    if known and None in given:
        count = sum(split is None for split in given)
        raise DataError(f"{count} of {len(given)} images have no split and the others have one: give every image its split, or none")
    if known and "train" not in known:
        raise DataError(f"there is no training split, only {' and '.join(sorted(known))}: name one of {', '.join(SPLITS['train'])}")
    splits = [split or "train" for split in given]
    for split in ("validation", "test"):
        if split not in known:
            share = HELD_OUT if split == "validation" or "validation" in known else HELD_OUT / (1 - HELD_OUT)
            for row in _hold_out([row for row, name in enumerate(splits) if name == "train"], labels, patients, share, seed, split):
                splits[row] = split
    return splits


def shared_patients(splits: Sequence[str], patients: Sequence[str | None]) -> list[str]:
    """The patients whose images are in more than one split."""
    seen: dict[str, set[str]] = defaultdict(set)
    for split, patient in zip(splits, patients, strict=True):
        if patient is not None:
            seen[patient].add(split)
    return sorted(patient for patient, where in seen.items() if len(where) > 1)


def _hold_out(rows: Sequence[int], labels: Sequence[int], patients: Sequence[str | None], share: float, seed: int, split: str) -> list[int]:
    """Rows whose patients (an image without one is its own) make up about ``share`` of each class, and at least one of each where there are two."""
    members: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        members[patients[row] if patients[row] is not None else row].append(row)
    total = Counter(labels[row] for row in rows)
    missing = {label: max(1.0, round(share * count)) for label, count in total.items()}
    left = Counter(label for own in members.values() for label in {labels[row] for row in own})
    everybody = list(members.values())
    order = [everybody[i] for i in torch.randperm(len(everybody), generator=seeded(seed, "split", split)).tolist()]
    # Whoever has many images goes first: what is still missing is filled up by those who have few.
    held = []
    for own in sorted(order, key=len, reverse=True):
        counts = Counter(labels[row] for row in own) if len(own) > 1 else {labels[own[0]]: 1}
        fits = sum(min(count, missing[label]) for label, count in counts.items()) > len(own) / 2
        if fits and all(left[label] > 1 for label in counts):
            held += own
            for label, count in counts.items():
                missing[label] = max(0.0, missing[label] - count)
                left[label] -= 1
    return held
