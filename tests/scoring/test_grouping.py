"""Segments that show the same thing are one group, by two of place, look and words."""

import pytest
import torch

from rightreasons.scoring.grouping import (
    MOST_COMPARED,
    SAME,
    _link,
    group_segments,
    join_distances,
    look_distances,
    place_distances,
    word_distances,
)
from rightreasons.scoring.naming import word_vectors

CORNER, MIDDLE = [0.05, 0.05], [0.5, 0.5]
YELLOW, BLUE = [0.9, 0.9, 0.1], [0.1, 0.1, 0.9]
TAG, PLASTER = "A yellow tag with a number.", "A blue plaster on the skin."


def groups(centres, colours, texts=None):
    words = None if texts is None else word_distances(word_vectors(texts, ["The border of the lesion."] * 3))
    return group_segments(join_distances([place_distances(torch.tensor(centres)), look_distances(torch.tensor(colours), None), words]))


def test_two_things_at_two_places_are_two_shortcuts():
    assert groups([CORNER, MIDDLE, CORNER, MIDDLE, CORNER], [YELLOW, BLUE, YELLOW, BLUE, YELLOW]) == [[0, 2, 4], [1, 3]]


def test_the_same_thing_in_other_corners_is_one():
    assert groups([CORNER, [0.95, 0.05], [0.05, 0.95], [0.95, 0.95]], [YELLOW] * 4) == [[0, 1, 2, 3]]


def test_two_of_three_are_enough():
    here_and_there = [CORNER, MIDDLE, [0.2, 0.6], [0.7, 0.3]]
    assert groups(here_and_there, [YELLOW] * 4, [TAG] * 4) == [[0, 1, 2, 3]], "look and words agree, and the place does not"
    assert groups([CORNER] * 4, [YELLOW, BLUE] * 2, [TAG] * 4) == [[0, 1, 2, 3]], "place and words agree, and the look does not"
    assert groups(here_and_there, [YELLOW, BLUE] * 2, [TAG, PLASTER] * 2) == [[0, 2], [1, 3]]


def test_features_tell_what_colour_does_not():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    found = look_distances(torch.tensor([YELLOW] * 3), features)
    assert found[0, 1] < 0.01 and found[0, 2] == pytest.approx(0.5)


def test_words_that_everybody_uses_do_not_group():
    said = ["This segment covers a region that is not part of the class."] * 6
    assert word_distances(word_vectors(said, ["This segment covers a part of what the description names."] * 6)) is None


def test_average_linkage_by_hand():
    distances = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
    distances = (distances + distances.T) / 2
    expected = [[row] for row in range(12)]
    while len(expected) > 1:  # every pair of groups, by the mean over all pairs of their members
        pairs = [(float(distances[a][:, b].mean()), i, j) for i, a in enumerate(expected) for j, b in enumerate(expected) if i < j]
        mean, i, j = min(pairs)
        if mean > SAME:
            break
        expected[i] += expected.pop(j)
    assert sorted(sorted(group) for group in _link(distances.clone())) == sorted(sorted(group) for group in expected)


def test_many_segments_join_the_groups_of_the_first():
    count = MOST_COMPARED + 20
    colours = [YELLOW if row % 2 else BLUE for row in range(count)]
    found = groups([CORNER if row % 2 else MIDDLE for row in range(count)], colours)
    assert [len(group) for group in found] == [count // 2, count // 2]
