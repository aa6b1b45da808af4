"""What a cell of a table means, and which columns cannot be one class per image."""

from __future__ import annotations

import pytest

from rightreasons.data.cells import MISSING, no_classes, read_cell

# pandas 3.1.1: pandas._libs.parsers.STR_NA_VALUES.
PANDAS = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None",
          "n/a", "nan", "null"]  # fmt: skip


@pytest.mark.parametrize("word", [*PANDAS, " ", "NAN", "none", "NaT", None, float("nan")])
def test_missing(word):
    """What pandas reads as missing unless told otherwise, in any case, and Python's own."""
    assert read_cell(word) is None


def test_a_missing_word_that_the_user_names_is_a_value():
    assert read_cell("None", {"None": "no damage"}) == "None" and read_cell("nan", {"None": "no damage"}) is None
    assert "nothing" not in MISSING


@pytest.mark.parametrize(
    ("value", "text"),
    [("1.0", "1"), ("1.", "1"), ("1.000", "1"), ("-1.0", "-1"), (1.0, "1"), (1, "1"), (True, "True"), ("1.5", "1.5"), (" a ", "a"), ("1.0a", "1.0a"),
     ("007", "007"), (b"cat", "cat")],
)  # fmt: skip
def test_values(value, text):
    assert read_cell(value) == text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "b", "a|b"], "several classes in one cell in 1 of 3 rows, such as 'a|b'"),
        (["a|b", "c|b", "d"], "several classes in one cell in 2 of 3"),
        (["a;b", "a"], "several classes"),
        (["cat", "dog", "cat, dog"], "several classes"),
        (["cat", "dog", "dog cat"], "several classes"),
        (["[0, 1]", "[0]"], "several classes"),
        (["['cat']", "['dog']"], "several classes"),
        (["{'name': 'cat'}", "{'name': 'dog'}"], "several classes"),
        (["0.1", "0.25", "1"], "numbers with fractions, such as 0.1"),
        ([str(number) for number in range(30)], "30 different values in 30 rows"),
        ([], "is empty"),
    ],
)
def test_no_classes(values, words):
    assert words in str(no_classes(values))


@pytest.mark.parametrize(
    "values",
    [["0", "1"], ["hot dog", "dog"], ["Mass, left", "Mass, right"], ["No Finding", "Effusion"], ["a/b", "a"], ["-1", "0", "1"], ["v1.5", "2.5"],
     [str(number) for number in range(20)] * 2],
)  # fmt: skip
def test_classes(values):
    assert no_classes(values) is None


def test_what_the_user_names_is_a_class():
    assert no_classes(["a", "b", "a|b"], {"a": "a", "b": "b", "a|b": ""}) is None
    assert no_classes(["0.5", "1.5"], {"0.5": "low", "1.5": "high"}) is None
