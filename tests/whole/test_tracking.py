"""Settings, scores and curves reach MLflow and TensorBoard as they are, in the run folder alone unless the user says otherwise."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from rightreasons.common.progress import Silent
from rightreasons.config import parse_config
from rightreasons.errors import MissingExtra
from rightreasons.pipeline import tracking
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import invoke, the_error, write_scripted

TABLES = {
    "data": {"path": "/home/ann/scans/knees"},
    "model": {"source": "hf:/home/ann/net", "checkpoint": "/home/ann/model.safetensors"},
    "classes": {"a": {"description": "Ann's secret words."}, "b": {"description": "b"}},
    "critic": {"lvlm": "scripted:/home/ann/script.json", "base_url": "http://ann:password@host/v1"},
    "run": {"log": ["mlflow", "tensorboard"], "seed": 3},
}
SCORES = {"accuracy": 0.75, "mu_align": None, "spurious_share": 0.5, "groups": {"a with tag": {"accuracy": 0.5, "count": 4}}}
METRICS = {
    "task": "knees",
    "outcome": "shortcut found",
    "explanation": "It looks at tags.",
    "critic": {"simulated": True, "backend": "simulated"},
    "before": SCORES,
    "after": SCORES | {"accuracy": 0.875},
    "rejected": None,
    "epochs": [{"epoch": 1, "accuracy": 0.6, "swapped": None}, {"epoch": 2, "accuracy": 0.7, "swapped": 0.5}],
}


def make_config(**run):
    return parse_config({**TABLES, "run": TABLES["run"] | run}, source="test")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "my run"
    path.mkdir()
    for name in ("report.html", "metrics.json"):
        (path / name).write_text("{}")
    return RunFolder(path)


def track(folder, metrics=METRICS, **run):
    reporter = Silent()
    tracking.track_results(make_config(**run), metrics, folder, reporter)
    return reporter.notes


def test_settings_are_logged_without_folders_addresses_and_words():
    settings = tracking.list_settings(make_config())
    assert settings["run.seed"] == "3" and settings["data.path"] == "knees" and settings["model.source"] == "hf:net"
    assert settings["critic.lvlm"] == "scripted:script.json" and settings["align.lambda"] == "auto"
    assert not [key for key, value in settings.items() if "ann" in value.lower() or "password" in value or key.startswith(("classes", "run.log"))]


def test_mlflow_has_what_was_logged_and_a_second_time_nothing_is_doubled(folder, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was sent"))
    (note,) = track(folder, log=["mlflow"])
    assert "nothing was sent anywhere" in note
    track(folder, METRICS | {"after": SCORES | {"accuracy": 0.9}}, log=["mlflow"])
    with tracking._mlflow_client((folder.path / "mlflow").as_uri(), own=True) as client:
        (run,) = client.search_runs([client.get_experiment_by_name("rightreasons").experiment_id])
        history = client.get_metric_history(run.info.run_id, "fine-tuning.accuracy")
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert run.data.params["run.seed"] == "3" and run.data.tags["critic"] == "simulated" and run.info.run_name == "my run"
    assert run.data.metrics["before.accuracy"] == 0.75 and run.data.metrics["after.accuracy"] == 0.9
    assert run.data.metrics["after.group a with tag"] == 0.5 and "before.mu_align" not in run.data.metrics
    assert sorted({(point.step, point.value) for point in history}) == [(1, 0.6), (2, 0.7)]
    assert artifacts == {"report.html", "metrics.json"} and run.info.status == "FINISHED"


def test_tensorboard_has_what_was_logged_once(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        (note,) = track(folder, log=["tensorboard"])
    assert "tensorboard --logdir" in note
    (path,) = (folder.path / "tensorboard").iterdir()
    events = EventAccumulator(str(path))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("fine-tuning/accuracy")] == [(1, pytest.approx(0.6)), (2, pytest.approx(0.7))]
    assert events.Scalars("accuracy/after")[0].value == 0.875 and events.Scalars("accuracy/before")[0].value == 0.75


class Client:
    """Takes what MLflow's client takes."""

    def __init__(self):
        self.sent = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.sent.append((name, *arguments))
            return SimpleNamespace(info=SimpleNamespace(run_id="7"), experiment_id="1")

        return call


@pytest.mark.parametrize(
    ("uri", "report", "words"),
    [
        ("https://ann:key@tracking.example.org", False, "were sent to MLflow at tracking.example.org, as MLFLOW_TRACKING_URI says; report.html was"),
        ("databricks", False, "were sent to MLflow at databricks, as MLFLOW_TRACKING_URI says; report.html was not"),
        ("http://127.0.0.1:5000", True, "logged to MLflow on this machine, as MLFLOW_TRACKING_URI says, with report.html"),
    ],
)
def test_another_place_is_the_user_s_own_choice_and_images_stay_here(folder, monkeypatch, uri, report, words):
    client, asked = Client(), []

    @contextmanager
    def opened(uri, *, own):
        asked.append((uri, own))
        yield client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracking, "_mlflow_client", opened)
    (note,) = track(folder, log=["mlflow"])
    assert asked == [(uri, False)]
    assert any(call[0] == "log_artifact" for call in client.sent) == report
    assert words in note and "key" not in note


def test_mlflow_is_kept_from_reporting_its_use_and_the_environment_stays_as_it_was(tmp_path, monkeypatch):
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    with tracking._mlflow_client(tmp_path.as_uri(), own=True):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ and "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_a_tracker_that_fails_is_told_and_the_next_one_is_asked(folder, monkeypatch):
    def fail(*_):
        raise OSError("no space left\non the disk")

    monkeypatch.setitem(tracking._TRACKERS, "mlflow", fail)
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", lambda *_: "logged")
    first, second = track(folder)
    assert "not all was logged to mlflow (no space left)" in first and "logs them again" in first and second == "logged"


def test_a_tracker_that_is_not_installed_is_told_before_long_work(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"rightreasons\[mlflow\]"):
        tracking.check_trackers(make_config())


def test_the_command_logs_and_a_wrong_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", lambda settings, metrics, folder: f"logged {metrics['outcome']}")
    config = write_scripted(tmp_path, changes={"seed = 0": 'seed = 0\nlog = ["tensorboard"]'})
    assert "note: logged shortcut found" in invoke("find", config, "--out", tmp_path / "run").stderr
    assert "run.log.0 = 'wandb'" in the_error(invoke("score", tmp_path / "run", "--set", 'run.log=["wandb"]'))
    assert "logged" not in invoke("score", tmp_path / "run", "--set", "run.log=[]").stderr, "it may change at any time"
