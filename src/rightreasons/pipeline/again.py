"""Has chosen images judged again after ``find``, with what experts changed since: descriptions of classes, and few-shot pairs of the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rightreasons.common.parallel import map_in_order
from rightreasons.common.progress import Reporter, Silent
from rightreasons.common.seeds import seeded
from rightreasons.critic.case import Case, Cases
from rightreasons.critic.judge import Example, judge_critique, parse_examples, read_examples
from rightreasons.critic.panel import AskLVLM, Panel, consult_case, consult_closer, is_usable
from rightreasons.critic.votes import count_votes, find_unread
from rightreasons.errors import ConfigError
from rightreasons.explain.evidence import gather_evidence
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.throttle import count_workers
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.pipeline.find import ready_backends
from rightreasons.project.project import Project, example_file, open_lvlms
from rightreasons.records import ClassDescription, Critique, Verdict, find_votes, settle_verdicts
from rightreasons.runs.appended import now, read_name
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import Recorded
from rightreasons.runs.words import load_words

# "critic" asks about the pictures anew, and then the judge; "judge" has the critiques that are there judged anew, which sends no picture; "either" is
# the judge, and the critic where there is no critique to judge, or where an answer on a close-up could not be read.
Again = Literal["critic", "judge", "either"]
# Asks a model as ``Ledger.ask`` does, which asks anew where the stored answer's text is not usable.
AskAnew = Callable[[LVLM, Request, Callable[[str], bool] | None], Answer]


@dataclass(frozen=True)
class Appeal:
    """Images that are to be judged again, by row, and all that is needed to ask. The answers on ``unread`` images could not be read.

    ``critiques`` are those of whole images, and ``near`` the verdicts so far that came of close-ups, by image and segment.
    """

    cases: Cases
    rows: tuple[int, ...]
    role: Again
    panel: Panel
    critiques: Mapping[int, Sequence[Critique]]
    unread: frozenset[int]
    near: Mapping[tuple[int, int], Verdict]

    def consult(self, case: Case, ask: AskAnew) -> tuple[list[Critique], list[Verdict]]:
        """The new critiques of one image or of its close-ups (none where the judge alone is asked) and one verdict per segment."""
        image, segments = case.subject.index, len(case.shares)

        def ask_readable(lvlm: LVLM, request: Request) -> Answer:
            return ask(lvlm, request, (lambda text: is_usable(request, text, segments)) if image in self.unread else None)

        return self._consult(case, ask_readable)

    def _consult(self, case: Case, ask: AskLVLM) -> tuple[list[Critique], list[Verdict]]:
        silent = self.panel.mode == "fused" or any(critique.problem for critique in self.critiques[case.subject.index])
        if self.role == "critic" or (self.role == "either" and silent):
            critiques, verdicts = consult_case(case, self.panel, ask)
            near, settled = consult_closer(case, self.panel, ask, verdicts)
            return critiques + near, settled
        panel, cap = self.panel, self.panel.max_tokens
        votes = [
            judge_critique(
                lambda request: ask(panel.judge, request if cap is None else replace(request, max_tokens=cap)),
                critique,
                segments=len(case.shares),
                examples=panel.examples,
                source=panel.judge.name,
            )
            for critique in self.critiques[case.subject.index]
        ]
        verdicts = count_votes(votes)
        if self.role == "either" and case.subject.index in self.unread:
            return consult_closer(case, panel, ask, verdicts)
        return [], [self._recall_near(verdict) for verdict in verdicts]

    def _recall_near(self, verdict: Verdict) -> Verdict:
        """What a close-up settled stays where the judge is still unsure: the judge alone is asked, and no picture is sent."""
        near = self.near.get((verdict.index, verdict.segment))
        return verdict if near is None or verdict.value != "unsure" or not verdict.is_vote else replace(near, by=None, at=None)


@dataclass(frozen=True)
class Judged:
    """What judging images again came to: the ``changes`` of the model's verdicts, before and after; ``images`` in all; how many requests were sent;
    and by image why there is still no usable answer.
    """

    changes: list[tuple[Verdict, Verdict]]
    images: int
    sent: int
    problems: dict[int, str]


def open_appeal(project: Project, folder: RunFolder, images: Sequence[int], role: Again, backends: tuple[LVLM, LVLM]) -> Appeal:
    """The appeal of some inspected images, by their numbers; of those whose answers could not be read if there are none.

    Raises ConfigError for an image without segments, for a judge that is none, or if there is nothing to ask again.
    """
    if role == "judge" and project.config.critic.mode == "fused":
        raise ConfigError('[critic] mode = "fused" has no judge of its own: ask the critic again')
    examples, descriptions = current_words(project, folder)
    evidence = gather_evidence(
        project.config, folder, project.model, project.train, project.validation, project.task.classes, Silent(), root=project.root
    )
    row_of = {int(evidence.selection.indices[row]): row for row in evidence.examined}
    critiques: dict[int, list[Critique]] = {}
    for critique in folder.load_critiques() or []:
        if critique.segment is None:
            critiques.setdefault(critique.index, []).append(critique)
    verdicts = folder.load_verdicts() or []
    unread, near = find_unread(verdicts), {place: verdict for place, verdict in find_votes(verdicts).items() if verdict.close_up is not None}
    if not images and not unread:
        raise ConfigError(f"{folder.path} has no answer that could not be read, which would be asked for again: name images by their numbers")
    images = images or sorted(unread)
    for image in images:
        if image not in row_of or image not in critiques:
            raise ConfigError(f"image {image} is not one of the {len(row_of)} inspected images with segments: give numbers as in the report")
    rows = tuple(row_of[image] for image in dict.fromkeys(images))
    panel = Panel.of(project.config, *backends, examples)
    return Appeal(Cases(evidence, descriptions, folder), rows, role, panel, critiques, frozenset(unread), near)


def current_words(project: Project, folder: RunFolder) -> tuple[tuple[Example, ...], tuple[ClassDescription, ...]]:
    """Few-shot pairs and descriptions as they are now: those of the configuration, with the last change of an expert laid over them."""
    generator = seeded(project.config.run.seed, "few-shot")
    changes = load_words(folder)
    if not changes:
        return read_examples(example_file(project), generator), project.descriptions
    last = {item.name: item for item in changes[-1].classes}
    texts = [change.examples for change in changes if change.examples is not None]
    examples = parse_examples(texts[-1], str(folder.path / "words.jsonl"), generator) if texts else read_examples(example_file(project), generator)
    return examples, tuple(last.get(item.name, item) for item in project.descriptions)


def _keep_contradicted(before: Mapping[tuple[int, int], Verdict], verdict: Verdict) -> Verdict:
    """An answer that other verdicts contradict, given once more, is contradicted still."""
    old = before.get((verdict.index, verdict.segment))
    return (
        verdict
        if old is None or old.contradicted != verdict.value
        else replace(verdict, value=old.value, contradicted=old.contradicted, doubt=old.doubt)
    )


def judge_again(
    project: Project,
    folder: RunFolder,
    images: Sequence[int],
    *,
    role: Again,
    by: str,
    reporter: Reporter,
    allow_remote: tuple[str, ...] = (),
    max_usd: float | None = None,
) -> Judged:
    """Asks about the images again and appends what is said, with who had it asked and when; a person's verdict still comes first.

    A question whose answer is in the ledger costs nothing and is not asked twice, unless that answer could not be read: then it is asked anew.
    """
    name, reporter = read_name(by), Recorded(reporter, folder)
    backends = open_lvlms(project, allow_remote)
    prices = ready_backends(project, *backends, reporter)
    with folder.locked():
        appeal = open_appeal(project, folder, images, role, backends)
        before = settle_verdicts(verdict for verdict in folder.load_verdicts() or [] if verdict.source != "human")
        most = project.config.critic.max_usd if max_usd is None else max_usd
        with Ledger(folder.ledger, price=prices or None, max_usd=most) as ledger, reporter.stage("judge") as advance:
            workers = count_workers(*backends)

            def consult(row: int) -> tuple[list[Critique], list[Verdict]]:
                critiques, verdicts = appeal.consult(appeal.cases[row], ledger.ask)
                appeal.cases.keep_close_ups(row, [critique.segment for critique in critiques if critique.segment is not None])
                return critiques, verdicts

            results = map_in_order(consult, appeal.rows, workers=workers, advance=advance, stop=ledger.stop)
            for note in ledger.notes:
                reporter.note(note)
        at = now()
        critiques = [replace(critique, by=name, at=at) for part, _ in results for critique in part]
        verdicts = [replace(_keep_contradicted(before, verdict), by=name, at=at) for _, part in results for verdict in part]
        if critiques:
            folder.add_critiques(critiques)
        folder.add_verdicts(verdicts)
    changes = [(old, new) for new in verdicts if (old := before[new.index, new.segment]).value != new.value]
    return Judged(changes, len(appeal.rows), ledger.sent, {new.index: new.problem for new in verdicts if new.problem is not None})
