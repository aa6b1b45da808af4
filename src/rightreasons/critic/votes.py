"""Combines several votes on one image, each with permuted segment IDs, into one verdict per segment, and queues verdicts for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.critic.parse import SEGMENT_NAME
from rightreasons.records import HUMAN, Critique, Segmentation, Selection, Value, Verdict, settle_verdicts

# Why a segment waits of which nothing is known but that a person is to judge it.
NOT_JUDGED = "not judged yet"
UNSURE: Value = "unsure"


@dataclass(frozen=True)
class Waiting:
    """A segment that a person should look at: why, its share of the positive effect, and how uncertain its verdict is (0 to 1)."""

    index: int
    segment: int
    value: Value
    reason: str
    share: float
    p: float
    uncertainty: float

    @property
    def weight(self) -> float:
        """The key by which the queue is sorted."""
        return self.share * self.uncertainty


def draw_permutation(seed: int, index: int, vote: int) -> int:
    """The seed of the permutation in one vote on one image; 0, no permutation, in the first, so that more votes reuse the answer of a single one."""
    return 0 if vote == 0 else int(torch.randint(1, 2**31 - 1, (), generator=seeded(seed, "votes", index, vote)))


def permute_segments(count: int, permutation: int) -> tuple[int, ...]:
    """The segments that are shown as S1, S2, ...; in their own order if ``permutation`` is 0."""
    order = torch.arange(count) if permutation == 0 else torch.randperm(count, generator=torch.Generator().manual_seed(permutation))
    return tuple(order.tolist())


def renumber(segments: Int[Tensor, "height width"], order: Sequence[int]) -> Int[Tensor, "height width"]:
    """The map in which segment ``order[0]`` becomes 0, ``order[1]`` becomes 1, ...; -1 stays. IDs and colours follow from the number."""
    shown = torch.full((len(order) + 1,), -1, dtype=segments.dtype)
    shown[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order), dtype=segments.dtype)
    return shown[segments.long()]


def restore_names(text: str, order: Sequence[int]) -> str:
    """A vote's words with every segment named as in the first vote. Names of segments that do not exist stay."""
    names = {f"S{shown + 1}": f"S{segment + 1}" for shown, segment in enumerate(order)}
    return SEGMENT_NAME.sub(lambda found: names.get(found.group(), found.group()), text)


def restore_vote(critique: Critique, verdicts: Sequence[Verdict], order: Sequence[int]) -> tuple[Critique, list[Verdict]]:
    """A vote's words and verdicts with the segments' own numbers, in their order."""
    mapped = [replace(verdict, segment=order[verdict.segment]) for verdict in verdicts]
    return replace(critique, text=restore_names(critique.text, order)), sorted(mapped, key=lambda verdict: verdict.segment)


def probability(values: Sequence[Value]) -> float:
    """p = (spurious + 1/2) / (n + 1), where unsure counts half a vote; 1/2 without votes."""
    spurious = sum({"spurious": 1.0, "unsure": 0.5}.get(value, 0.0) for value in values)
    return (spurious + 0.5) / (len(values) + 1)


def count_votes(votes: Sequence[Sequence[Verdict]]) -> list[Verdict]:
    """One verdict per segment from the votes on one image, which all have the segments in the same order. An unusable answer is not a vote."""
    return [_count(ballots) for ballots in zip(*votes, strict=True)]


def _count(ballots: Sequence[Verdict]) -> Verdict:
    valid = [ballot for ballot in ballots if ballot.problem is None]
    if not valid:
        return replace(ballots[0], p=probability([]))
    # A verdict that contradicts its own critique counts as unsure.
    p = probability(["unsure" if ballot.doubt else ballot.value for ballot in valid])
    value: Value = "spurious" if p > 0.5 else "relevant" if p < 0.5 else "unsure"
    values = [ballot.value for ballot in valid]
    contradictions = [ballot.doubt for ballot in valid if ballot.doubt]
    doubt = contradictions[0] if contradictions else UNSURE if value == "unsure" else None
    if len(set(values)) > 1:
        doubt = "votes differ: " + ", ".join(f"{values.count(kind)} {kind}" for kind in ("spurious", "relevant", "unsure") if kind in values)
    return replace(valid[0], value=value, p=p, doubt=doubt)


def find_unread(verdicts: Iterable[Verdict]) -> dict[int, str]:
    """The images with a segment of which a model's answer could not be read, also that on a close-up, and what was wrong with it."""
    return {
        verdict.index: problem
        for verdict in settle_verdicts(verdicts).values()
        if (problem := verdict.problem or verdict.close_up) is not None and problem.startswith("malformed")
    }


def queue_verdicts(verdicts: Iterable[Verdict], selection: Selection, segmentation: Segmentation) -> list[Waiting]:
    """The segments that wait for a person, most important first: without a verdict, unsure, with differing votes, or against the critique."""
    row_of: Mapping[int, int] = {index: row for row, index in enumerate(selection.indices.tolist())}
    shares = segmentation.shares.tolist()
    settled = settle_verdicts(verdicts).values()
    waiting = (find_waiting(verdict, shares[row_of[verdict.index]][verdict.segment]) for verdict in settled)
    return sorted((entry for entry in waiting if entry is not None), key=lambda entry: (-entry.weight, entry.index, entry.segment))


def find_waiting(verdict: Verdict, share: float) -> Waiting | None:
    """Why the segment of a settled verdict waits for a person, or None if it does not. ``share`` is its share of the positive effect."""
    reason = NOT_JUDGED if verdict.is_open else verdict.problem or verdict.doubt
    if reason is None or verdict.source == HUMAN:
        return None
    p = 0.5 if verdict.p is None else verdict.p
    uncertainty = 1.0 if verdict.contradicted else 1 - abs(2 * p - 1)
    return Waiting(verdict.index, verdict.segment, verdict.value, reason, share, p, uncertainty)
