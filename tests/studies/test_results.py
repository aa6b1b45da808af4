"""Result files and the settings that made them: which count as finished, which are run again, and under which critic they are found."""

from __future__ import annotations

import json

import pytest

from rightreasons.common.progress import Silent
from rightreasons.config import CriticConfig
from rightreasons.errors import ConfigError
from rightreasons.studies import jobs, sheets
from rightreasons.studies.definition import open_study, packaged_studies
from rightreasons.studies.jobs import group_rows
from rightreasons.studies.study import run_study
from rightreasons.studies.table import build_table, find_partner

STUDY = """
methods = ["before", "ours"]

[config]
data.path = "decoy-mnist:packaged"
critic.lvlm = "simulated:"
align.epochs = 5

[arms."swap alone"]
align.term = "swap"

[smoke]
sample.size = 10
"""
CRITICS = ("simulated:1.0", "simulated:0.87")


def opened(folder, text=STUDY, **options):
    (folder / "mine.toml").write_text(text)
    return open_study(str(folder / "mine.toml"), **options)


def write(study, out, name, seed, worst, **more):
    """A result file as a run of the study writes it; ``settings_key=None`` makes it one of an older version."""
    path, row = study.result_path(name, seed, out), study.row(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "study": study.name, "method": study.plain_name(name), "seed": seed, "settings_key": study.settings_key(row, seed),
        "critic": study.critic(row) if study.uses_critic(row) else "none", "labels_used": "none", "selection": "last epoch", "inspected": {},
        "metrics": {"worst_group_accuracy": worst, "average_group_accuracy": worst / 2 + 0.5, "mu_align": 0.9}, **more,
    }  # fmt: skip
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    return path


def write_all(study, out, seeds=(0, 1, 2), **more):
    for place, name in enumerate(study.names):
        for seed in seeds:
            write(study, out, name, seed, 0.1 + 0.2 * place + seed / 50 * (place + 1), **more)


def unfinished(study, out, seeds=(0,)):
    return {row for group in group_rows(study, study.names, seeds, out) for row in group.rows}


def by_name(table):
    return {row["method"]: row for row in table["rows"]}


ALL = {"before", "ours", "swap alone"}
ASKING = {"ours", "swap alone"}


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ("align.epochs = 5", "align.epochs = 1", ALL),
        ("align.epochs = 5", "align.epochs = 5\nmodel.epochs = 3", ALL),
        ("align.epochs = 5", "align.epochs = 5\nsegment.components = 3", ALL),
        ("align.epochs = 5", "align.epochs = 5\nsample.size = 30", ALL),
        ("decoy-mnist:packaged", "decoy-mnist:packaged:without-patch", ALL),
        ("align.epochs = 5", "align.epochs = 5\ncritic.votes = 3", ASKING),
        ("align.epochs = 5", 'align.epochs = 5\ncritic.judge = "simulated:0.9"', ASKING),
        ("align.epochs = 5", 'align.epochs = 5\nclasses."even digit".irrelevant = "a frame"', ASKING),
        ('align.term = "swap"', 'align.term = "penalty"', {"swap alone"}),
        ('align.term = "swap"', 'sample.strategy = "random"', {"swap alone"}),
        ('align.term = "swap"', 'align.term = "swap"\nmethod = "ours-published-loss"', {"swap alone"}),
        ("align.epochs = 5", "align.epochs = 5\ncritic.max_usd = 9.0\ncritic.timeout = 60.0", set()),
        ('align.term = "swap"', 'align.term = "swap"\nx = 1', set()),
    ],
)
def test_a_result_of_other_settings_is_not_finished(tmp_path, before, after, again):
    """What only a critic reads leaves the rows without one as they are, and what changes no number all of them."""
    write_all(opened(tmp_path), tmp_path)
    assert unfinished(opened(tmp_path), tmp_path) == set()
    assert before in STUDY
    assert unfinished(opened(tmp_path, STUDY.replace(before, after)), tmp_path) == again


def test_a_seed_has_its_own_key():
    study = open_study("decoy-mnist")
    assert study.settings_key(study.row("ours"), 0) != study.settings_key(study.row("ours"), 1)


