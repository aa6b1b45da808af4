"""From a configuration to a project: task, model and LVLM. All that is cheap to check is checked here, before long work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from rightreasons.common.seeds import seeded
from rightreasons.config import Config, CriticConfig, merge_tables, parse_config, read_toml
from rightreasons.data import open_data, task_defaults
from rightreasons.data.assemble import check_classes_read
from rightreasons.data.loading import count_images, read_batches
from rightreasons.data.task import Task
from rightreasons.errors import ConfigError, DataError
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.backends import BACKENDS, kind_of
from rightreasons.networks.class_order import order_outputs
from rightreasons.networks.classifier import Classifier, as_classifier, copy_model, hash_weights, place_model
from rightreasons.networks.presets import Preset
from rightreasons.networks.sources import find_checkpoint, open_model, read_preset
from rightreasons.project.rehearsal import Rehearsal, rehearse
from rightreasons.records import ClassDescription
from rightreasons.runs.folder import RunFolder

Role = Literal["critic", "judge"]


@dataclass(frozen=True)
class Project:
    """A checked configuration with its data and its model, which ``is_trained`` unless the run is to train it.

    ``notes`` report which part of a checkpoint was taken, and by which names its outputs were put into the data's order. ``backends`` has the
    critic and the judge if the caller opened them, as in Python; else the configuration names them.
    """

    config: Config
    root: Path
    task: Task
    descriptions: tuple[ClassDescription, ...]
    model: nn.Module
    rehearsal: Rehearsal
    is_trained: bool
    notes: tuple[str, ...] = ()
    backends: tuple[LVLM, LVLM] | None = None

    @property
    def train(self) -> Dataset:
        """The images that are inspected and fine-tuned on."""
        return self.task.splits["train"]

    @property
    def validation(self) -> Dataset:
        """The held-out images that choose the epoch and guard against harm."""
        return self.task.splits["validation"]

    @property
    def manifest(self) -> str:
        """The hash that identifies data and checkpoint."""
        checkpoint = f", model {hash_weights(self.model)}" if self.config.model.checkpoint else ""
        return f"{self.task.manifest}{checkpoint}"


def open_project(tables: dict[str, Any], *, source: str, root: Path) -> Project:
    """Reads and checks everything that a configuration names except the LVLM. Relative paths start from ``root``.

    Raises RightReasonsError for anything that cannot be used.
    """
    path = tables.get("data", {}).get("path") if isinstance(tables.get("data"), dict) else None
    defaults = task_defaults(path) if isinstance(path, str) else {}
    config = parse_config(tables, source=source, defaults=defaults)
    if not defaults and config.data.size is None:
        config = _with(config, "data", size=read_preset(config.model, root=root).size)
    task = open_data(config.data, root=root, seed=config.run.seed)
    check_classes_read(task)
    config = _with(config, "model", checkpoint=find_checkpoint(config.model, classes=len(task.classes), root=root))
    descriptions = config.descriptions(task.classes)
    notes: list[str] = []
    model = open_model(config.model, classes=task.classes, root=root, generator_seed=config.run.seed, note=notes.append, synonyms=config.data.names)
    is_trained = config.model.checkpoint is not None
    rehearsal = rehearse(model, task.splits, task.classes, config, train_first=not is_trained)
    return Project(config, root, task, descriptions, model, rehearsal, is_trained, tuple(notes))


def project_in_memory(
    model: nn.Module,
    splits: Mapping[str, Dataset | None],
    descriptions: Mapping[str, ClassDescription],
    *,
    lvlm: LVLM,
    judge: LVLM | None,
    preset: Preset | None,
    settings: Mapping[str, object],
) -> Project:
    """The project of a trained model and of datasets ("train", and "validation" and "test" or None), checked like those of a configuration.

    Without a validation split a tenth of the training split is held out, and without a test split the validation images are scored.
    Raises RightReasonsError for anything that cannot be used.
    """
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    assert train is not None  # it is not optional
    tables = {
        "data": {"path": type(train).__name__},
        "model": {"source": type(model).__name__},
        "classes": {name: {"description": item.description, "irrelevant": item.irrelevant} for name, item in descriptions.items()},
        "critic": {"lvlm": lvlm.name},
    }
    config = parse_config(merge_tables(tables, dict(settings)), source="settings")
    if config.critic.lvlm != lvlm.name:
        raise ConfigError(f"settings: critic.lvlm = {config.critic.lvlm!r}, but lvlm is {lvlm.name!r}: pass the one to be asked as lvlm")
    judge = judge or _named_judge(config, lvlm)
    if validation is None:
        train, validation = _hold_out(train, config.run.seed)
    notes = (
        ()
        if test is not None
        else ("there is no test_set: the scores are those on the validation images, which also choose the epoch of fix_shortcuts",)
    )
    classes = tuple(descriptions)
    given = as_classifier(model) if preset is None else Classifier(as_classifier(model).network, preset, as_classifier(model).order)
    classifier = order_outputs(given, classes, config.model.classes)
    named = {"train": train, "validation": validation} | ({} if test is None else {"test": test})
    identity = f"{type(train).__name__} of {count_images(train)}, model {hash_weights(classifier)}" + (f", {preset}" if preset else "")
    task = Task(type(train).__name__, classes, named, identity, told="datasets given in Python")
    rehearsal = rehearse(copy_model(classifier), named, classes, config)
    return Project(
        config, Path.cwd(), task, tuple(descriptions.values()), classifier, rehearsal, is_trained=True, notes=notes, backends=(lvlm, judge)
    )


def _named_judge(config: Config, lvlm: LVLM) -> LVLM:
    """The judge that the settings name, or else the critic."""
    if config.critic.judge is None:
        return lvlm
    spec, base_url = find_server(config.critic, "judge")
    return open_lvlm(spec, base_url=base_url, timeout=config.critic.timeout, seed=config.run.seed)


def _hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Two random parts of a dataset: nine tenths for training, one tenth for validation."""
    order = torch.randperm(count_images(dataset), generator=seeded(seed, "hold out")).tolist()
    cut = max(1, len(order) // 10)
    return Subset(dataset, sorted(order[cut:])), Subset(dataset, sorted(order[:cut]))


def read_project(path: Path) -> Project:
    """The project of a configuration file; its paths start from where the file lies."""
    return open_project(read_toml(path), source=str(path), root=path.parent)


def open_lvlms(project: Project, allow_remote: tuple[str, ...]) -> tuple[LVLM, LVLM]:
    """The critic and the judge, which are one object unless the configuration names another judge."""
    if project.backends is not None:
        return project.backends
    first = open_role(project, "critic", allow_remote)
    return first, first if project.config.critic.judge is None else open_role(project, "judge", allow_remote)


def open_role(project: Project, role: Role, allow_remote: tuple[str, ...]) -> LVLM:
    """The backend of the critic or the judge. Raises RightReasonsError for one that cannot be used."""
    critic, truth = project.config.critic, project.task.truth.get("train")
    spec, base_url = find_server(critic, role)
    seed, root = project.config.run.seed, project.root
    return open_lvlm(spec, base_url=base_url, allow_remote=allow_remote, timeout=critic.timeout, truth=truth, seed=seed, root=root)


def find_server(critic: CriticConfig, role: Role) -> tuple[str, str | None]:
    """The model of a role and the address of its server. The judge never gets another provider's address, since its key would be sent there."""
    if role == "critic" or critic.judge is None:
        return critic.lvlm, critic.base_url
    kind = kind_of(critic.lvlm)
    elsewhere = kind != kind_of(critic.judge) and kind in BACKENDS and BACKENDS[kind].key is not None
    return critic.judge, critic.judge_base_url or (None if elsewhere else critic.base_url)


def price_file(project: Project) -> Path | None:
    """The user's own prices, if the configuration names a file."""
    prices = project.config.critic.prices
    return project.root / prices if prices else None


def example_file(project: Project) -> Path | None:
    """The judge's few-shot examples, if the configuration names a file."""
    examples = project.config.critic.examples
    return project.root / examples if examples else None


def project_of_run(folder: RunFolder, *, file: Path | None = None, changes: Mapping[str, Any] | None = None) -> Project:
    """The project of a run, with the settings of its folder, or of a configuration ``file``, and ``changes`` laid over them, which are stored.

    Raises ConfigError if data, weights or settings are not those with which the run was made.
    """
    project = read_run_project(folder, file=file, changes=changes)
    go_on(project, folder)
    return project


def read_run_project(folder: RunFolder, *, file: Path | None = None, changes: Mapping[str, Any] | None = None) -> Project:
    """The project as ``project_of_run`` has it, with the run folder only read."""
    stored = folder.config()
    if file is None:
        tables, source, root = stored.model_dump(by_alias=True, exclude_none=True), str(folder.path / "config.toml"), folder.root()
    else:
        tables, source, root = read_toml(file), str(file), file.parent
    try:
        return open_project(merge_tables(tables, dict(changes or {})), source=source, root=root)
    except DataError as error:
        raise DataError(
            f"{error}. The run was made in {folder.environment()['root']}; if the images are elsewhere now: --set data.path=FOLDER"
        ) from error


def go_on(project: Project, folder: RunFolder) -> None:
    """Makes the run folder, or continues in it if it belongs to this project."""
    folder.start(project.config, manifest=project.manifest, root=project.root, splits=project.task.splits)


def fresh_model(project: Project) -> nn.Module:
    """A copy of the project's model, ready to run."""
    return place_model(copy_model(project.model), next(read_batches(project.task.splits["train"], batch_size=2)).images)


def _with(config: Config, table: str, **changes: object) -> Config:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=changes)})
