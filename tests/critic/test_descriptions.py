"""Words that name something to point at pass, in any language; words that name nothing get a note."""

from __future__ import annotations

import pytest

from rightreasons.critic.descriptions import check_descriptions
from rightreasons.data import task_defaults
from rightreasons.records import ClassDescription
from tests.support.helpers import invoke, the_error, write_scripted


def notes(description="", irrelevant="", name="malignant"):
    return check_descriptions([ClassDescription(name, description, irrelevant)])


@pytest.mark.parametrize(
    "words",
    [
        "The lesion itself: its border, colour and structure.",
        "A mole.",
        "Wings and beak",
        "the hole of the digit",
        "Dark, irregular spots.",
        "Der Leberfleck selbst.",
        "Ce grain de beauté est foncé",
        "病变本身",
        "Опухоль",
    ],
)
def test_words_that_name_something(words):
    assert notes(words) == [] and notes(irrelevant=words) == [] and notes("", words) == []


@pytest.mark.parametrize(
    "words",
    [
        "malignant",
        "A malignant image.",
        "This is an image of the class malignant",
        "dark and irregular",
        "Typical appearance.",
        "what is important",
        "it is very bad",
        "...",
        "1234",
    ],
)
def test_words_that_name_nothing(words):
    (note,) = notes(words)
    assert note.startswith("a description that names no region and no shortcut: that of class 'malignant'") and "leave them as they are" in note


def test_one_of_the_two_is_enough():
    assert notes("typical", "plasters beside it") == []


def test_the_names_of_all_classes_say_nothing():
    described = [ClassDescription("sparrow", "A sparrow, not a finch."), ClassDescription("finch", "The beak.")]
    assert len(check_descriptions(described)) == 1


@pytest.mark.parametrize("task", ["decoy-mnist", "solar", "stamps"])
def test_the_built_in_tasks_pass(task):
    classes = task_defaults(task)["classes"]
    assert check_descriptions([ClassDescription(name, **words) for name, words in classes.items()]) == []


def test_find_notes_it_before_long_work_and_goes_on(tmp_path):
    config = write_scripted(tmp_path, changes={"The bright disc at the right.": "A typical nut."})
    result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 0
    note = " ".join(result.stderr.split())
    assert "names no region and no shortcut: that of class 'nut'" in note and note.index("names no region") < note.index("sample")


def test_a_class_without_a_description_is_an_error(tmp_path):
    config = write_scripted(tmp_path, changes={"[classes.nut]\ndescription": "[classes.bolz]\ndescription"})
    assert "a class without a description: 'nut'. Add a table [classes.nut]" in the_error(invoke("find", config, "--out", tmp_path / "run"))
