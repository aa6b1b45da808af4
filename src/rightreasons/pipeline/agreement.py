"""Finds the verdicts that the critic's own verdicts on like segments contradict, and lets them wait for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rightreasons.common.memory import BATCH_BYTES, LARGEST_BATCH, how_many
from rightreasons.common.progress import Advance, Reporter
from rightreasons.critic.agreement import describe_looks, weigh_verdicts
from rightreasons.data.loading import StoredImages
from rightreasons.explain.evidence import Evidence
from rightreasons.networks.places import NotReached
from rightreasons.records import Criticism, Segmentation, Verdict
from rightreasons.repair.propagate import Pool, open_features

# A verdict whose probability is below this is contradicted.
LEAST_PROBABILITY = 0.2
CONTRADICTED = "it was called {}, but segments that look alike were judged otherwise"


def contradict_verdicts(
    model: nn.Module, evidence: Evidence, verdicts: Sequence[Verdict], criticism: Criticism, reporter: Reporter
) -> tuple[list[Verdict], Criticism]:
    """The verdicts, of which those that like segments contradict count as unsure; and what the pattern of all tells about the critic.

    Nothing changes where the verdicts cannot be compared, nor what a person said.
    """
    row_of = {index: row for row, index in enumerate(evidence.selection.indices.tolist())}
    compared = [place for place, verdict in enumerate(verdicts) if verdict.is_vote and verdict.value != "unsure"]
    rows = torch.tensor([row_of[verdicts[place].index] for place in compared], dtype=torch.int64)
    segments = torch.tensor([verdicts[place].segment for place in compared], dtype=torch.int64)
    said = torch.tensor([verdicts[place].value == "spurious" for place in compared], dtype=torch.bool)
    if not said.any() or said.all():
        return list(verdicts), criticism
    with reporter.stage("agreement") as advance:
        pool = open_features(model, evidence.images[:2])
        try:
            features = _describe_segments(pool, evidence.images, evidence.segmentation, advance)
        except NotReached:  # the path of some images leads by: the picture alone
            features = _describe_segments(None, evidence.images, evidence.segmentation, advance)
        weighed = weigh_verdicts(features[rows, segments], said, rows)
    if weighed is None:
        return list(verdicts), criticism
    of_said = torch.where(said, weighed.probability, 1 - weighed.probability)
    changed = list(verdicts)
    for place, probability in zip(compared, of_said.tolist(), strict=True):
        if probability < LEAST_PROBABILITY:
            value = verdicts[place].value
            doubt = CONTRADICTED.format(value)
            changed[place] = replace(verdicts[place], value="unsure", contradicted=value, doubt=doubt)
    count = sum(verdict.contradicted is not None for verdict in changed)
    told = {"sensitivity": weighed.sensitivity, "specificity": weighed.specificity, "contradicted": count}
    if count:
        reporter.note(
            f"the verdicts on like segments contradict {count} of {len(compared)} verdicts, which count as unsure and wait for a person. By their "
            f"pattern the critic recognises {weighed.sensitivity:.0%} of what is spurious and {weighed.specificity:.0%} of what is not"
        )
    return changed, replace(criticism, agreement=told)


def _describe_segments(
    pool: Pool | None, images: StoredImages, segmentation: Segmentation, advance: Advance
) -> Float[Tensor, "image segment feature"]:
    """What the network and the picture have where each segment has its effect; the picture alone without a ``pool`` of the network's features."""
    count = segmentation.shares.shape[1]
    size = how_many(images[:1].nbytes * count, BATCH_BYTES, LARGEST_BATCH)
    parts = []
    for start in range(0, len(images), size):
        part, rows = images[start : start + size], slice(start, start + size)
        masks = torch.stack([(segmentation.segments[rows] == segment) & segmentation.effect[rows] for segment in range(count)], 1)
        looks = describe_looks(part, masks)
        parts.append(looks if pool is None else torch.cat([pool(part, masks), looks], 2))
        advance(min(start + size, len(images)), len(images))
    return torch.cat(parts)
