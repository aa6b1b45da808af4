"""The form of the files: what tells the class is told, and what chance makes is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rightreasons.data.decode import Header
from rightreasons.data.form import tell_forms
from tests.support.folders import read

RANDOM = np.random.default_rng(0)


def tell(first: list[Header], second: list[Header]) -> str:
    headers = {f"{number}": header for number, header in enumerate([*first, *second])}
    return " ".join(tell_forms(headers, {name: "a" if int(name) < len(first) else "b" for name in headers}))


PNG, JPEG = Header(32, 24, "rgb", None, "PNG"), Header(32, 24, "rgb", None, "JPEG")
SHOWN, RAW = Header(32, 24, "grey", None, "DICOM"), Header(32, 24, "grey", "DICOM", "DICOM")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (PNG, JPEG, ["PNG (20 of 20 of 'a', 0 of 20 others)", "JPEG (20 of 20 of 'b', 0 of 20 others)"]),
        (RAW, SHOWN, ["DICOM without a window of its own (20 of 20 of 'a'", "DICOM that says what is black and white (20 of 20 of 'b'"]),
        (PNG, Header(32, 24, "rgb", "whole numbers", "PNG"), ["8 bits a value (20 of 20 of 'a'", "more than 8 bits (20 of 20 of 'b'"]),
        (PNG, Header(32, 24, "grey", None, "PNG"), ["coloured (20 of 20 of 'a'", "grey (20 of 20 of 'b'"]),
        (PNG, Header(48, 24, "rgb", None, "PNG"), ["32x24 pixels (20 of 20 of 'a'", "48x24 pixels (20 of 20 of 'b'"]),
    ],
)
def test_each_respect_in_which_classes_differ(one, other, words):
    told = tell([one] * 20, [other] * 20)
    assert told.startswith("the form of the files tells the class: ") and all(word in told for word in words) and told.count("others)") == 2


@pytest.mark.parametrize(("strays", "is_told"), [(0, True), (1, True), (2, False)])
def test_nearly_all_of_a_class_and_hardly_any_of_the_others(strays, is_told):
    """One of twenty is 5 %."""
    assert bool(tell([PNG] * (20 - strays) + [JPEG] * strays, [JPEG] * 20)) == is_told
    assert bool(tell([PNG] * 20, [PNG] * strays + [JPEG] * (20 - strays))) == is_told


def test_what_is_told_of_no_class():
    assert not tell([PNG] * 20, [PNG] * 20) and not tell([PNG, JPEG] * 10, [JPEG, PNG] * 10)
    assert not tell([PNG] * 4, [JPEG] * 20), "too few for more than chance"
    sizes = [Header(100 + number, 90, "rgb", None, "JPEG") for number in range(40)]
    assert not tell(sizes[:20], sizes[20:]), "each has a size of its own"


def test_a_folder_of_two_forms(tmp_path):
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"{number}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    (told,) = (problem for problem in read(tmp_path).problems if "form of the files" in problem)
    assert "PNG (12 of 12 of 'a', 0 of 12 others)" in told and "JPEG (12 of 12 of 'b', 0 of 12 others)" in told
