"""The studies that come with the package: every row can be read, has its place in a sweep, and means what its name says."""

from __future__ import annotations

import json

import pytest

from rightreasons.errors import ConfigError
from rightreasons.studies.definition import check_rows, open_study, packaged_studies, row_config
from rightreasons.studies.sheets import make_sheets
from rightreasons.studies.table import build_table, find_partner


@pytest.mark.parametrize("name", packaged_studies())
@pytest.mark.parametrize("smoke", [False, True])
def test_every_row_is_a_configuration(name, smoke):
    study = open_study(name, smoke=smoke)
    check_rows(study, study.names)
    assert study.names


@pytest.mark.parametrize("name", ["exceptions-solar", "exceptions-digits"])
def test_every_share_of_exceptions_has_its_own_shortcut_model(name):
    study = open_study(name)
    rows = [study.row(row) for row in study.names]
    assert {row.x for row in rows} == {0, 0.01, 0.05, 0.2}
    for row in rows:
        assert row_config(study, row, 0).data.path.endswith(f":exceptions={row.x:g}") and row.series == row.method
        partner = find_partner(study, row.name, "before")
        assert partner is not None and study.row(partner).x == row.x


def test_the_sweep_over_lambda_has_every_decade():
    study = open_study("decoy-mnist-lambda")
    found: dict[str | None, list[float]] = {}
    for row in map(study.row, study.names):
        weight = row_config(study, row, 0).align.lambda_
        if row.x is not None:
            assert weight == row.x
            found.setdefault(row.series, []).append(row.x)
    assert found == {"published loss": [10.0**e for e in range(-6, 8)], "ours": [10.0**e for e in range(-2, 8)]}
    assert row_config(study, study.row("published loss lambda 1e2"), 0).align.penalty == "log_prob_sum"


def exceptions(task):
    """The arms of a study of exceptions, written out."""
    rivals = ["jtt", "dfr", "xrm", "mask-tune", "afr", "longer-training", "without-shortcut"]
    shares = {"0 %": (0, "0"), "1 %": (0.01, "0.01"), "5 %": (0.05, "0.05"), "20 %": (0.2, "0.2")}
    return {
        f"{method} {place}": {"method": method, "x": x, "series": method, "data": {"path": f"{task}:exceptions={share}"}}
        for place, (x, share) in shares.items()
        for method in ["before", "ours", *(["subg", "group-dro"] if x else []), *rivals]
    }


def test_a_sweep_is_the_arms_that_one_would_write_by_hand():
    """Row names, settings and with them result paths and keys: results of hours lie under them."""
    for task, name in (("solar", "exceptions-solar"), ("decoy-mnist", "exceptions-digits")):
        assert list(open_study(name).arms.items()) == list(exceptions(task).items())
    published = {"term": "penalty", "penalty": "log_prob_sum"}
    assert open_study("decoy-mnist-lambda").arms == {
        "published loss lambda auto": {"align": published},
        **{
            f"published loss lambda 1e{e}": {"x": float(f"1e{e}"), "series": "published loss", "align": published | {"lambda": float(f"1e{e}")}}
            for e in range(-6, 8)
        },
        **{f"ours lambda 1e{e}": {"x": float(f"1e{e}"), "series": "ours", "align": {"lambda": float(f"1e{e}")}} for e in range(-2, 8)},
    }
    strategies = {kind.replace("-", " "): {"strategy": kind, "per_class": "off"} for kind in ("low-entropy", "random", "high-entropy")}
    assert open_study("ablation-sampling").arms == {
        **{name: {"method": "before", "sample": sample} for name, sample in strategies.items()},
        **{
            f"{name} {size} images": {"x": size, "series": name, "sample": {**sample, "size": size}}
            for name, sample in {**strategies, "low entropy with a quota": {}}.items()
            for size in (10, 20, 50, 100, 200, 500)
        },
    }


@pytest.mark.parametrize("name", ["ablation-repair", "ablation-segments", "ablation-critic", "ablation-sampling"])
def test_every_arm_of_an_ablation_changes_something(name):
    """No two rows are one configuration under two names, except the row that says what ours is."""
    study = open_study(name)
    whole = [(row.method, row_config(study, row, 0).model_dump_json()) for row in map(study.row, study.names)]
    assert len(set(whole)) == len(whole)


def test_a_critic_s_quality_is_its_place_in_the_sweep():
    study = open_study("ablation-critic")
    for row in map(study.row, study.names):
        if row.x is not None:
            rates = study.critic(row).removeprefix("simulated:").replace("sensitivity=", "").replace("specificity=", "").split(",")
            assert min(map(float, rates)) == row.x


def test_several_critics_make_a_row_each():
    """Rows without a critic, and those that name their own, stay as they are."""
    study = open_study("stamps", critics=["simulated:0.7", "simulated:0.87"])
    assert study.methods == tuple(method for method in open_study("stamps").methods if method not in ("ours", "ours-published-loss"))
    assert {name: (study.row(name).method, study.critic(study.row(name))) for name in study.arms} == {
        f"{method} {critic}": (method, critic) for method in ("ours", "ours-published-loss") for critic in ("simulated:0.7", "simulated:0.87")
    }
    assert all(study.uses_critic(study.row(name)) for name in study.arms)
    own = open_study("ablation-critic", critics=["simulated:0.7", "simulated:0.87"])
    assert own.names == open_study("ablation-critic").names
    assert open_study("stamps", critics=["simulated:0.7"]).names == open_study("stamps").names
    with pytest.raises(ConfigError, match="name each of them once"):
        open_study("stamps", critics=["simulated:0.7", "simulated:0.7"])


def test_a_row_for_each_critic_tells_what_it_was_worth(tmp_path):
    """From result files written by hand: the sheet of the critics, with a gain over the row before."""
    study = open_study("stamps", critics=["simulated:0.7", "simulated:0.87"])
    told = {"verdict_accuracy": 0.75, "spurious_recall": 0.5, "spurious_precision": 1.0, "core_recall": None, "cost_usd": 1.25}
    for name, worst, scores in (("before", 0.25, None), ("ours simulated:0.7", 0.5, told), ("ours simulated:0.87", 0.75, told | {"cost_usd": 2.0})):
        path = study.result_path(name, 0, tmp_path)
        path.parent.mkdir(parents=True)
        critic = "none" if scores is None else study.critic(study.row(name))
        stored = {"method": name, "critic": critic, "labels_used": "none", "selection": "last epoch", "critic_scores": scores, "inspected": {}}
        path.write_text(json.dumps(stored | {"metrics": {"worst_group_accuracy": worst}, "seconds": {"critic": 7.0}}))
    table = build_table(study, study.names, [0], tmp_path)
    (sheet,) = [sheet for sheet in make_sheets(table)[0] if sheet.title == "the critics"]
    assert [row[2:] for row in sheet.rows] == [
        ["0.750", "0.500", "1.000", "-", "+0.250", "1.25", "7"],
        ["0.750", "0.500", "1.000", "-", "+0.500", "2.00", "7"],
    ]
