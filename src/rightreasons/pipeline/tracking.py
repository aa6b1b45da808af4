"""Settings, scores and the course of fine-tuning for MLflow and TensorBoard, as ``[run] log`` names them.

Both write into the run folder. Only if the user's own MLFLOW_TRACKING_URI names another place does MLflow write there, and a note says where. No key
is in a configuration, paths are logged without their folders, and what shows images stays on this machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from rightreasons.common.files import write_text
from rightreasons.common.progress import Reporter
from rightreasons.common.text import drop_folders
from rightreasons.config import Config
from rightreasons.errors import MissingExtra
from rightreasons.lvlm.wire.privacy import is_loopback, redact
from rightreasons.runs.folder import RunFolder

TRACKING = "tracking.json"
# The environment variable by which MLflow itself is told where to write.
MLFLOW_URI = "MLFLOW_TRACKING_URI"
# Addresses of servers may carry a password; what an expert wrote is in the report.
_NOT_LOGGED = ("critic.base_url", "critic.judge_base_url", "classes.")
# MLflow takes at most 500 characters.
LONGEST_VALUE = 500


def check_trackers(config: Config) -> None:
    """Raises MissingExtra for a tracker that is not installed, before long work."""
    for name in config.run.log:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, name)


def track_results(config: Config, metrics: Mapping[str, Any], folder: RunFolder, reporter: Reporter) -> None:
    """Logs what metrics.json has to each tracker that the configuration names. A tracker that fails is noted; the results are saved already."""
    settings = list_settings(config)
    for name in config.run.log:
        try:
            reporter.note(_TRACKERS[name](settings, metrics, folder))
        except Exception as error:  # a server that is away, a full disk: whatever a tracker raises, the run is complete without it
            why = next(iter(redact(str(error)).strip().splitlines()), type(error).__name__)
            reporter.note(
                f"not all was logged to {name} ({why}). The results are complete in {folder.path}; `rightreasons score {folder.path}` logs them again"
            )


def list_settings(config: Config) -> dict[str, str]:
    """Every setting under its key, such as "align.epochs": paths without their folders, no address, no words of an expert."""
    flat: dict[str, str] = {}

    def add(table: Mapping[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping):
                add(value, f"{prefix}{key}.")
            elif value is not None and not f"{prefix}{key}".startswith(_NOT_LOGGED):
                words = value if isinstance(value, str) else json.dumps(value)
                flat[f"{prefix}{key}"] = ":".join(map(drop_folders, words.split(":")))[:LONGEST_VALUE]

    add(config.model_dump(by_alias=True, mode="json", exclude={"run": {"log"}}), "")
    return flat


def list_scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of each column of metrics.json: "before", "after" and "rejected", as far as the run has them; groups as "group NAME"."""
    columns = {}
    for column in ("before", "after", "rejected"):
        scores = metrics.get(column)
        if scores:
            numbers = {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}
            columns[column] = numbers | {f"group {name}": group["accuracy"] for name, group in scores["groups"].items()}
    return columns


def list_curves(metrics: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    """What was measured after each epoch of fine-tuning, as (epoch, name, value); nothing for a run without such measurements."""
    for epoch in metrics.get("epochs") or []:
        for name, value in epoch.items():
            if name != "epoch" and isinstance(value, int | float):
                yield epoch["epoch"], name, float(value)


def _log_tensorboard(settings: Mapping[str, str], metrics: Mapping[str, Any], folder: RunFolder) -> str:
    from torch.utils.tensorboard import SummaryWriter

    path = folder.path / "tensorboard" / _identify(settings)
    shutil.rmtree(path, ignore_errors=True)  # logged again as a whole, so that no point stands twice
    with SummaryWriter(str(path)) as writer:
        writer.add_text("settings", "\n".join(f"- {key} = {value}" for key, value in settings.items()))
        writer.add_text("outcome", f"{metrics['outcome']}: {metrics['explanation']}")
        for step, (column, numbers) in enumerate(list_scores(metrics).items()):
            for name, value in numbers.items():
                writer.add_scalar(f"{_tag(name)}/{column}", value, step)
        for epoch, name, value in list_curves(metrics):
            writer.add_scalar(f"fine-tuning/{_tag(name)}", value, epoch)
    return f"logged to TensorBoard: `tensorboard --logdir {folder.path / 'tensorboard'}` shows it"


def _log_mlflow(settings: Mapping[str, str], metrics: Mapping[str, Any], folder: RunFolder) -> str:
    stated = os.environ.get(MLFLOW_URI)
    uri = stated or (folder.path / "mlflow").resolve().as_uri()
    with _mlflow_client(uri, own=not stated) as client:
        found = client.get_experiment_by_name("rightreasons")
        experiment = found.experiment_id if found else client.create_experiment("rightreasons")
        run = _mlflow_run(client, experiment, uri, settings, metrics, folder)
        for column, numbers in list_scores(metrics).items():
            for name, value in numbers.items():
                client.log_metric(run, f"{column}.{_tag(name)}", value, step=0)
        for epoch, name, value in list_curves(metrics):
            client.log_metric(run, f"fine-tuning.{_tag(name)}", value, step=epoch)
        local = _is_here(uri)
        if local:
            client.log_artifact(run, str(folder.path / "report.html"))
            client.log_artifact(run, str(folder.path / "metrics.json"))
        client.set_terminated(run)
    if not stated:
        return f"logged to MLflow in {folder.path / 'mlflow'}; nothing was sent anywhere"
    if local:
        return f"logged to MLflow on this machine, as {MLFLOW_URI} says, with report.html"
    return (
        f"settings, scores and curves were sent to MLflow at {urlsplit(uri).hostname or uri}, as {MLFLOW_URI} says; report.html was not, since it "
        "shows inspected images"
    )


def _is_here(uri: str) -> bool:
    """Whether MLflow keeps what goes there on this machine. A word such as "databricks" is a place that MLflow alone knows."""
    host = urlsplit(uri).hostname
    return urlsplit(uri).scheme in ("file", "sqlite") or PurePath(uri).is_absolute() or (host is not None and is_loopback(host))


def _mlflow_run(client: Any, experiment: str, uri: str, settings: Mapping[str, str], metrics: Mapping[str, Any], folder: RunFolder) -> str:  # noqa: ANN401
    """The number of MLflow's run for these settings: the one that this folder logged to before, or a new one, as MLflow never changes settings."""
    path, key = folder.path / TRACKING, _identify({**settings, "": uri})
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in known:
        run = client.create_run(experiment, run_name=folder.path.resolve().name, tags={"task": metrics["task"]}).info.run_id
        for name, value in settings.items():
            client.log_param(run, _tag(name), value)
        known[key] = run
        write_text(path, json.dumps(known, indent=2) + "\n")
    client.set_tag(known[key], "outcome", metrics["outcome"])
    client.set_tag(known[key], "critic", "simulated" if metrics["critic"]["simulated"] else metrics["critic"]["backend"])
    return known[key]


@contextmanager
def _mlflow_client(uri: str, *, own: bool) -> Iterator[Any]:
    """MLflow's client for one place, without the report of its use that MLflow would send to its makers."""
    # A folder needs leave since MLflow 3.17, which else wants a database and a package for it.
    wanted = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"} | ({"MLFLOW_ALLOW_FILE_STORE": "true"} if own else {})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        from mlflow.tracking import MlflowClient

        yield MlflowClient(tracking_uri=uri)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _identify(settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _tag(name: str) -> str:
    """A name as both trackers take it."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-./ ") else "_" for letter in name)


_TRACKERS = {"mlflow": _log_mlflow, "tensorboard": _log_tensorboard}