def test_a_new_default_of_the_package_leaves_results_valid(monkeypatch):
    study = open_study("decoy-mnist")
    key = study.settings_key(study.row("ours"), 0)
    monkeypatch.setattr(CriticConfig.model_fields["votes"], "default", 3)
    CriticConfig.model_rebuild(force=True)
    try:
        assert CriticConfig(lvlm="simulated:").votes == 3
        assert study.settings_key(study.row("ours"), 0) == key
    finally:
        monkeypatch.undo()
        CriticConfig.model_rebuild(force=True)


@pytest.mark.parametrize("name", packaged_studies())
def test_rows_that_differ_have_different_keys(name):
    study = open_study(name)
    made = [(row.method, study.settings_key(row, 0)) for row in map(study.row, study.names)]
    assert len(set(made)) == len(made) == len({key for _, key in made})


def test_a_result_of_other_settings_is_run_again_and_replaced(tmp_path, monkeypatch):
    write_all(opened(tmp_path), tmp_path, seeds=(0,))
    study, told = opened(tmp_path, STUDY.replace('align.term = "swap"', 'align.term = "penalty"')), Silent()
    monkeypatch.setattr(jobs, "find_shortcut", lambda *rest: None)
    monkeypatch.setattr(jobs, "run_row", lambda study, row, seed, out, *rest: write(study, out, row.name, seed, 0.75))
    table = run_study(study, seeds=[0, 1], methods=["ours", "swap alone"], out=tmp_path, reporter=told)
    notes = [note for note in told.notes if "other settings" in note]
    assert len(notes) == 1 and "swap alone (seed 0)" in notes[0] and "ours" not in notes[0]
    rows = by_name(table)
    assert rows["swap alone"]["metrics"]["worst_group_accuracy"]["values"] == [0.75, 0.75]
    assert rows["ours"]["metrics"]["worst_group_accuracy"]["values"] == [pytest.approx(0.3), 0.75]
    assert table["notes"] == [] and table["failed"] == []
    again = Silent()
    assert run_study(study, seeds=[0, 1], methods=["ours", "swap alone"], out=tmp_path, reporter=again) == table and again.notes == []


def test_a_table_leaves_out_results_of_other_settings_and_says_so(tmp_path, monkeypatch):
    """Those of a row that is not asked for, and those of one that failed when it was run again."""
    write_all(opened(tmp_path), tmp_path)
    changed = opened(tmp_path, STUDY.replace("epochs = 5", "epochs = 1"))
    write(changed, tmp_path, "ours", 0, 0.9)
    monkeypatch.setattr(jobs, "find_shortcut", lambda *rest: (_ for _ in ()).throw(ConfigError("not now")))
    table = run_study(changed, seeds=range(3), methods=["ours"], out=tmp_path, reporter=Silent())
    (row,) = table["rows"]
    assert row["seed_list"] == [0] and row["metrics"]["worst_group_accuracy"]["values"] == [0.9] and row["against"] is None
    assert [(failure["row"], failure["seed"]) for failure in table["failed"]] == [("ours", 1), ("ours", 2)]
    note, missing = table["notes"]
    assert missing == "Missing, since they failed: ours (seeds 1, 2)."
    assert "Left out" in note and "before (seeds 0, 1, 2), ours (seeds 1, 2)" in note and "swap alone" not in note
    for kind in ("txt", "md", "tex"):
        assert "before (seeds 0, 1, 2), ours (seeds 1, 2)" in (tmp_path / "mine" / f"table.{kind}").read_text()


def test_a_process_that_died_left_an_old_result_and_no_new_one(tmp_path):
    """What an older run has left there is not taken for what the process has finished."""

    class Ended:
        exitcode = 3

        def join(self):
            pass

    class Nothing:
        def recv(self):
            raise EOFError

        def close(self):
            pass

    write_all(opened(tmp_path), tmp_path, seeds=(0,))
    changed = opened(tmp_path, STUDY.replace('align.term = "swap"', 'align.term = "penalty"'))
    worker = object.__new__(jobs._Worker)
    worker._study, worker._group, worker._out = changed, jobs.Group(0, ("ours", "swap alone")), tmp_path
    worker._receiver, worker.process = Nothing(), Ended()
    assert [failure.row for failure in worker.failures()] == ["swap alone"]


