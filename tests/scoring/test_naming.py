"""Names by the words that critiques share, or by colour and place."""

import pytest
import torch

from rightreasons.scoring.naming import name_colour, name_group, name_place, tell_apart

ORANGE = torch.tensor([0.9, 0.5, 0.1])
STAMPS = [
    "S1 covers an orange time stamp that the camera printed. Conclusion: it does not matter.",
    "The segment lies on the printed time stamp, in orange letters. It is irrelevant.",
    "An orange time stamp at the lower right edge.",
    "Here is part of a time stamp.",
]
DEFECT = ["The crack in the metal, which matters.", "A crack and its shadow."]


def test_the_phrase_that_most_critiques_share_is_the_name():
    name = name_group(STAMPS, DEFECT, ["bottom right"] * 4, ORANGE)
    assert name.text == "time stamp, bottom right" and "stamp" in name.words and "orange" in name.words


def test_what_is_said_of_relevant_segments_is_no_name():
    said = [f"A metal plate with a {thing}." for thing in ("screw", "screw", "screw")]
    assert "metal plate" not in name_group(said, ["The metal plate."] * 4, ["top"] * 3, ORANGE).phrase


def test_without_words_of_its_own_it_is_named_by_colour():
    said = ["This segment covers a region that is not part of the class."] * 5
    assert name_group(said, [], ["top left"] * 5, ORANGE).text == "orange patch, top left"
    assert name_group([], [], ["top left", "middle"], torch.tensor([0.5])).text == "grey patch"


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["top left"] * 3 + ["middle"], "top left"),
        (["top left", "bottom left", "top right", "bottom right"], "in the corners"),
        (["top", "left", "bottom right", "bottom"], "at the edges"),
        (["middle", "top left", "middle", "left"], ""),
    ],
)
def test_places(places, expected):
    assert name_place(places) == expected


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0.05, 0.05, 0.05), "black"), ((1.0, 1.0, 1.0), "white"), ((0.5, 0.5, 0.5), "grey"), ((0.9, 0.1, 0.1), "red"), ((0.9, 0.85, 0.1), "yellow"),
        ((0.1, 0.7, 0.2), "green"), ((0.1, 0.2, 0.9), "blue"), ((0.35, 0.18, 0.05), "brown"), ((0.7,), "light grey"), ((1.5, -0.2, 0.0), "red"),
    ],
)  # fmt: skip
def test_colours(colour, expected):
    assert name_colour(torch.tensor(colour)) == expected


def test_injection_a_name_is_made_of_letters_alone():
    said = ["An <img src=x onerror=alert(1)> {{ evil }} \x1b[2J tag."] * 4
    name = name_group(said, [], ["top"] * 4, ORANGE).text
    assert not set("<>{}\x1b=()") & set(name)


@pytest.mark.parametrize(
    ("names", "areas", "expected"),
    [
        (["tag", "bar"], [0.1, 0.1], ["tag", "bar"]),
        (["tag", "bar", "tag"], [0.02, 0.1, 0.05], ["tag (the smaller one)", "bar", "tag (the larger one)"]),
        (["tag", "tag"], [0.05, 0.05], ["tag", "tag (2)"]),
        (["tag", "tag", "tag (2)"], [0.05, 0.05, 0.1], ["tag", "tag (3)", "tag (2)"]),
        (["tag"] * 3, [0.1, 0.2, 0.9], ["tag", "tag (2)", "tag (3)"]),
    ],
)
def test_names_on_a_page_are_unique(names, areas, expected):
    assert tell_apart(names, areas) == expected
