"""From a configuration file to what a run works on: task, model and LVLM. Everything cheap is checked here, before long work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rightreasons.config import Config, merge_tables, parse_config, read_toml
from rightreasons.data import open_data, task_defaults
from rightreasons.data.loading import read_batches
from rightreasons.data.task import Task
from rightreasons.descriptions import check_descriptions
from rightreasons.errors import ConfigError, DataError
from rightreasons.files import write_atomically
from rightreasons.judge import read_examples
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.hosts import read_host
from rightreasons.lvlm.prices import required_price
from rightreasons.lvlm.privacy import is_loopback
from rightreasons.models import copy_model, hash_weights, load_checkpoint, place_model, save_checkpoint
from rightreasons.pipeline import find, record_manifest
from rightreasons.progress import Reporter
from rightreasons.records import ClassDescription
from rightreasons.rehearsal import Rehearsal, rehearse
from rightreasons.run import Run
from rightreasons.runs import RunFolder
from rightreasons.seeds import seeded
from rightreasons.sources import find_checkpoint, open_model, read_preset
from rightreasons.training import Recipe, train_plainly

Role = Literal["critic", "judge"]


@dataclass(frozen=True)
class Project:
    """A checked configuration: ``model`` fits the data and has its checkpoint's weights, or its first ones where it is still to be trained.

    ``notes`` tell what was taken of a checkpoint, and by which names its outputs were put into the data's order.
    """

    config: Config
    root: Path
    task: Task
    descriptions: tuple[ClassDescription, ...]
    model: nn.Module
    rehearsal: Rehearsal
    notes: tuple[str, ...] = ()

    @property
    def manifest(self) -> str:
        """What identifies data and checkpoint."""
        checkpoint = f", model {hash_weights(self.model)}" if self.config.model.checkpoint else ""
        return f"{self.task.manifest}{checkpoint}"


def open_project(tables: dict[str, Any], *, source: str, root: Path) -> Project:
    """Reads and checks everything that a configuration names but the LVLM. Paths start from ``root``.

    Raises RightReasonsError for whatever cannot be used.
    """
    path = tables.get("data", {}).get("path") if isinstance(tables.get("data"), dict) else None
    defaults = task_defaults(path) if isinstance(path, str) else {}
    config = parse_config(tables, source=source, defaults=defaults)
    if not defaults and config.data.size is None:
        config = _with(config, "data", size=read_preset(config.model, root=root).size)
    task = open_data(config.data, root=root, seed=config.run.seed)
    config = _with(config, "model", checkpoint=find_checkpoint(config.model, classes=len(task.classes), root=root))
    descriptions = config.descriptions(task.classes)
    notes: list[str] = []
    model = open_model(config.model, classes=task.classes, root=root, generator_seed=config.run.seed, note=notes.append, synonyms=config.data.names)
    rehearsal = rehearse(model, task.splits, task.classes, config, train_first=config.model.checkpoint is None)
    return Project(config, root, task, descriptions, model, rehearsal, tuple(notes))


def read_project(path: Path) -> Project:
    """The project of a configuration file; its paths start from where the file lies."""
    return open_project(read_toml(path), source=str(path), root=path.parent)


def find_in_project(
    project: Project,
    folder: RunFolder,
    *,
    reporter: Reporter,
    allow_remote: tuple[str, ...] = (),
    retry_unknown: bool = False,
    max_usd: float | None = None,
    carried: tuple[LVLM, LVLM] | None = None,
) -> Run:
    """``find`` for a project, training its model first where it has no checkpoint. ``max_usd`` comes before the configuration's.

    ``carried`` has the backends of a run that will ask nothing, since every answer is there: no price is needed for it, and no server.
    """
    critic, prices = project.config.critic, None
    lvlm, judge = carried or open_lvlms(project, allow_remote)
    if carried is None:
        prices = {model.name: required_price(model, price_file(project)) for model in (lvlm, judge)}
        for model in [lvlm] if judge is lvlm else [lvlm, judge]:
            if (server := str((model.address or {}).get("base_url"))).lower().startswith("http://") and not is_loopback(read_host(server)):
                reporter.note(f"the way to {server} is not encrypted: whoever is on it can read the images, and the key")
            model.check()
    model = prepare(project, folder, reporter)
    return find(
        project.config,
        folder,
        model,
        project.task.splits["train"],
        project.task.splits["validation"],
        project.descriptions,
        lvlm,
        judge=judge,
        examples=project.root / critic.examples if critic.examples else None,
        retry_unknown=retry_unknown,
        prices=prices,
        max_usd=critic.max_usd if max_usd is None else max_usd,
        reporter=reporter,
    )


def prepare(project: Project, folder: RunFolder, reporter: Reporter) -> nn.Module:
    """Checks what can be checked before long work, starts the run folder, and gives the trained model."""
    examples = project.config.critic.examples
    read_examples(project.root / examples if examples else None, seeded(project.config.run.seed, "few-shot"))
    for note in check_descriptions(project.descriptions):
        reporter.note(note)
    for problem in (*project.task.problems, *project.notes):
        reporter.note(problem)
    go_on(project, folder)
    record_manifest(folder, project.task.splits, len(project.task.classes), reporter)
    return trained_model(project, folder, reporter)


def open_lvlms(project: Project, allow_remote: tuple[str, ...]) -> tuple[LVLM, LVLM]:
    """The critic and the judge, which are one object where the configuration names no other judge."""
    first = open_role(project, "critic", allow_remote)
    return first, first if project.config.critic.judge is None else open_role(project, "judge", allow_remote)


def open_role(project: Project, role: Role, allow_remote: tuple[str, ...]) -> LVLM:
    """The backend of the critic or the judge. Raises RightReasonsError for one that cannot be used."""
    critic, truth = project.config.critic, project.task.truth.get("train")
    spec, base_url = critic.server(role)
    seed, root = project.config.run.seed, project.root
    return open_lvlm(spec, base_url=base_url, allow_remote=allow_remote, timeout=critic.timeout, truth=truth, seed=seed, root=root)


def price_file(project: Project) -> Path | None:
    """The user's own prices, where the configuration names a file."""
    prices = project.config.critic.prices
    return project.root / prices if prices else None