def test_a_file_without_a_key_counts_and_is_told_of_once(tmp_path):
    study, told = opened(tmp_path), Silent()
    write_all(study, tmp_path, seeds=(0,))
    write(study, tmp_path, "before", 0, 0.1, settings_key=None)
    write(study, tmp_path, "ours", 0, 0.3, settings_key=None)
    changed = opened(tmp_path, STUDY.replace("epochs = 5", "epochs = 1"))
    assert unfinished(changed, tmp_path) == {"swap alone"}
    table = run_study(study, seeds=[0], methods=None, out=tmp_path, reporter=told)
    assert len(table["rows"]) == 3 and told.notes == []
    (note,) = table["notes"]
    assert "told their settings" in note and "before (seed 0), ours (seed 0)" in note and "swap alone" not in note
    assert note in sheets.make_sheets(table)[1]


def test_a_smoke_test_has_keys_too(tmp_path):
    smoke = opened(tmp_path, smoke=True)
    write_all(smoke, tmp_path)
    assert unfinished(smoke, tmp_path) == set() and unfinished(opened(tmp_path), tmp_path) == ALL
    changed = opened(tmp_path, STUDY.replace("sample.size = 10", "sample.size = 12"), smoke=True)
    assert unfinished(changed, tmp_path) == ALL and build_table(changed, changed.names, [0], tmp_path)["rows"] == []


def test_ours_under_a_row_s_own_critic_is_its_partner():
    study = open_study("solar", critics=CRITICS)
    for critic in CRITICS:
        assert find_partner(study, f"ours-published-loss {critic}", "ours") == f"ours {critic}"
        assert find_partner(study, f"ours {critic}", "before") == "before"
    assert find_partner(study, "before", "ours") == find_partner(study, "subg", "ours") == "ours simulated:1.0"


def test_with_two_critics_the_difference_to_ours_is_there_and_says_to_which(tmp_path):
    study = opened(tmp_path, critics=CRITICS)
    write_all(study, tmp_path)
    table = build_table(study, study.names, range(3), tmp_path)
    rows = by_name(table)
    assert list(rows) == ["before", *(f"{name} {critic}" for name in ("ours", "swap alone") for critic in CRITICS)]
    assert {name: (row["against_ours"] or {}).get("row") for name, row in rows.items()} == {
        "before": "ours simulated:1.0",
        "ours simulated:1.0": None,
        "ours simulated:0.87": None,
        "swap alone simulated:1.0": "ours simulated:1.0",
        "swap alone simulated:0.87": "ours simulated:0.87",
    }
    compared = rows["swap alone simulated:0.87"]["against_ours"]["worst_group_accuracy"]
    assert compared["mean"] == pytest.approx(0.4 + 0.04) and compared["t_p_holm"] is not None
    (sheet,) = [sheet for sheet in sheets.make_sheets(table)[0] if sheet.title.startswith("difference to ours,")]
    assert [row[0] for row in sheet.rows] == [
        "before (to ours simulated:1.0)",
        "swap alone simulated:1.0 (to ours simulated:1.0)",
        "swap alone simulated:0.87 (to ours simulated:0.87)",
    ]


@pytest.mark.parametrize("key", [{}, {"settings_key": None}])
def test_a_result_of_one_critic_is_found_with_two_and_the_other_way_round(tmp_path, key):
    one, two = opened(tmp_path, critics=CRITICS[1:]), opened(tmp_path, critics=CRITICS)
    write_all(one, tmp_path, seeds=(0,), **key)
    assert (tmp_path / "mine" / "ours-simulated-0.87" / "0.json").exists()
    assert unfinished(two, tmp_path) == {"ours simulated:1.0", "swap alone simulated:1.0"}
    assert list(by_name(build_table(two, two.names, [0], tmp_path))) == ["before", "ours simulated:0.87", "swap alone simulated:0.87"]
    write_all(two, tmp_path, seeds=(1,), **key)
    for critic in CRITICS:
        assert unfinished(opened(tmp_path, critics=[critic]), tmp_path, seeds=(1,)) == set()


def test_the_names_that_results_have_stay_as_they_are(tmp_path):
    """Files that lie in benchmarks/results."""
    for critics, folders in (((), ["ours-simulated"]), (CRITICS[1:], ["ours-simulated-0.87"]), (("simulated:", CRITICS[1]), None)):
        study = open_study("decoy-mnist", critics=critics)
        rows = [name for name in study.names if study.row(name).method == "ours"]
        assert [study.result_path(row, 0, tmp_path).parent.name for row in rows] == (folders or ["ours-simulated", "ours-simulated-0.87"])
    assert open_study("decoy-mnist").result_path("before", 0, tmp_path) == tmp_path / "decoy-mnist" / "before" / "0.json"
