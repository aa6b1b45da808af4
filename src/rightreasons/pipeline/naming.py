"""Names for the shortcuts of a run, asked of the run's own LVLM in one question without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rightreasons.common.progress import Reporter
from rightreasons.critic.naming import Told, naming_request, read_names
from rightreasons.errors import ConfigError, LVLMError
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request, Sender
from rightreasons.pipeline.find import ready_backends
from rightreasons.pipeline.questions.estimate import estimate_request
from rightreasons.pipeline.questions.open_questions import open_silently
from rightreasons.project.project import Role, open_role, price_file
from rightreasons.run import Run
from rightreasons.runs.appended import now
from rightreasons.runs.names import GivenNames, save_names
from rightreasons.runs.profile import Recorded
from rightreasons.scoring.shortcuts import Group, group_shortcuts, hash_grouping

# So many groups are named, those in most images; the page shows few of the others, and as a list.
MOST_NAMED = 24


def name_shortcuts(
    run: Run,
    *,
    reporter: Reporter,
    allow_remote: tuple[str, ...] = (),
    max_usd: float | None = None,
    retry_unknown: bool = False,
) -> GivenNames:
    """Asks for names once and writes names.json; ``write_results`` uses them. The same grouping is never asked about again.

    Raises ConfigError if the LVLM cannot be asked or there is nothing to name, and LVLMError if there is no answer.
    """
    folder, reporter = run.folder, Recorded(reporter, run.folder)
    lvlm = _check(open_role(run.project, _role(run), allow_remote))
    groups = group_shortcuts(run, run.masks)
    told = _tell_groups(run, groups)
    request = _request(run, told)
    prices = ready_backends(run.project, lvlm, lvlm, reporter)
    most = run.config.critic.max_usd if max_usd is None else max_usd
    with folder.locked(), Ledger(folder.ledger, retry_unknown=retry_unknown, price=prices or None, max_usd=most) as ledger:
        with reporter.stage("name"):
            answer = ledger.ask(lvlm, request)
        for note in ledger.notes:
            reporter.note(note)
        run.criticism = replace(run.criticism, calls=ledger.count("answered"), cost_usd=ledger.cost_usd())
        folder.save_criticism(run.criticism)
        if answer.problem is not None:
            raise LVLMError(f"{lvlm.name} gave no names, so that those of the grouping stay: {answer.problem}")
        found = read_names(answer.text, [group.key for group in told])
        given = GivenNames(hash_grouping(run, groups), lvlm.name, answer.model, request.prompt, now(), found.names, found.refused)
        save_names(folder, given)
    return given


def estimate_names(run: Run) -> dict[str, Any]:
    """Model, requests, tokens and US dollars of asking for names, as ``estimate_request`` gives them. Sends nothing."""
    lvlm = _check(open_silently(run.project, _role(run)))
    request = _request(run, _tell_groups(run, group_shortcuts(run, run.masks)))
    with run.folder.locked(), Ledger(run.folder.ledger) as ledger:
        return estimate_request(lvlm, request, ledger, prices=price_file(run.project))


def _role(run: Run) -> Role:
    """The judge, who reads critiques and sees no picture, unless the run has none."""
    return "critic" if run.config.critic.mode == "fused" else "judge"


def _check(lvlm: LVLM) -> LVLM:
    if not isinstance(lvlm, Sender):
        raise ConfigError(
            f"{lvlm.name} cannot be asked for names, since it is no model but answers from ground truth, a file or a person: the names stay those "
            f"of the grouping. Expected a run whose [critic] is openai:, anthropic:, gemini: or local:"
        )
    return lvlm


def _tell_groups(run: Run, groups: Sequence[Group]) -> list[Told]:
    """What the question has of each group that critiques say something of."""
    told = [Told(group.key, len({item.row for item in group.items}), group.name.place, group.said) for group in groups if group.said][:MOST_NAMED]
    if not told:
        raise ConfigError(
            f"{run.folder.path} has nothing to name: expected segments that were judged spurious, and critiques that say what they show"
        )
    return told


def _request(run: Run, told: Sequence[Told]) -> Request:
    request, cap = naming_request(told), run.config.critic.max_tokens
    return request if cap is None else replace(request, max_tokens=cap)
