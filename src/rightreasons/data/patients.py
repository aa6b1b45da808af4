"""Finds images that belong together by the folders and names of the files, if no column says which do.

If one patient has images in training and test, the test is not independent. Images that look like one patient's are kept together when splits are
made; if they are not one patient's, the splits are only a little less random.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

# A word for a person and a number, as a folder or at the start of a name: patient00001, sub-01, person12_bacteria.
_PERSON = re.compile(r"(patient|pat|subject|subj|sub|person|participant|donor|case|pt)s?[ _-]*\d+(?![a-z0-9])", re.IGNORECASE)
# One of two eyes, knees or breasts: 10_left.jpeg, 9000001R.png.
_SIDE = re.compile(r"(?P<who>.*\d.*?)[ _-]*(left|right|(?<=[\d _-])(l|r|od|os|lcc|rcc|lmlo|rmlo))$", re.IGNORECASE)
# A number before a mark, and more behind it: P123_2, 00000013_005, but not TCGA-05-4244.
_NUMBERED = re.compile(r"(?P<who>[a-z]{0,4}\d+)[_-].+$", re.IGNORECASE)
# The separators between the parts of a name, and the number of parts that are read.
_PARTS = re.compile(r"[_\-. ]+")
_MOST_PARTS = 8
# Folders that part files for other reasons than whose they are.
_NO_PERSON = re.compile(r"(images?|imgs?|part|batch|fold|set|data|folder|dir|chunk|shard|masks?|raw|png|jpe?g)[ _-]*\d*$", re.IGNORECASE)
# With fewer folders or beginnings in a class than this, they are probably not patients, and too few to draw splits from.
_FEWEST = 4
# A beginning of names that more than this share of a class has comes from a camera or a year, not from a patient.
_GREATEST_SHARE = 0.5


@dataclass(frozen=True)
class Guess:
    """Of each image, whose it seems to be (None if nothing tells); and in words what told it."""

    patients: list[str | None]
    told: str


def guess_patients(names: Sequence[str], labels: Sequence[str], inner: Sequence[str] | None) -> Guess | None:
    """Whose images the files ``names`` are, None if nothing tells. ``inner`` has the folders between each file and its class, where there are any."""
    stems = [posixpath.splitext(posixpath.basename(name))[0] for name in names]
    sided, numbered = ([match["who"].lower() if (match := pattern.match(stem)) else None for stem in stems] for pattern in (_SIDE, _NUMBERED))
    folders = _inner_folders(inner, labels) if inner is not None else None
    guesses = {
        "words such as 'patient12' in the paths": _if_repeated([_person(name) for name in names]),
        "the folders within the classes": folders,
        "names that differ in left and right": _if_repeated(sided),
        "names that begin with the same number": numbered if folders is None and _are_many(numbered, labels) else None,
    }
    found: list[str | None] = [None] * len(names)
    told = []
    for words, guess in guesses.items():
        if guess is not None and any(who is not None and known is None for who, known in zip(guess, found, strict=True)):
            found = [who if known is None else known for who, known in zip(guess, found, strict=True)]
            told.append(words)
    return Guess(found, " and ".join(told)) if told else None


def shared_part(names: Sequence[str], labels: Sequence[str]) -> tuple[str, str, str] | None:
    """A part of names that several images of a class share, as persons' would be, with two such names; None if there is none.

    Of several parts it is the one with the most values. It may be a person, a slice or a day: too little to draw splits by, and enough to be told.
    """
    parts = [_PARTS.split(posixpath.splitext(posixpath.basename(name))[0]) for name in names]
    best: list[str | None] = []
    for place in range(min(_MOST_PARTS, max(map(len, parts), default=0))):
        found = [own[place].lower() if len(own) > max(1, place) and own[place] else None for own in parts]
        # What repeats between classes alone is a number within the class: cat.1.jpg and dog.1.jpg.
        within = [None if part is None else f"{label}/{part}" for part, label in zip(found, labels, strict=True)]
        if _are_many(within, labels) and len({*found}) > len({*best}):
            best = found
    if not best:
        return None
    counts = Counter((part, label) for part, label in zip(best, labels, strict=True) if part is not None)
    shared = next(pair for pair, count in counts.items() if count > 1)
    first, second, *_ = (name for name, *pair in zip(names, best, labels, strict=True) if tuple(pair) == shared)
    return str(shared[0]), first, second


def is_person(folder: str) -> bool:
    """Whether a folder is called after a patient."""
    return _PERSON.match(folder) is not None


def split_folders_apart(inner: Sequence[str], labels: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The folders within classes whose images are in more than one split."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for folder, label, split in zip(inner, labels, splits, strict=True):
        if folder:
            seen[label, folder].add(split)
    several = Counter(label for label, _ in seen)
    return sorted(f"{label}/{folder}" for (label, folder), where in seen.items() if len(where) > 1 and several[label] > 1)


def _person(name: str) -> str | None:
    """The word and number of a person in a path: a folder's first, since a file may be numbered within it."""
    found = (match for part in name.split("/") if (match := _PERSON.match(part)))
    first = next(found, None)
    return first[0].lower() if first is not None else None


def _inner_folders(inner: Sequence[str], labels: Sequence[str]) -> list[str | None] | None:
    """The folder of each image right below its class, or deeper where there is but one; None if these are too few to be patients."""
    parts = [folder.split("/") if folder else [] for folder in inner]
    for depth in range(max(map(len, parts), default=0)):
        found = [own[depth] if len(own) > depth and not _NO_PERSON.match(own[depth]) else None for own in parts]
        if _are_many(found, labels):
            return found
    return None


def _if_repeated(found: list[str | None]) -> list[str | None] | None:
    """``found`` if somebody has several images."""
    counts = Counter(who for who in found if who is not None)
    return found if any(count > 1 for count in counts.values()) else None


def _are_many(found: Sequence[str | None], labels: Sequence[str]) -> bool:
    """Whether most images have somebody, most of whom have several; and each class has some of them, none of whom has most of its images."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for who, label in zip(found, labels, strict=True):
        if who is not None:
            counts[label][who] += 1
    known = sum(own.total() for own in counts.values())
    repeated = sum(count for count in sum(counts.values(), Counter()).values() if count > 1)
    if 2 * known <= len(found) or 2 * repeated < known:
        return False
    return all(len(counts[label]) >= _FEWEST and max(counts[label].values()) <= _GREATEST_SHARE * counts[label].total() for label in set(labels))
