"""Asks critic and judge about one case, in either mode and once for each vote, and then about close-ups, through the function ``ask``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rightreasons.config import Config
from rightreasons.critic.case import Case
from rightreasons.critic.close_up import judge_close_up, parse_close_up
from rightreasons.critic.critique import critique_image, names_one_of, segment_ids
from rightreasons.critic.fused import judge_image, parse_fused
from rightreasons.critic.judge import Example, judge_critique, judge_version, parse_verdicts
from rightreasons.critic.parse import MalformedAnswer
from rightreasons.critic.pictures import CLOSE_STYLE, STYLE, render_pictures
from rightreasons.critic.prompts import prompt_version
from rightreasons.critic.votes import count_votes, draw_permutation, permute_segments, renumber, restore_vote
from rightreasons.lvlm.backends import kind_of
from rightreasons.lvlm.protocol import LVLM, Answer, Request
from rightreasons.records import HUMAN, Critique, Verdict

AskLVLM = Callable[[LVLM, Request], Answer]


@dataclass(frozen=True)
class Panel:
    """Critic and judge, the mode, the number of votes, and whether there is a second question with close-ups, which no person is asked."""

    critic: LVLM
    judge: LVLM
    examples: Sequence[Example]
    mode: str = "two-call"
    votes: int = 1
    seed: int = 0
    max_tokens: int | None = None
    close_up: bool = False

    @classmethod
    def of(cls, config: Config, critic: LVLM, judge: LVLM, examples: Sequence[Example]) -> Panel:
        """The panel that a configuration describes."""
        said = config.critic
        close_up = said.close_up and kind_of(critic.name) != HUMAN
        return cls(critic, judge, examples, said.mode, said.votes, config.run.seed, said.max_tokens, close_up)

    @property
    def prompts(self) -> dict[str, str]:
        """The version of each prompt that is used: its text, few-shot pairs and render settings."""
        close_up = {"close-up": prompt_version("close-up", CLOSE_STYLE)} if self.close_up else {}
        if self.mode == "fused":
            return {"fused": prompt_version("fused", STYLE)} | close_up
        return {"critic": prompt_version("critic", STYLE), "judge": judge_version(self.examples)} | close_up


def consult_case(case: Case, panel: Panel, ask: AskLVLM) -> tuple[list[Critique], list[Verdict]]:
    """The critic's words in every vote, and one verdict per segment. All votes are asked for, even if one fails.

    A control is asked about once, and the critic's request has the role "control".
    """

    def ask_as_set(lvlm: LVLM, request: Request) -> Answer:
        if case.is_control and request.role != "judge":
            request = replace(request, role="control")
        return ask(lvlm, _cap(request, panel))

    votes = [_vote(case, panel, ask_as_set, vote) for vote in range(1 if case.is_control else panel.votes)]
    return [critique for critique, _ in votes], count_votes([verdicts for _, verdicts in votes])


def find_unsure(panel: Panel, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The first verdicts on one image after which a close-up is asked about: those that a model gave and that are unsure."""
    return [verdict for verdict in verdicts if panel.close_up and verdict.value == "unsure" and verdict.is_vote]


def consult_closer(case: Case, panel: Panel, ask: AskLVLM, verdicts: Sequence[Verdict]) -> tuple[list[Critique], list[Verdict]]:
    """The critic's words on the close-up of each segment of which ``verdicts`` are unsure, and the verdicts that count now.

    Of a control none is asked about: there unsure is no fault.
    """
    critiques, settled = [], {verdict.segment: verdict for verdict in verdicts}
    for first in [] if case.is_control else find_unsure(panel, verdicts):
        critique, settled[first.segment] = judge_close_up(
            lambda request: ask(panel.critic, _cap(request, panel)), case, first, source=panel.critic.name
        )
        critiques.append(critique)
    return critiques, list(settled.values())


def is_usable(request: Request, text: str, segments: int) -> bool:
    """Whether critic or judge could go on with this text as the answer to ``request``, which is about so many segments."""
    ids = segment_ids(segments)
    try:
        if request.role == "judge":
            parse_verdicts(text, ids)
        elif request.role == "fused":
            parse_fused(text, ids)
        elif request.role == "close-up":
            parse_close_up(text, ids[request.subject.order[0]] if request.subject else "")
        else:
            return names_one_of(text, ids)
    except MalformedAnswer:
        return False
    return True


def _cap(request: Request, panel: Panel) -> Request:
    return request if panel.max_tokens is None else replace(request, max_tokens=panel.max_tokens)


def _vote(case: Case, panel: Panel, ask: AskLVLM, vote: int) -> tuple[Critique, list[Verdict]]:
    permutation = draw_permutation(panel.seed, case.subject.index, vote)
    order = permute_segments(len(case.shares), permutation)
    if permutation:
        case = _permute(case, order)
    if panel.mode == "fused":
        critique, verdicts = judge_image(
            lambda request: ask(panel.critic, request), case, source=panel.critic.name, vote=vote, permutation=permutation
        )
    else:
        critique = critique_image(lambda request: ask(panel.critic, request), case, vote=vote, permutation=permutation)
        verdicts = judge_critique(
            lambda request: ask(panel.judge, request),
            critique,
            segments=len(case.shares),
            examples=panel.examples,
            source=panel.judge.name,
            permutation=permutation,
        )
    return restore_vote(critique, verdicts, order)


def _permute(case: Case, order: Sequence[int]) -> Case:
    """The same image with other IDs, and so with other colours and in another order."""
    shown = renumber(case.shown, order)
    subject = replace(case.subject, segments=renumber(case.subject.segments, order), order=tuple(order))
    pictures = render_pictures(case.image, shown, case.pictures.style)
    return replace(case, shown=shown, pictures=pictures, subject=subject, shares=[case.shares[segment] for segment in order])
