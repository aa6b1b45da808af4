"""The studies that come with the package: every row can be read, has its place in a sweep, and means what its name says."""

from __future__ import annotations

import pytest

from rightreasons.studies.definition import check_rows, open_study, packaged_studies, row_config
from rightreasons.studies.table import find_partner


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
    assert row_config(study, study.row("published loss, lambda 1e2"), 0).align.penalty == "log_prob_sum"


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
