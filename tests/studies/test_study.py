"""Studies: every method and arm on every seed, resumed from what is finished; and what a study tells of the images that were inspected."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from rightreasons.common.progress import Silent
from rightreasons.config import parse_config
from rightreasons.data.task import Task, TensorImages
from rightreasons.errors import ConfigError
from rightreasons.project.project import Project
from rightreasons.project.rehearsal import Rehearsal
from rightreasons.records import Attribution, Criticism, GroundTruth, Segmentation, Selection
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.scores import segment_scores
from rightreasons.studies.sheets import make_sheets
from rightreasons.studies.study import open_study, run_study

STUDY = """
methods = ["before", "ours"]

[config.data]
path = "decoy-mnist:packaged"
[config.model]
epochs = 15
[config.critic]
lvlm = "simulated:"
[config.sample]
size = 40
[config.align]
epochs = 1

[arms."random images"]
method = "before"
sample = { strategy = "random", per_class = "off" }

[arms."swap alone"]
align = { term = "swap" }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    (root / "mine.toml").write_text(STUDY)
    study = open_study(str(root / "mine.toml"))
    return study, root / "out", run_study(study, seeds=[0], methods=None, out=root / "out", reporter=Silent())


def test_a_row_for_each_method_and_arm(finished):
    _, _, table = finished
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["before", "ours", "random images", "swap alone"]
    assert rows["ours"]["metrics"]["accuracy"]["mean"] > rows["before"]["metrics"]["accuracy"]["mean"]
    assert rows["before"]["intervals"] == [None], "each digit is shown once"
    assert rows["before"]["selection"] == "last epoch" and "held-out" in rows["ours"]["selection"] and "held-out" in rows["swap alone"]["selection"]


def test_an_arm_that_names_a_method_has_no_critic(finished):
    """It says how the images were chosen, and the patch of every digit agrees in training, so that all of them have it."""
    _, out, table = finished
    rows = {row["method"]: row for row in table["rows"]}
    assert rows["random images"]["critic"] == rows["before"]["critic"] == "none" and "simulated" in rows["swap alone"]["critic"]
    assert rows["random images"]["inspected"]["spurious_fraction"]["mean"] == 1.0
    assert {str(path.relative_to(out / "mine")) for path in (out / "mine").glob("*/*.json")} == {
        "before/0.json",
        "ours-simulated/0.json",
        "random-images/0.json",
        "swap-alone-simulated/0.json",
    }


def test_what_is_finished_is_read_and_not_run_again(finished):
    study, out, table = finished

    class NothingToDo(Silent):
        def note(self, message):
            raise AssertionError(message)

    assert run_study(study, seeds=[0], methods=None, out=out, reporter=NothingToDo()) == table
    path = out / "mine" / "before" / "0.json"
    stored = json.loads(path.read_text())
    assert stored["settings_key"] == study.settings_key(study.row("before"), 0) and table["notes"] == []
    stored["metrics"]["accuracy"] = 0.125
    path.write_text(json.dumps(stored))
    again = run_study(study, seeds=[0], methods=["before"], out=out, reporter=NothingToDo())
    assert again["rows"][0]["metrics"]["accuracy"]["mean"] == 0.125


def test_a_result_file_from_before_a_metric_existed(finished):
    """Whichever seed it is of: the others tell the metric, and where none has it the table has a dash."""
    study, out, _ = finished
    path = out / "mine" / "before" / "0.json"
    whole = json.loads(path.read_text())
    old = whole | {"seed": 0, "metrics": {key: value for key, value in whole["metrics"].items() if key != "mu_align"}}
    newer = path.with_name("1.json")
    try:
        path.write_text(json.dumps(old))
        newer.write_text(json.dumps(whole | {"seed": 1, "settings_key": study.settings_key(study.row("before"), 1)}))
        table = run_study(study, seeds=[0, 1], methods=["before"], out=out, reporter=Silent())
        assert table["rows"][0]["metrics"]["mu_align"]["values"] == [whole["metrics"]["mu_align"]]
        (sheet, *_), _ = make_sheets(run_study(study, seeds=[0], methods=["before"], out=out, reporter=Silent()))
        shown = dict(zip(sheet.columns, sheet.rows[0], strict=True))
        assert shown["mu_align"] == "-" and shown["average group"] == f"{whole['metrics']['average_group_accuracy']:.3f}"
    finally:
        path.write_text(json.dumps(whole))
        newer.unlink()


def test_an_arm_of_an_unknown_method(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY.replace('method = "before"', 'method = "behind"'))
    with pytest.raises(ConfigError, match="behind"):
        open_study(str(tmp_path / "mine.toml"))


def test_segment_scores(tmp_path):
    """A segment on half of the first image's mask and as much beside it, one beside the second image's mask, and a third image without a mask.

    Two pixels around the second image's mask of one row are all rows but that of its segment.
    """
    segments = torch.full((3, 4, 4), -1)
    segments[0, :2] = 0
    segments[1, 3] = 0
    segments[2, 0] = 0
    effect = segments >= 0
    heatmaps = torch.where(effect, 1.0, 0.0)
    heatmaps[0, 0] = 5.0
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0] = masks[0, 3] = masks[1, 0] = True
    settings = {"data": {"path": "x"}, "model": {"source": "x"}, "classes": {"x": {"description": "x"}}, "critic": {"lvlm": "simulated:"}}
    images = TensorImages(torch.zeros(8, 1, 4, 4), torch.zeros(8, dtype=torch.long))
    truth = GroundTruth([""] * 8, lambda index: {5: masks[0], 6: masks[1]}.get(index), torch.zeros(8, dtype=torch.bool))
    config, model, splits = parse_config(settings, source="x"), nn.Flatten(), dict.fromkeys(("train", "validation", "test"), images)
    task = Task("x", ("x",), splits, "x", truth={"train": truth})
    project = Project(config, tmp_path, task, (), model, Rehearsal({}), is_trained=True)
    run = Run(
        project, RunFolder(tmp_path), model,
        Selection("random", torch.tensor([5, 6, 7]), torch.zeros(3, dtype=torch.long), torch.zeros(3)),
        Attribution(heatmaps, torch.zeros(3, dtype=torch.long), torch.zeros(3)),
        Segmentation(segments, effect, torch.ones(3, 1), ("segmented",) * 3),
        [], [], [], Criticism("simulated:", True),
    )  # fmt: skip
    assert segment_scores(run) == {"found": 0.5, "found_near": 0.5, "recall": 0.25, "precision": 0.5}
    masks[1, 0], masks[1, 1] = False, True
    assert segment_scores(run) == {"found": 0.5, "found_near": 1.0, "recall": 0.25, "precision": 0.5}
    run.project = replace(project, task=replace(task, truth={}))
    assert segment_scores(run) == {"found": None, "found_near": None, "recall": None, "precision": None}
