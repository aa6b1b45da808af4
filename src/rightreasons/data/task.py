"""A task: images and labels in three splits, and apart from them what only evaluation may know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch
from rightreasons.records import GroundTruth


@dataclass(frozen=True)
class Task:
    """``splits`` ("train", "validation", "test") yield images and labels and nothing else.

    ``truth`` has groups and masks per split, where they are known; ``unbiased_train`` is the training split without the
    correlation, if the task can make it. Only scoring, studies and the simulated critic see these two. ``manifest`` identifies the data.

    For a folder, ``told`` says as what it was read and why, and ``problems`` what a person should know about it; ``skipped`` has the files that
    are left out, and why, and gains those that turn out to be unreadable. ``not_read`` counts the other files by kind. ``sizes`` counts
    the sizes ("640x480") of the files whose headers were read; ``windows`` has what is black and what is white in images of more than 8 bits, by
    their kind in words.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Dataset]
    manifest: str
    truth: Mapping[str, GroundTruth] = field(default_factory=dict)
    unbiased_train: Dataset | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    told: str = "a built-in task"
    problems: Sequence[str] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    not_read: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """The identity of one image of a dataset: its index, label, length in bytes and SHA-256 ("" if it cannot be read)."""

    index: int
    label: int
    bytes: int
    sha256: str


class TensorImages(Dataset):
    """Images held in memory as bytes, read as floats in 0 to 1."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    def read(self, indices: Tensor) -> Batch:
        """Many at once: one slice rather than one item at a time."""
        return Batch(indices, self.images[indices].float() / 255, self.labels[indices])

    def fingerprints(self, indices: Sequence[int]) -> Iterator[Fingerprint]:
        """Index, label, length and SHA-256 of these images' pixels."""
        labels, pixels = self.labels.tolist(), self.images.contiguous().view(len(self), -1).numpy()
        for index in indices:
            yield Fingerprint(index, labels[index], pixels[index].nbytes, hashlib.sha256(pixels[index]).hexdigest())


def hash_tensors(*tensors: Tensor) -> str:
    """SHA-256 over the bytes of tensors, for a manifest."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
