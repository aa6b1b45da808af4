"""Chooses the training images to inspect, in one streaming pass.

Shortcuts are easier to learn than core features, so a model is most certain on images where it uses one (docs/method.md, section 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rightreasons.networks.answers import Answers
from rightreasons.networks.predictions import Predictions
from rightreasons.records import Selection


def select_images(
    batches: Iterable[Predictions],
    *,
    strategy: str,
    size: int,
    quota: int | None,
    classes: int,
    generator: torch.Generator,
    answers: Answers | None = None,
) -> Selection:
    """The ``size`` images that rank lowest under ``strategy``: by rising output entropy, by falling entropy, or at random.

    With a ``quota`` every class gives at most that many, and places left over go to the lowest of the rest.
    At most ``size`` candidates are held per class, so memory does not depend on the number of images. ``answers`` counts the model's answers to all.
    """
    rank = _RANKS[strategy]
    kept = {label: _Candidates.empty() for label in (range(classes) if quota is not None else [-1])}
    for batch in batches:
        if answers is not None:
            answers.add(batch.labels, batch.predicted)
        fresh = _Candidates(rank(batch.entropy, generator), batch.indices, batch.labels, batch.entropy)
        for label in kept:
            chosen = fresh if label == -1 else fresh.where(batch.labels == label)
            kept[label] = kept[label].joined(chosen).lowest(size)
    return _fill(list(kept.values()), size, size if quota is None else quota, strategy)


def _by_low_entropy(entropy: Tensor, generator: torch.Generator) -> Tensor:
    return entropy


def _by_high_entropy(entropy: Tensor, generator: torch.Generator) -> Tensor:
    return -entropy


def _at_random(entropy: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(entropy.shape, generator=generator)


_RANKS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "low-entropy": _by_low_entropy,
    "high-entropy": _by_high_entropy,
    "random": _at_random,
}


class _Candidates:
    """The best so far, as parallel vectors sorted by rank."""

    def __init__(
        self, rank: Float[Tensor, " image"], indices: Int[Tensor, " image"], labels: Int[Tensor, " image"], entropy: Float[Tensor, " image"]
    ) -> None:
        self.columns = (rank, indices, labels, entropy)

    @classmethod
    def empty(cls) -> _Candidates:
        return cls(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))

    def __len__(self) -> int:
        return len(self.columns[0])

    def where(self, chosen: Tensor) -> _Candidates:
        return _Candidates(*(column[chosen] for column in self.columns))

    def joined(self, other: _Candidates) -> _Candidates:
        return _Candidates(*(torch.cat(pair) for pair in zip(self.columns, other.columns, strict=True)))

    def lowest(self, size: int) -> _Candidates:
        # Stable: among equal ranks the earlier image stays, so the result does not depend on the batch size.
        return self.where(self.columns[0].argsort(stable=True)[:size])


def _fill(buckets: list[_Candidates], size: int, quota: int, strategy: str) -> Selection:
    """At most ``quota`` images of each class, then the places left over, by rank."""
    first = _Candidates.empty()
    rest = _Candidates.empty()
    for bucket in buckets:
        order = torch.arange(len(bucket))
        first = first.joined(bucket.where(order < quota))
        rest = rest.joined(bucket.where(order >= quota))
    _, indices, labels, entropy = first.joined(rest.lowest(max(0, size - len(first)))).lowest(size).columns
    return Selection(strategy, indices, labels, entropy)
