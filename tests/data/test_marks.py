"""Marks across an object: where they lie, how thin and how opaque they are."""

import numpy as np
import pytest
import torch

from rightreasons.common.seeds import seeded
from rightreasons.data.built_in import marks

SIDE = 128


@pytest.fixture(params=marks._DRAWN)
def kind(request, monkeypatch):
    """One of the kinds alone."""
    monkeypatch.setattr(marks, "_DRAWN", {request.param: marks._DRAWN[request.param]})
    return request.param


def test_a_mark_lies_across_its_point_and_is_thin(kind):
    for seed in range(10):
        mark = marks.draw_mark(0.5, 0.5, SIDE, seeded(seed, "mark"))
        rows, columns = mark.mask.nonzero()
        assert 0.01 < mark.mask.mean() < 0.10
        # It reaches far, but three pixels into its strokes nothing of it is left.
        assert np.hypot(np.ptp(rows), np.ptp(columns)) > 0.5 * SIDE
        left = -torch.nn.functional.max_pool2d(-torch.from_numpy(mark.mask)[None].float(), 7, 1, 3)
        assert not left.any()
        box = [(rows.min() + rows.max()) / 2 / SIDE, (columns.min() + columns.max()) / 2 / SIDE]
        assert box == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_cover_is_no_more_opaque_than_its_kind(kind):
    mark = marks.draw_mark(0.4, 0.6, SIDE, seeded(0, "mark"))
    low, high = marks.OPACITY[kind]
    assert low - 0.01 <= mark.cover.max() <= high + 0.01
    assert (mark.cover[mark.mask] >= low / 2 - 0.01).all() and (mark.cover[~mark.mask] <= high / 2 + 0.01).all()
    assert [round(255 * part) for part in mark.colour.tolist()] in [list(colour) for colour in marks.COLOURS[kind]]


def test_every_kind_is_drawn_and_the_same_seed_draws_the_same():
    drawn = [marks.draw_mark(0.5, 0.5, 32, seeded(seed, "mark")) for seed in range(40)]
    opaque = [bool(mark.cover.max() > 0.6) for mark in drawn]
    assert 15 < sum(opaque) < 38  # two kinds of three
    again = marks.draw_mark(0.5, 0.5, 32, seeded(7, "mark"))
    assert np.array_equal(again.cover, drawn[7].cover)
    assert not np.array_equal(drawn[8].cover, drawn[7].cover)
