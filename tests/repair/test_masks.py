"""Eq. 7 with loops, and whose verdict counts."""

import itertools

import pytest
import torch

from rightreasons.records import Segmentation, Selection, Verdict
from rightreasons.repair.masks import build_masks, mask_segments


@pytest.fixture
def segmentation(generator) -> Segmentation:
    """Two segmented images with three and two segments, and one that has none."""
    segments = torch.randint(3, (3, 5, 6), generator=generator)
    segments[1] %= 2
    segments[2] = -1
    effect = torch.rand(3, 5, 6, generator=generator) > 0.4
    return Segmentation(
        segments, effect & (segments >= 0), torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0], [0, 0, 0]]), ("segmented", "segmented", "constant")
    )


SELECTION = Selection("random", torch.tensor([40, 7, 13]), torch.tensor([0, 1, 0]), torch.zeros(3))


def verdicts(*triples, source="model"):
    return [Verdict(index, segment, value, source) for index, segment, value in triples]


@pytest.mark.parametrize("kind", ["segment", "effect"])
def test_masks_by_hand(segmentation, kind):
    given = verdicts((7, 1, "spurious"), (40, 0, "spurious"), (40, 1, "relevant"), (40, 2, "spurious"), (7, 0, "unsure"))
    spurious = {(0, 0), (0, 2), (1, 1)}  # (row of the selection, segment)
    masks = build_masks(segmentation, SELECTION, given, kind=kind)
    assert masks.shape == (3, 5, 6)
    for row, y, x in itertools.product(range(3), range(5), range(6)):
        expected = sum((row, j) in spurious and int(segmentation.segments[row, y, x]) == j for j in range(3))
        if kind == "effect":
            expected *= bool(segmentation.effect[row, y, x])
        assert int(masks[row, y, x]) == expected


@pytest.mark.parametrize("value", ["unsure", "relevant"])
def test_only_spurious_counts(segmentation, value):
    assert not build_masks(segmentation, SELECTION, verdicts((40, 0, value), (7, 1, value)), kind="segment").any()


def test_without_verdicts_nothing_is_masked(segmentation):
    assert not build_masks(segmentation, SELECTION, [], kind="effect").any()


@pytest.mark.parametrize("human_first", [True, False])
@pytest.mark.parametrize("says", ["spurious", "relevant", "unsure"])
def test_a_person_overrules_any_model_whoever_spoke_last(segmentation, human_first, says):
    model = verdicts((40, 0, "relevant" if says == "spurious" else "spurious"))
    human = verdicts((40, 0, says), source="human")
    masks = build_masks(segmentation, SELECTION, human + model if human_first else model + human, kind="segment")
    assert torch.equal(masks[0], (segmentation.segments[0] == 0) & (says == "spurious"))


@pytest.mark.parametrize("source", ["model", "human"])
def test_a_later_verdict_overrules_an_earlier_one(segmentation, source):
    first, last = verdicts((40, 0, "spurious"), (7, 0, "relevant"), source=source), verdicts((40, 0, "relevant"), (7, 0, "spurious"), source=source)
    masks = build_masks(segmentation, SELECTION, first + last, kind="segment")
    assert not masks[0].any()
    assert torch.equal(masks[1], segmentation.segments[1] == 0)


def test_segments_of_all_kinds_add_up_to_the_image(segmentation):
    parts = [mask_segments(segmentation, torch.eye(3, dtype=torch.bool)[j].expand(3, 3), kind="segment") for j in range(3)]
    assert torch.equal(sum(part.int() for part in parts), (segmentation.segments >= 0).int())
    assert torch.equal(mask_segments(segmentation, torch.ones(3, 3, dtype=torch.bool), kind="effect"), segmentation.effect)
