"""The questions that ``find`` would ask, for an estimate, a dry run, and batch files.

They are collected by running the functions that ask them on a ledger that sends nothing. So nothing here depends on modes, votes or repeated
questions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from rightreasons.common.progress import Reporter, Silent
from rightreasons.common.seeds import seeded
from rightreasons.config import describe_difference
from rightreasons.critic.case import Case, Cases, warn_of_lettering
from rightreasons.critic.controls import controls_for
from rightreasons.critic.judge import Example, read_examples
from rightreasons.critic.panel import Panel, consult_case, consult_closer
from rightreasons.critic.pictures import FINEST, fit_size
from rightreasons.data.loading import StoredImages, count_images, read_batches
from rightreasons.errors import ConfigError
from rightreasons.explain.evidence import Evidence, gather_evidence
from rightreasons.explain.segment import AUTO_COMPONENTS
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.prices import provider_hosts
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.pipeline.find import prepare
from rightreasons.project.project import Project, Role, example_file, find_server, go_on, open_role, project_of_run
from rightreasons.records import Attribution, Segmentation, Selection
from rightreasons.runs.folder import NEVER_USED, RunFolder

NOT_ASKED = Answer("", problem="not asked yet", outcome="unknown")


@dataclass(frozen=True)
class Question:
    """A request, and the model that it goes to."""

    lvlm: LVLM
    request: Request


@dataclass
class Desk:
    """Takes the place of a ledger, and records questions instead of sending them.

    ``open`` has the questions that would be sent, ``answered`` those with an answer, ``unsettled`` those that were given up. ``stand_in`` gives the
    placeholder answer to an open question, on which later questions depend.
    """

    ledger: Ledger | None
    stand_in: Callable[[Request], Answer] = lambda request: NOT_ASKED
    open: list[Question] = field(default_factory=list)
    answered: list[Question] = field(default_factory=list)
    unsettled: list[Question] = field(default_factory=list)

    def ask(self, lvlm: LVLM, request: Request, usable: Callable[[str], bool] | None = None) -> Answer:
        """The stored answer, or the placeholder, also where the stored answer is not ``usable``."""
        question = Question(lvlm, request)
        if self.ledger is not None and not self.ledger.missing(lvlm, [request]):
            answer = self.ledger.ask(lvlm, request)
            if usable and answer.problem is None and not usable(answer.text):
                self.open.append(question)
                return self.stand_in(request)
            (self.answered if answer.problem is None else self.unsettled).append(question)
            return answer
        self.open.append(question)
        return self.stand_in(request)


@dataclass(frozen=True)
class Plan:
    """What a project's critic and judge would be asked about. ``images`` is the number of images, of which ``cases`` may have only one, for all."""

    project: Project
    cases: Cases
    examples: tuple[Example, ...]
    critic: LVLM
    judge: LVLM
    images: int
    finished: bool

    def all_cases(self) -> Iterator[Case]:
        """The images with segments, and the controls."""
        yield from (self.cases[row] for row in self.cases.rows)
        yield from controls_for(self.critic)

    @property
    def panel(self) -> Panel:
        """Critic and judge as they are asked."""
        return Panel.of(self.project.config, self.critic, self.judge, self.examples)

    def consult(self, case: Case, desk: Desk) -> None:
        """Asks ``desk`` every question about one case that the answers so far lead to."""
        panel = self.panel
        _, verdicts = consult_case(case, panel, desk.ask)
        consult_closer(case, panel, desk.ask, verdicts)

    def open_questions(self, ledger: Ledger | None) -> Iterator[Question]:
        """Every question that can be sent now, image by image."""
        for case in self.all_cases():
            desk = Desk(ledger)
            self.consult(case, desk)
            yield from desk.open

    def close(self) -> None:
        """Closes the backends."""
        for lvlm in {id(lvlm): lvlm for lvlm in (self.critic, self.judge)}.values():
            getattr(lvlm, "close", lambda: None)()


def plan_project(project: Project, cases: Cases, *, images: int | None = None, backends: tuple[LVLM, LVLM] | None = None) -> Plan:
    """The plan of a project whose images were inspected. Its backends are used without sending, so neither permission nor a key is needed."""
    examples = read_examples(example_file(project), seeded(project.config.run.seed, "few-shot"))
    critic, judge = backends or _open_silently(project)
    return Plan(project, cases, examples, critic, judge, len(cases.rows) if images is None else images, images is None)


@contextmanager
def inspect_project(project: Project, folder: RunFolder, reporter: Reporter) -> Iterator[Plan]:
    """Runs every unfinished stage before the critic and yields the project's plan; the folder is locked meanwhile."""
    backends = _open_silently(project)  # one that is not known, or not installed, is told of before a model is trained
    model = prepare(project, folder, reporter)
    with folder.locked():
        evidence = gather_evidence(
            project.config, folder, model, project.train, project.validation, project.task.classes, reporter, root=project.root
        )
        plan = plan_project(project, Cases(evidence, project.descriptions, folder), backends=backends)
        if plan.critic.address is not None:
            warn_of_lettering(plan.cases, reporter, close_ups=plan.panel.close_up)
        yield from _closing(plan)


