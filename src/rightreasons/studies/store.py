"""The store of shortcut models: one file for the same data, network, recipe and seed, trained once and shared by every method and study."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rightreasons.common.files import write_atomically, write_text
from rightreasons.common.progress import Reporter
from rightreasons.networks.classifier import hash_weights
from rightreasons.pipeline.find import trained_model
from rightreasons.project.project import Project, go_on
from rightreasons.runs.folder import RunFolder


def place_model(project: Project, folder: RunFolder, store: Path, reporter: Reporter) -> float | None:
    """Puts the trained shortcut model into the run ``folder``, from the ``store`` if it has it, else trained there first; returns the seconds.

    A second process that needs the same model waits until the first has trained it. The seconds are those of the training, whoever did it. They
    are None where they are not known: the training was stopped in between, or the run folder is from before there was a store.
    """
    if project.is_trained:
        return None
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = store / f"{model_key(project)}.safetensors"
    go_on(project, folder)
    with _waiting_for(kept.with_suffix(".lock"), reporter):
        if not kept.exists():
            if folder.trained_model.exists():
                _copy(folder.trained_model, kept)
            else:
                _train(project, kept, reporter)
    if not folder.trained_model.exists():
        _copy(kept, folder.trained_model)
    noted = kept.with_suffix(".json")
    return json.loads(noted.read_text(encoding="utf-8"))["seconds"] if noted.exists() else None


def model_key(project: Project) -> str:
    """A hash of all that the shortcut model depends on: the data and how they are read, the first weights, the recipe, and the seed."""
    config = project.config
    parts = {
        "data": [project.task.name, project.task.manifest, config.data.model_dump(mode="json"), list(project.task.classes)],
        "model": [config.model.model_dump(mode="json"), hash_weights(project.model)],
        "seed": config.run.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _train(project: Project, kept: Path, reporter: Reporter) -> None:
    """Trains in a folder beside the file, which keeps the finished epochs if it is stopped."""
    work = kept.with_suffix(".training")
    fresh, start = not work.exists(), time.perf_counter()
    work.mkdir(exist_ok=True, mode=0o700)
    trained_model(project, RunFolder(work), reporter)
    seconds = time.perf_counter() - start if fresh else None
    write_text(kept.with_suffix(".json"), json.dumps({"seconds": seconds}) + "\n")
    (work / "model.safetensors").replace(kept)
    shutil.rmtree(work)


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda part: shutil.copyfile(source, part))


@contextlib.contextmanager
def _waiting_for(path: Path, reporter: Reporter) -> Iterator[None]:
    """Holds a lock file, after waiting for whoever holds it. The system frees it when a process ends, however it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.note("another process trains the same shortcut model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
