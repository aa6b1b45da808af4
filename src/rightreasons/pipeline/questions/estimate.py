"""How many calls, tokens, dollars and hours ``find`` will take, counted from the requests themselves before any is sent."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.prices import Price, likely_input_tokens, price_of, worst_case_tokens
from rightreasons.lvlm.protocol import LVLM, Answer, Request, Usage
from rightreasons.pipeline.questions.open_questions import NOT_ASKED, Desk, Plan

# The likely length of an answer, in tokens, for roles without an answer so far. A critique has a paragraph for each step and segment, a judgement a
# word for each segment, and names are a few words for each group.
LIKELY_OUTPUT = {"critic": 700, "judge": 60, "fused": 600, "control": 300, "close-up": 200, "name": 100}
# The likely share of segments of which the first answer is unsure, so that a close-up is asked about. At most it is all of them.
LIKELY_UNSURE = 0.2
# A placeholder critique for the judge's request; the tokens of a real critique are added to the count.
_CRITIQUE = Answer("\n".join(f"S{number}: It covers a part." for number in range(1, 21)))


@dataclass
class _Tally:
    """The requests of one role to one model."""

    lvlm: LVLM
    requests: int = 0
    likely_requests: float = 0.0
    answered: int = 0
    most_in: int = 0
    most_out: int = 0
    likely_in: float = 0.0
    seen_out: list[int] = field(default_factory=list)

    def note(self, request: Request, critique_tokens: int, times: int, likely: float = 1.0) -> None:
        """Counts a request that ``times`` images have, each ``likely`` to come about."""
        body = self.lvlm.body(request)
        worst = worst_case_tokens(body, request.max_tokens)
        self.requests += times
        self.likely_requests += times * likely
        self.most_in += times * ((worst.input_tokens or 0) + critique_tokens)
        self.most_out += times * request.max_tokens
        self.likely_in += times * likely * (likely_input_tokens(body) + (LIKELY_OUTPUT["critic"] if critique_tokens else 0))


def estimate_plan(plan: Plan, ledger: Ledger | None, *, prices: Path | None = None, seconds_per_answer: float = 10.0) -> dict[str, Any]:
    """For each role its model, open and answered requests, and tokens and US dollars, at most and likely; for all roles the time.

    Money is None if no price is known, and then so is the sum. Attempts after a failure are not counted; ``max_usd`` bounds those too.
    """
    tallies: dict[str, _Tally] = {}
    # If the stages before the critic have not run, one image stands for all; each control stands for itself.
    images = 1 if plan.finished else round(plan.images / max(1, len(plan.cases.rows)))
    for case in plan.all_cases():
        desk = Desk(ledger, stand_in=answer_unsure)
        plan.consult(case, desk)
        # Before the first answers nobody knows of which segments they are unsure.
        likely = LIKELY_UNSURE if any(question.request.role != "close-up" for question in desk.open) else 1.0
        critique_tokens = max((question.request.max_tokens for question in desk.open if question.request.role in ("critic", "control")), default=0)
        for question in desk.open:
            role = question.request.role
            tally = tallies.setdefault(role, _Tally(question.lvlm))
            told = critique_tokens if role == "judge" else 0
            tally.note(question.request, told, 1 if case.is_control else images, likely if role == "close-up" else 1.0)
        for question in desk.answered:
            tally = tallies.setdefault(question.request.role, _Tally(question.lvlm))
            tally.answered += 1
            if ledger is not None:
                tally.seen_out.append(ledger.ask(question.lvlm, question.request).usage.output_tokens or 0)
    roles = {role: _summary(role, tally, prices) for role, tally in tallies.items()}
    total: dict[str, Any] = defaultdict(int)
    for summary in roles.values():
        for key in ("requests", "answered", "input_tokens_at_most", "output_tokens_at_most", "input_tokens_likely", "output_tokens_likely"):
            total[key] += summary[key]
    for key in ("usd_at_most", "usd_likely"):
        values = [summary[key] for summary in roles.values()]
        total[key] = None if None in values else sum(values)
    workers = [(tally, 1 if tally.lvlm.simulated else tally.lvlm.concurrency[0]) for tally in tallies.values()]
    # Simulated and scripted critics answer at once.
    slow = [(tally, most) for tally, most in workers if not (tally.lvlm.simulated or tally.lvlm.name.startswith("scripted:"))]
    total["seconds_likely"] = sum(tally.likely_requests * seconds_per_answer / most for tally, most in slow)
    return {"images": plan.images, "roles": roles, "total": dict(total), "counted": explain(plan, seconds_per_answer, close_ups="close-up" in roles)}


def answer_unsure(request: Request) -> Answer:
    """A placeholder answer of which all segments are unsure, so that each has a close-up wherever those are asked for."""
    if request.schema is None:
        return _CRITIQUE
    properties: Any = request.schema["properties"]
    if request.role == "judge":
        return Answer(json.dumps(dict.fromkeys(properties, "unsure")))
    if request.role == "fused":
        return Answer(json.dumps({"segments": dict.fromkeys(properties["segments"]["properties"], {"verdict": "unsure"})}))
    return NOT_ASKED


def estimate_request(lvlm: LVLM, request: Request, ledger: Ledger, *, prices: Path | None = None) -> dict[str, Any]:
    """What one request costs, as ``estimate_plan`` gives it for a role; nothing if it is answered already."""
    desk, tally = Desk(ledger), _Tally(lvlm)
    desk.ask(lvlm, request)
    for question in desk.open:
        tally.note(question.request, 0, 1)
    tally.answered = len(desk.answered)
    return _summary(request.role, tally, prices)


def explain(plan: Plan, seconds_per_answer: float, *, close_ups: bool) -> str:
    """A sentence for people on how the figures were obtained."""
    source = (
        f"the requests of the {plan.images} inspected images, exactly as they would be sent"
        if plan.finished
        else f"at most {plan.images} images with as many segments as [segment] components allows, since no image has been inspected yet"
    )
    further = (
        f"Close-ups: those of segments that were judged unsure; of images without a verdict, at most every segment and likely {LIKELY_UNSURE:.0%}. "
        if close_ups
        else ""
    )
    return (
        f"Counted from {source}. At most: every byte of text a token, pictures by the most expensive published rule for the model, each answer as "
        f"long as it may be. Likely: four bytes a token, and answers as long as those that came already, or else {LIKELY_OUTPUT['critic']} tokens "
        f"for a critique. {further}"
        f"Attempts after a failure are not counted; --max-usd bounds the money in any case. Time: {seconds_per_answer:g} s per "
        f"answer, with as many requests at the same time as at the start."
    )


def _summary(role: str, tally: _Tally, prices: Path | None) -> dict[str, Any]:
    price = _price(tally.lvlm, prices)
    mean = math.ceil(sum(tally.seen_out) / len(tally.seen_out)) if any(tally.seen_out) else LIKELY_OUTPUT[role]
    most = Usage(tally.most_in, tally.most_out)
    likely = Usage(math.ceil(tally.likely_in), min(math.ceil(mean * tally.likely_requests), tally.most_out))
    return {
        "model": tally.lvlm.name,
        "requests": tally.requests,
        "answered": tally.answered,
        "input_tokens_at_most": most.input_tokens,
        "output_tokens_at_most": most.output_tokens,
        "input_tokens_likely": likely.input_tokens,
        "output_tokens_likely": likely.output_tokens,
        "usd_at_most": None if price is None else price.cost(most),
        "usd_likely": None if price is None else price.cost(likely),
        "price_date": None if price is None or price.date is None else price.date.isoformat(),
    }


def _price(lvlm: LVLM, prices: Path | None) -> Price | None:
    server = None if lvlm.address is None else str(lvlm.address["base_url"])
    return Price(0.0, 0.0) if server is None else price_of(lvlm.name, base_url=server, overrides=prices)