def carried_backends(project: Project, folder: RunFolder) -> tuple[LVLM, LVLM] | None:
    """Critic and judge of a run in which every question is answered, so that it needs no server, permission or price; None for any other run."""
    if not _is_inspected(folder) or describe_difference(folder.config(), project.config, changeable=NEVER_USED) is not None:
        return None
    go_on(project, folder)
    with folder.locked():
        plan = plan_project(project, _read_cases(project, folder))
        with Ledger(folder.ledger) as ledger:
            return None if next(plan.open_questions(ledger), None) else (plan.critic, plan.judge)


@contextmanager
def plan_of_folder(folder: RunFolder) -> Iterator[Plan]:
    """Yields the plan of a run folder, which is locked meanwhile. Raises ConfigError if the stages before the critic have not finished."""
    project = project_of_run(folder)
    if not _is_inspected(folder):
        raise ConfigError(
            f"{folder.path} has no segments yet: run `rightreasons find CONFIG --dry-run --out {folder.path}`, which sends nothing, first"
        )
    with folder.locked():
        yield from _closing(plan_project(project, _read_cases(project, folder)))


@contextmanager
def plan_or_bound(project: Project, folder: RunFolder) -> Iterator[Plan]:
    """Yields the plan of a project: from its run folder if the stages before the critic have finished, else an upper bound from one image.

    The bound assumes the largest number of inspected images, each with the largest number of segments.
    """
    if _is_inspected(folder) and describe_difference(folder.config(), project.config, changeable=NEVER_USED) is None:
        with folder.locked():
            yield from _closing(plan_project(project, _read_cases(project, folder)))
        return
    with tempfile.TemporaryDirectory() as place:
        most = min(project.config.sample.size, count_images(project.task.splits["train"]))
        yield from _closing(plan_project(project, _stand_in(project, RunFolder(Path(place))), images=most))


def _closing(plan: Plan) -> Iterator[Plan]:
    try:
        yield plan
    finally:
        plan.close()


def _is_inspected(folder: RunFolder) -> bool:
    return all((folder.path / name).exists() for name in ("config.toml", "selection.json", "heatmaps.safetensors", "segments.safetensors"))


def _read_cases(project: Project, folder: RunFolder) -> Cases:
    evidence = gather_evidence(
        project.config, folder, project.model, project.train, project.validation, project.task.classes, Silent(), root=project.root
    )
    return Cases(evidence, project.descriptions, folder)


def _stand_in(project: Project, folder: RunFolder) -> Cases:
    """The first training image as the costliest case: the largest number of segments, described by the longest words that a prompt can have."""
    first = next(read_batches(project.task.splits["train"], indices=[0], batch_size=1))
    height, width = first.images.shape[-2:]
    images = StoredImages(TensorDataset(F.interpolate(first.images, _largest_picture(project, (height, width))), first.labels), [0])
    wanted = project.config.segment.components
    corner = torch.arange(math.ceil(height / 3) * math.ceil(width / 3)).view(math.ceil(height / 3), -1)
    count = min(max(AUTO_COMPONENTS) if wanted == "auto" else wanted, corner.numel())
    # All segments are at the bottom right with a share of 100 %, which takes the most words to say.
    segments = torch.full((1, height, width), -1, dtype=torch.int8)
    segments[0, -corner.shape[0] :, -corner.shape[1] :] = corner * count // corner.numel()
    label = max(range(len(project.descriptions)), key=lambda i: len(project.descriptions[i].name.encode()))
    labels, zero = torch.tensor([label]), torch.zeros(1)
    selection = Selection(project.config.sample.strategy, images.indices, labels, zero)
    attribution = Attribution(torch.ones(1, height, width), labels, zero)
    segmentation = Segmentation(segments, segments >= 0, torch.ones(1, count), ("segmented",))
    return _WorstCases(Evidence(images, selection, attribution, segmentation, 0.0), project.descriptions, folder)


class _WorstCases(Cases):
    """Cases of which a close-up has the most pixels that one can have."""

    def fine_pixels(self, row: int) -> np.ndarray:
        """An empty image of the largest size from which close-ups are cut."""
        return np.zeros((FINEST, FINEST, 3), dtype=np.uint8)


def _largest_picture(project: Project, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest picture of any image, by the files' sizes if the critic is shown the files' own pixels."""
    files = [(int(height), int(width)) for width, _, height in (told.partition("x") for told in project.task.sizes)]
    return max((fit_size(*one) for one in files or [size]), key=math.prod)


def _open_silently(project: Project) -> tuple[LVLM, LVLM]:
    """Critic and judge, which are one object unless the configuration names another judge."""
    critic = open_silently(project, "critic")
    return critic, critic if project.config.critic.judge is None else open_silently(project, "judge")


def open_silently(project: Project, role: Role) -> LVLM:
    """A backend that may be asked what it would send, and sends nothing: it needs neither permission nor a key."""
    base_url = find_server(project.config.critic, role)[1]
    return open_role(project, role, (f"http://{urlsplit(base_url or '').hostname}", *provider_hosts()))
