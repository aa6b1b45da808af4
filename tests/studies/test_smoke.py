"""Every study that comes with the package runs to its table and figure at a tiny size, with each row that no study before it has."""

from __future__ import annotations

import json

import pytest

from rightreasons.common.progress import Silent
from rightreasons.data import open_data
from rightreasons.errors import DataError, MissingExtra
from rightreasons.studies.definition import BEFORE, OURS, Row, check_rows, open_study, packaged_studies, row_config
from rightreasons.studies.study import run_study

# Long computations in torch, whose lines other tests cover: measuring them again costs a third of their time.
pytestmark = pytest.mark.no_cover


def recipe(row: Row) -> str:
    """The method of a row and what the row itself changes; neither data nor network."""
    return json.dumps([row.method, {name: table for name, table in row.tables.items() if name != "data"}, row.align], sort_keys=True)


def new_rows() -> dict[str, list[str]]:
    """The rows of each study whose recipe no study before it has, and those of ``before`` and ``ours`` in any case."""
    had: set[str] = set()
    chosen = {}
    for name in reversed(packaged_studies()):  # stamps comes first, with every method on a pretrained network
        study = open_study(name, smoke=True)
        rows = [study.row(row) for row in study.names]
        chosen[name] = [row.name for row in rows if recipe(row) not in had or row.method in {BEFORE, OURS}]
        had |= {recipe(row) for row in rows}
    return chosen


ROWS = new_rows()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all, so that studies on the same data share a model, as in use."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.filterwarnings("ignore:no images of group")  # every test image of biased-mnist is in conflict
@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_a_study_runs(name, out):
    study, rows = open_study(name, smoke=True), ROWS[name]
    check_rows(study, study.names)
    configs = [row_config(study, study.row(row), 0).data for row in study.names]
    try:
        for data in {data.path: data for data in configs}.values():
            open_data(data, root=study.root, seed=0)
    except (DataError, MissingExtra) as error:
        pytest.skip(str(error))
    table = run_study(study, seeds=[0], methods=rows, out=out, reporter=Silent())
    not_installed = [failure["why"] for failure in table["failed"] if "which is not installed" in failure["why"]]
    if not_installed:
        pytest.skip(not_installed[0])
    assert table["failed"] == [] and [row["method"] for row in table["rows"]] == rows
    written = out / "smoke" / name
    assert {path.name for path in written.glob("table.*")} | {path.name for path in written.glob("figure.*")} == {
        "table.txt", "table.md", "table.csv", "table.tex", "table.json", "figure.png", "figure.svg",
    }  # fmt: skip
    assert not (out / name).exists(), "nothing of a smoke test lies where real results do"
    stored = [json.loads(path.read_text()) for path in written.glob("*/0.json")]
    assert len(stored) == len(rows) and all(result["smoke"] is True for result in stored)
    assert "SMOKE" in (written / "table.txt").read_text()
