"""A study's file: what it may say, and the errors for what it may not, before anything runs."""

from __future__ import annotations

import pytest

from rightreasons.errors import ConfigError
from rightreasons.studies.definition import check_rows, open_study, split_names

CONFIG = """
[config]
data.path = "decoy-mnist:packaged"
critic.lvlm = "simulated:"
"""


def opened(folder, text, **options):
    (folder / "mine.toml").write_text(text, encoding="latin-1")
    return open_study(str(folder / "mine.toml"), **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('methods = ["before"]' + CONFIG + "[arm.one]", "'arm' is no part of a study; there are methods, config, arms"),
        ('methods = ["before"]\nreference = "befor"' + CONFIG, "reference = 'befor' is none of its rows: before"),
        ('methods = ["before"]\nreference = 3' + CONFIG, "reference = 3: a name was expected"),
        ('methods = ["before"]\nfigure.metrics = ["worst group"]' + CONFIG, "at least one was expected of accuracy, .*, worst_group_accuracy"),
        ('methods = ["before"]\nfigure.metrics = []' + CONFIG, "at least one was expected of accuracy"),
        ('methods = ["before"]\nfigure = 3' + CONFIG, "figure = 3: a table was expected"),
        ('methods = ["before"]\nsmoke = 3' + CONFIG, "smoke = 3: a table was expected"),
        ('methods = ["before"]\narms = []' + CONFIG, r"arms = \[\]: a table was expected"),
        ('methods = ["before"]\narms.one = 5' + CONFIG, "has an arm that is no table"),
        ('methods = ["before"]\narms.one.align = 5' + CONFIG, "row 'one': align = 5: a table was expected"),
        ("methods = [1]" + CONFIG, "no method '1'"),
        ("methods = []" + CONFIG, "has no rows"),
        ('methods = ["before"]\narms."??" = {}' + CONFIG, r"without a letter or digit in its name, .*: before, \?\?"),
        ('methods = ["before", "\xff"]' + CONFIG, "is not valid TOML"),
        ("methods = []\nsweep.rows.ours = {}" + CONFIG, r"\[sweep\] needs two tables of tables"),
        ("methods = []\nsweep = { rows.ours = {}, places.a = 1 }" + CONFIG, r"\[sweep\] needs two tables of tables"),
        ("methods = []\nsweep = { rows.ours = {}, places.a = {} }" + CONFIG, r"\[sweep.places\] 'a' has no x"),
        ("methods = []\nsweep = { rows.ours.places = ['b'], places.a.x = 1 }" + CONFIG, r"\[sweep.rows\] 'ours' has places = \['b'\]: some of a"),
        ("methods = []\nsweep = { rows.ours = {}, places.a.x = 'one' }" + CONFIG, "row 'ours a': x = 'one': a number was expected"),
        ("methods = []\narms.'ours a' = {}\nsweep = { rows.ours = {}, places.a.x = 1 }" + CONFIG, "saved under one name: ours a, ours a"),
    ],
)  # fmt: skip
def test_what_is_no_study(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, text)


def test_data_that_are_no_table_are_told_of_in_a_smoke_test_too(tmp_path):
    study = opened(tmp_path, 'methods = ["before"]\n[config]\ndata = 3', smoke=True)
    with pytest.raises(ConfigError, match="data = 3"):
        check_rows(study, study.names)


def test_the_reference_may_be_a_line_of_a_sweep(tmp_path):
    text = 'methods = []\nreference = "plain"' + CONFIG + "[sweep]\nrows = { plain.method = 'before', ours = {} }\nplaces = { a.x = 1, b.x = 2 }"
    for smoke in (False, True):
        study = opened(tmp_path, text, smoke=smoke)
        assert study.reference == "plain" and study.row("plain a").method == "before" and study.row("ours a").x == 1


def test_a_place_is_laid_over_a_row_and_a_row_may_be_at_some_places(tmp_path):
    sweep = """
    [sweep.rows]
    wide = { align = { ratio = 0.5, epochs = 2 }, places = ["late"] }
    jtt = { method = "jtt" }
    [sweep.places]
    early = { x = 1, align.epochs = 1 }
    late = { x = 4, align.epochs = 4 }
    """
    assert opened(tmp_path, "methods = []" + CONFIG + sweep).arms == {
        "jtt early": {"method": "jtt", "series": "jtt", "x": 1, "align": {"epochs": 1}},
        "wide late": {"series": "wide", "x": 4, "align": {"ratio": 0.5, "epochs": 4}},
        "jtt late": {"method": "jtt", "series": "jtt", "x": 4, "align": {"epochs": 4}},
    }


def test_rows_with_commas_in_their_names_can_be_named():
    rows = open_study("decoy-mnist-choices").names
    assert split_names("ours, jacobian penalty, lambda 1,swap alone", rows) == ["ours", "jacobian penalty, lambda 1", "swap alone"]
    assert split_names("ours,behind", rows) == ["ours", "behind"]
