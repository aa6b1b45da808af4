"""Many images put to critic and judge over a server that fails at random: shared by a test and by benchmarks/soak.py. Also faults in answers."""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from rightreasons.common.parallel import map_in_order
from rightreasons.critic.critique import critique_image
from rightreasons.critic.judge import judge_critique, read_examples
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.ledger.ledger import Ledger, Patience
from rightreasons.lvlm.ledger.prices import Price
from rightreasons.lvlm.ledger.throttle import count_workers
from rightreasons.records import ClassDescription, Pictures, Subject, Verdict
from tests.support.fault_server import INPUT_USD, OUTPUT_USD, Fault, FaultServer, Seen, completion, error, judge, says, wrong_ids
from tests.support.helpers import make_case

DESCRIPTIONS = (ClassDescription("bolt", "The bar.", "A tag."), ClassDescription("nut", "The disc."))
SEGMENTS = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]]).repeat_interleave(2, 0)


def duplicate_keys(seen: Seen):
    return says('{"S1": "spurious", "S1": "relevant", "S2": "relevant", "S3": "relevant"}')(seen) if seen.role == "judge" else None


def control_characters(seen: Seen):
    return says(judge(seen).replace(" ", "\n\t\r "))(seen) if seen.role == "judge" else None


def code_fence(seen: Seen):
    return says(f"Here you are:\n```json\n{judge(seen)}\n```")(seen) if seen.role == "judge" else None


FAULTS = (
    lambda seen: error(429, "slow down", {"retry-after": "0.05"}),
    lambda seen: error(429, "slow down"),
    lambda seen: error(500, "oh"),
    lambda seen: error(503, "oh"),
    lambda seen: error(409, "oh"),
    lambda seen: Fault("hang"),
    lambda seen: Fault("drop"),
    lambda seen: Fault("half"),
    lambda seen: Fault("half-closed"),
    lambda seen: Fault("drip"),
    lambda seen: (200, {}, completion("", finish_reason="length")),
    lambda seen: (200, {}, completion(None, refusal="I will not look at that.")),
    lambda seen: (200, {}, completion("I'm sorry, but I can't help with that.")),
    wrong_ids,
    duplicate_keys,
    control_characters,
    code_fence,
)


def fails_at_random(share: float, seed: int = 0):
    """A fault in this share of the requests, by what is asked and how often it has come."""

    def misbehave(seen: Seen):
        digest = hashlib.sha256(f"{seed} {seen.times} {json.dumps(seen.body, sort_keys=True)}".encode()).digest()
        dice = random.Random(digest)
        return dice.choice(FAULTS)(seen) if dice.random() < share else None

    return misbehave


@dataclass(frozen=True)
class Soaked:
    """Verdicts by image, what the server and the ledger counted, and megabytes after a quarter and at the end."""

    verdicts: list[list[Verdict]]
    requests: int
    most_delivered: int
    charged_usd: float
    counted_usd: float
    seconds: float
    mib: tuple[float, float]


def soak(ledger_path: Path, images: int, *, share: float, timeout: float = 3.0) -> Soaked:
    """Critique and judgement of so many images, as ``find`` puts them."""
    examples = read_examples(None, torch.Generator())
    memory: list[float] = []

    def advance(done: int, total: int) -> None:
        if done in (total // 4, total):
            memory.append(resident_mib())

    with FaultServer(misbehave=fails_at_random(share), remember=False) as stub:
        lvlm = OpenAICompatible("stub", base_url=stub.base_url, timeout=timeout)
        lvlm.address = None  # in this process, so that the deadline can be short
        ledger = Ledger(ledger_path, price=Price(INPUT_USD, OUTPUT_USD), patience=Patience(first_wait=0.02))
        started = time.monotonic()

        def consult(row: int) -> list[Verdict]:
            picture = _picture(row)
            subject = Subject(row, SEGMENTS, (SEGMENTS >= 0).float())
            case = make_case(Pictures(picture, picture, picture), subject, label=row % 2, descriptions=DESCRIPTIONS, shares=(0.5, 0.3, 0.2))
            critique = critique_image(lambda request: ledger.ask(lvlm, request), case)
            return judge_critique(lambda request: ledger.ask(lvlm, request), critique, segments=3, examples=examples, source=lvlm.name)

        try:
            verdicts = map_in_order(consult, range(images), workers=count_workers(lvlm), advance=advance, stop=ledger.stop)
            counted = ledger.cost_usd()
        finally:
            ledger.close()
            lvlm.close()
        return Soaked(
            verdicts, stub.requests, max(stub.delivered.values()), stub.money, counted or 0.0, time.monotonic() - started, (memory[0], memory[-1])
        )


def resident_mib() -> float:
    """Of this process, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def _picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (512, 512), (row % 256, row // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()
