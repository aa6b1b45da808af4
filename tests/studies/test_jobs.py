"""Rows in several processes, the store of shortcut models that they share, and what a row that fails leaves of the others."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from pathlib import Path

import pytest
import torch

from rightreasons.common.progress import Silent
from rightreasons.config import merge_tables
from rightreasons.errors import ConfigError, StudyUnfinished
from rightreasons.networks.classifier import hash_weights
from rightreasons.project.project import fresh_model, go_on, open_project
from rightreasons.runs.folder import RunFolder
from rightreasons.studies import jobs
from rightreasons.studies.definition import open_study
from rightreasons.studies.store import model_key, place_model
from rightreasons.studies.study import run_study

# Arms: one whose process is killed while its model is built, one whose data do not exist, and one of another network seed.
STUDY = """
methods = ["before"]

[config]
data.path = "decoy-mnist:packaged"
critic.lvlm = "simulated:"
model = { epochs = 1 }
sample.size = 10
attribute.baselines = 2
align.epochs = 1

[arms."dies"]
method = "before"
model.source = "python:killer:build"

[arms."nowhere"]
method = "before"
data.path = "decoy-mnist:nowhere"

[arms."random images"]
method = "before"
sample.strategy = "random"
"""
KILLER = """
import os, signal

def build(num_classes):
    os.kill(os.getpid(), signal.SIGKILL)
"""
TABLES = {
    "data": {"path": "decoy-mnist:packaged"}, "critic": {"lvlm": "simulated:"}, "model": {"epochs": 1}, "sample": {"size": 10},
    "attribute": {"baselines": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("jobs")
    (root / "mine.toml").write_text(STUDY)
    (root / "killer.py").write_text(KILLER)
    study, told = open_study(str(root / "mine.toml")), Silent()
    return study, root / "out", run_study(study, seeds=[0], methods=None, out=root / "out", reporter=told, jobs=2), told.notes


def test_a_process_that_dies_is_told_of_and_the_others_finish(finished):
    _, out, table, notes = finished
    assert [row["method"] for row in table["rows"]] == ["before", "random images"]
    assert any("failed: " in note and "dies (seed 0)" in note for note in table["notes"])
    failed = {failure["row"]: failure["why"] for failure in table["failed"]}
    assert set(failed) == {"dies", "nowhere"}
    assert "SIGKILL" in failed["dies"] and "no variant 'nowhere'" in failed["nowhere"]
    assert sum("failed" in note for note in notes) == 2
    assert (out / "mine" / "table.txt").exists()


def test_each_process_has_its_share_of_the_threads(finished):
    _, out, _, _ = finished
    stored = json.loads((out / "mine" / "before" / "0.json").read_text())
    assert stored["threads"] == max(1, torch.get_num_threads() // 2)
    assert stored["seconds"]["find"] > 0 and stored["seconds"]["method"] >= 0


def test_rows_that_inspect_other_images_share_the_model(finished):
    """Two processes needed it at once: one trained it, the other waited."""
    _, out, table, _ = finished
    assert len(list((out / "models").glob("*.safetensors"))) == 1
    rows = {row["method"]: row["metrics"]["accuracy"]["mean"] for row in table["rows"]}
    assert rows["before"] == rows["random images"]


def test_what_failed_is_tried_again_and_the_rest_is_not(finished, monkeypatch):
    study, out, _, _ = finished
    tried = []
    monkeypatch.setattr(jobs, "find_shortcut", lambda study, row, *rest: tried.append(row.name) or (_ for _ in ()).throw(ConfigError("not now")))
    table = run_study(study, seeds=[0], methods=None, out=out, reporter=Silent())
    assert tried == ["dies", "nowhere"] and [failure["why"] for failure in table["failed"]] == ["not now"] * 2
    with pytest.raises(StudyUnfinished, match=r"dies, seed 0: not now"):
        run_study(study, seeds=[0], methods=["dies"], out=out, reporter=Silent())


def test_rows_of_one_run_folder_are_one_part(finished):
    study, out, _, _ = finished
    groups = jobs.group_rows(study, study.names, [0, 1], out)
    assert [group.rows for group in groups if group.seed == 1] == [("before",), ("dies",), ("nowhere",), ("random images",)]
    align = open_study("decoy-mnist-choices")
    by_align = jobs.group_rows(align, ["ours", "swap alone", "segment mask", "no quota"], [0], out)
    assert [group.rows for group in by_align] == [("ours", "swap alone", "segment mask"), ("no quota",)]


def test_a_mistake_in_any_row_is_told_before_anything_runs(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY + '[arms."wrong"]\nalign.term = "swop"\n')
    with pytest.raises(ConfigError, match=r"row wrong: align\.term"):
        run_study(open_study(str(tmp_path / "mine.toml")), seeds=[0], methods=None, out=tmp_path / "out", reporter=Silent())
    assert not (tmp_path / "out").exists()


def project(**changes):
    return open_project(merge_tables(TABLES, changes), source="test", root=Path.cwd())


def test_the_key_of_a_model_is_all_that_it_depends_on():
    keys = {
        model_key(project(**changes))
        for changes in (
            {},
            {"run": {"seed": 1}},
            {"model": {"learning_rate": 0.01}},
            {"data": {"flips": "horizontal"}},
            {"data": {"path": "decoy-mnist:packaged:without-patch"}},
        )
    }
    assert len(keys) == 5
    same = project(sample={"size": 20}, align={"epochs": 3}, attribute={"baselines": 3}, critic={"lvlm": "simulated:0.9"})
    assert model_key(same) == model_key(project())


def test_a_model_is_trained_once_and_copied_into_each_run(tmp_path):
    first, second, told = project(), project(sample={"size": 20}), Silent()
    place_model(first, RunFolder(tmp_path / "a"), tmp_path / "models", told)
    trained = told.seconds["train"]
    seconds = place_model(second, RunFolder(tmp_path / "b"), tmp_path / "models", told)
    assert told.seconds["train"] == trained and seconds >= trained, "the second one trained nothing, and tells the first one's time"
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert sorted(path.suffix for path in (tmp_path / "models").iterdir()) == [".json", ".lock", ".safetensors"]


def test_a_model_trained_before_there_was_a_store_is_taken_into_it(tmp_path):
    from rightreasons.pipeline.find import trained_model

    first, folder, told = project(), RunFolder(tmp_path / "old"), Silent()
    go_on(first, folder)
    model = trained_model(first, folder, told)
    assert hash_weights(model) != hash_weights(fresh_model(first))
    assert place_model(first, folder, tmp_path / "models", told) is None, "its time is not known"
    place_model(first, RunFolder(tmp_path / "new"), tmp_path / "models", told)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (tmp_path / "old" / "model.safetensors").read_bytes()


def test_who_needs_a_model_that_another_process_trains_waits(tmp_path):
    first, told = project(), Silent()
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / f"{model_key(first)}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=place_model, args=(first, RunFolder(tmp_path / "a"), tmp_path / "models", told))
        waiting.start()
        deadline = time.monotonic() + 60
        while not any("waiting for it" in note for note in told.notes) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any("waiting for it" in note for note in told.notes) and not (tmp_path / "a" / "model.safetensors").exists()
    waiting.join(60)
    assert (tmp_path / "a" / "model.safetensors").exists()
