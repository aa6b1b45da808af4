"""Columns that are not used: what looks like a patient, a split, folds or a second label is told, and nothing else is."""

from __future__ import annotations

import pytest

from rightreasons.data.formats.columns import match_columns
from rightreasons.data.formats.unused import tell_unused
from tests.support.folders import noise, read

ROWS = 40


def tell(table: dict[str, list[str]], chosen: dict[str, str | None] | None = None, *, has_split: bool = False) -> str:
    table = {"filename": [f"{row}.png" for row in range(ROWS)], "label": ["ab"[row % 2] for row in range(ROWS)]} | table
    found = match_columns("labels.csv", table, chosen or {})
    return " ".join(tell_unused(table, found, chosen or {}, table.__getitem__, {}, has_split=has_split))


def people(each: int = 4) -> list[str]:
    return [f"P{row // each}" for row in range(ROWS)]


@pytest.mark.parametrize("name", ["MRN", "patient_name", "PatientName", "pid", "Pat ID", "accession", "AccessionNumber"])
def test_more_names_of_patients(name):
    assert match_columns("labels.csv", ["filename", "label", name])["patient"] == name


@pytest.mark.parametrize("name", ["StudyInstanceUID", "exam_id", "Participant", "donor no", "patient key"])
def test_a_column_that_looks_like_a_patient(name):
    assert f"{name!r} looks like whose an image is ([data.columns] patient = {name!r}" in tell({name: people()})
    assert not tell({name: people(), "patient": people()}), "there is one"
    assert not tell({name: people(1)}), "each has one image"
    assert not tell({name: ["case" if row % 3 else "control" for row in range(ROWS)]}), "two groups are no persons"


@pytest.mark.parametrize("name", ["patient_age", "PatientSex", "study_description", "width"])
def test_what_is_said_of_a_patient_is_none(name):
    assert not tell({name: people()})


@pytest.mark.parametrize(
    ("name", "cells", "told"),
    [
        ("is_test", "01", "looks like a split"),
        ("in_train", ("yes", "no"), "looks like a split"),
        ("fold", "01234", "looks like folds"),
        ("kfold", "12345", "looks like folds"),
        ("usage", ("Training", "Test"), "[data.columns] split = 'usage'"),
    ],
)
def test_a_column_that_looks_like_a_split(name, cells, told):
    table = {name: [cells[row % len(cells)] for row in range(ROWS)]}
    assert told in tell(table)
    assert not tell(table, has_split=True) and not tell(table | {"split": [("train", "test")[row % 2] for row in range(ROWS)]})


def test_a_column_that_holds_something_else():
    assert not tell({"test_score": [str(row) for row in range(ROWS)], "type": ["xy"[row % 2] for row in range(ROWS)], "age": people()})


def test_a_second_label():
    others = {"diagnosis": [("mel", "nev", "bcc")[row % 3] for row in range(ROWS)]}
    assert tell(others) == "not used: 'diagnosis' fits as the label as well ([data.columns] label = 'diagnosis' takes it instead of 'label')"
    assert not tell(others, {"label": "label"}), "the user has said which"
    assert not tell({"diagnosis": [("well", "ill")[row % 2] for row in range(ROWS)]}), "the same in other words"
    assert not tell({"diagnosis": ["mel"] * ROWS}) and not tell({"diagnosis": [f"{row}.5" for row in range(ROWS)]})


def test_one_note_for_all_of_a_folder(tmp_path):
    for split in ("train", "test"):
        rows = []
        for number in range(ROWS):
            noise(tmp_path / split / f"{split}{number}.png")
            rows.append(f"{split}/{split}{number}.png,{'ab'[number % 2]},{number % 3},M{number // 4},{number % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(["filename,label,category,exam id,is_test", *rows]))
    (told,) = (problem for problem in read(tmp_path).problems if problem.startswith("not used"))
    assert "'category' fits as the label" in told and "'exam id' looks like whose" in told and "is_test" not in told