def project_of_run(folder: RunFolder, *, file: Path | None = None, changes: Mapping[str, Any] | None = None) -> Project:
    """The project of a run, with the settings of its folder, or of a configuration ``file``, and ``changes`` laid over them.

    Raises ConfigError where data, weights or settings are not those that the run was made with.
    """
    stored = folder.config()
    if file is None:
        tables, source, root = stored.model_dump(by_alias=True, exclude_none=True), str(folder.path / "config.toml"), folder.root()
    else:
        tables, source, root = read_toml(file), str(file), file.parent
    try:
        project = open_project(merge_tables(tables, dict(changes or {})), source=source, root=root)
    except DataError as error:
        raise DataError(
            f"{error}. The run was made in {folder.environment()['root']}; if the images are elsewhere now: --set data.path=FOLDER"
        ) from error
    go_on(project, folder)
    return project


def go_on(project: Project, folder: RunFolder) -> None:
    """Makes the run folder, or goes on in it where it is of this project."""
    folder.start(project.config, manifest=project.manifest, root=project.root, splits=project.task.splits)


def load_run(folder: RunFolder, *, file: Path | None = None, changes: Mapping[str, Any] | None = None) -> tuple[Project, Run]:
    """A run that ``find`` has finished, and its project. Raises ConfigError where it has not finished."""
    project = project_of_run(folder, file=file, changes=changes)
    selection, attribution, segmentation = folder.load_selection(), folder.load_attribution(), folder.load_segmentation()
    critiques, verdicts = folder.load_critiques(), folder.load_verdicts()
    if selection is None or attribution is None or segmentation is None or critiques is None or verdicts is None:
        raise ConfigError(f"{folder.path} is not finished: run `rightreasons find` with the same --out again, and it goes on where it stopped")
    config, model = project.config, fresh_model(project)
    if not config.model.checkpoint:
        load_checkpoint(model, folder.trained_model)
    critic = folder.load_criticism() or _read_old_criticism(folder)
    run = Run(
        folder, config, model, project.descriptions, project.task.splits["train"], project.task.splits["validation"],
        lvlm_name=critic["lvlm"], simulated=critic["simulated"],
        selection=selection, attribution=attribution, segmentation=segmentation, critiques=critiques, verdicts=verdicts,
        controls=folder.load_controls(), prompts=critic.get("prompts", {}),
        calls=critic["calls"], cached=critic["cached"], cost_usd=critic["cost_usd"],
    )  # fmt: skip
    run.aligned, run.rejected = (_read_weights(run.model, folder.path / f"{name}.safetensors") for name in ("aligned", "rejected"))
    return project, run


def _read_weights(model: nn.Module, path: Path) -> nn.Module | None:
    """A copy of the model with the weights of a file, where it is there."""
    if not path.exists():
        return None
    other = copy_model(model)
    load_checkpoint(other, path)
    return other


def _read_old_criticism(folder: RunFolder) -> dict[str, Any]:
    """Who judged in a run from before criticism.json: what metrics.json says, or the configuration where there is none."""
    spec = folder.config().critic.lvlm
    critic = (folder.load_metrics() or {}).get("critic") or {"simulated": spec.startswith("simulated:")}
    name = f"{critic['backend']}:{critic['model']}" if "backend" in critic else spec
    return {"lvlm": name, "prompts": {}, "calls": 0, "cached": 0, "cost_usd": None} | critic


def fresh_model(project: Project) -> nn.Module:
    """A copy of the project's model, ready to run."""
    return place_model(copy_model(project.model), next(read_batches(project.task.splits["train"], batch_size=2)).images)


def trained_model(project: Project, folder: RunFolder, reporter: Reporter) -> nn.Module:
    """The checkpoint's model, or one trained on the training split and kept as model.safetensors in the run folder."""
    model = fresh_model(project)
    settings, kept = project.config.model, folder.trained_model
    if settings.checkpoint:
        return model
    if kept.exists():
        load_checkpoint(model, kept)
        return model
    partial = folder.path / "training.pt"
    with folder.locked(), reporter.stage("train") as advance:
        advance(0, settings.epochs)
        train_plainly(
            model,
            project.task.splits["train"],
            recipe=Recipe(settings.epochs, settings.learning_rate),
            batch_size=settings.batch_size,
            seed=project.config.run.seed,
            flips=project.config.data.flips,
            checkpoint=partial,
            progress=advance,
        )
    write_atomically(kept, lambda part: save_checkpoint(model, part))
    partial.unlink(missing_ok=True)
    return model


def _with(config: Config, table: str, **changes: object) -> Config:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=changes)})
