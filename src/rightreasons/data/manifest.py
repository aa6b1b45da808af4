"""The manifest lists every image of every split by its hash, and shows an image that is in two splits or under two labels.

It goes into the run folder, and has no names: a file's name can be a patient's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from rightreasons.common.progress import Advance
from rightreasons.data.loading import count_images, read_batches
from rightreasons.data.task import Fingerprint, hash_tensors

# The splits that must have no image in common; a task may have others, such as the validation images drawn once more.
APART = ("train", "validation", "test")


@dataclass(frozen=True)
class Listed:
    """One line of the manifest: the image at ``index`` of a split."""

    split: str
    index: int
    label: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Leak:
    """One image, by its hash, and where it is, several times: (split, index)."""

    sha256: str
    places: tuple[tuple[str, int], ...]


def list_hashes(splits: Mapping[str, Dataset], advance: Advance) -> list[Listed]:
    """Every image of every split. A dataset without ``fingerprints`` is read, and its pixels are hashed."""
    total = sum(count_images(dataset) for dataset in splits.values())
    listed: list[Listed] = []
    advance(0, total)
    for split, dataset in splits.items():
        for item in _fingerprints(dataset, range(count_images(dataset))):
            listed.append(Listed(split, item.index, item.label, item.bytes, item.sha256))
            if len(listed) % 100 == 0 or len(listed) == total:
                advance(len(listed), total)
    return listed


def compare_manifests(before: Sequence[Listed], now: Sequence[Listed]) -> str | None:
    """What changed between two listings, in words; None where every image is where it was."""
    said = []
    for split in dict.fromkeys(line.split for line in (*before, *now)):
        old, new = ([line for line in lines if line.split == split] for lines in (before, now))
        if old == new:
            continue
        known, found = Counter(line.sha256 for line in old), Counter(line.sha256 for line in new)
        parts = [f"{(more - less).total()} {what}" for what, more, less in (("gone", known, found), ("new", found, known)) if more - less]
        said.append(f"{split}: {' and '.join(parts) if parts else 'the same images in another order or with other labels'}")
    return "; ".join(said) or None


def find_changed(dataset: Dataset, split: str, listed: Sequence[Listed], indices: Sequence[int]) -> list[int]:
    """Which of these images of a split are no longer the ones that were listed."""
    known = {line.index: line.sha256 for line in listed if line.split == split}
    return [item.index for item in _fingerprints(dataset, indices) if known.get(item.index) != item.sha256]


def find_leaks(listed: Iterable[Listed]) -> list[Leak]:
    """The images that are in more than one of the three splits."""
    found = _by_hash(listed).items()
    return [Leak(digest, tuple((line.split, line.index) for line in same)) for digest, same in found if len({line.split for line in same}) > 1]


def find_conflicts(listed: Iterable[Listed]) -> list[Leak]:
    """The images that have several labels within one split, and where they are in it."""
    found = []
    for digest, same in _by_hash(listed).items():
        for split in APART:
            own = [line for line in same if line.split == split]
            if len({line.label for line in own}) > 1:
                found.append(Leak(digest, tuple((split, line.index) for line in own)))
    return found


def describe_leaks(leaks: Sequence[Leak], splits: Mapping[str, Dataset]) -> str:
    """A sentence for people, with the names of one such pair."""
    first = leaks[0].places[0]
    other = next(place for place in leaks[0].places if place[0] != first[0])
    pair = " and ".join(f"{name_image(splits[split], index)} ({split})" for split, index in (first, other))
    return (
        f"{len(leaks)} {'image is' if len(leaks) == 1 else 'images are'} in more than one split, byte for byte, such as {pair}: "
        "scores on them say nothing of new images; take them out of one"
    )


def describe_conflicts(conflicts: Sequence[Leak], listed: Iterable[Listed], splits: Mapping[str, Dataset], classes: Sequence[str]) -> str:
    """A sentence for people, with the names and classes of one such pair."""
    labels = {(line.split, line.index): classes[line.label] for line in listed}
    first = conflicts[0].places[0]
    other = next(place for place in conflicts[0].places if labels[place] != labels[first])
    pair = " and ".join(f"{name_image(splits[place[0]], place[1])} ({labels[place]})" for place in (first, other))
    return (
        f"{len(conflicts)} {'image is' if len(conflicts) == 1 else 'images are'} under two labels, byte for byte, such as {pair} in {first[0]}: "
        "one of the labels is wrong, or the image does not tell the class; take away what is wrong"
    )


def name_image(dataset: Dataset, index: int) -> str:
    """The file of an image, where it is one; else its number."""
    entries = getattr(dataset, "entries", None)
    return f"image {index}" if entries is None else entries[index].name


def hash_manifest(listed: Iterable[Listed]) -> str:
    """SHA-256 over all lines."""
    digest = hashlib.sha256()
    for line in listed:
        digest.update(repr(line).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _by_hash(listed: Iterable[Listed]) -> dict[str, list[Listed]]:
    """The images of the three splits that are there more than once."""
    found: dict[str, list[Listed]] = {}
    for line in listed:
        if line.split in APART and line.sha256:
            found.setdefault(line.sha256, []).append(line)
    return {digest: same for digest, same in found.items() if len(same) > 1}


def _fingerprints(dataset: Dataset, indices: Sequence[int]) -> Iterable[Fingerprint]:
    return dataset.fingerprints(indices) if hasattr(dataset, "fingerprints") else _hash_items(dataset, indices)  # pyright: ignore[reportAttributeAccessIssue]


def _hash_items(dataset: Dataset, indices: Sequence[int]) -> Iterator[Fingerprint]:
    for batch in read_batches(dataset, indices=indices):
        for index, image, label in zip(batch.indices.tolist(), batch.images, batch.labels.tolist(), strict=True):
            yield Fingerprint(index, label, image.nbytes, hash_tensors(image))
