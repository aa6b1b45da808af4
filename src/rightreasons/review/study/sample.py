"""Which segments a blind study asks about, drawn so that those which the LVLM called spurious are enough; and each person's own order of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import torch

from rightreasons.common.seeds import seeded
from rightreasons.critic.close_up import SegmentWords
from rightreasons.errors import ConfigError
from rightreasons.records import Value
from rightreasons.review.snapshot import Item
from rightreasons.review.state import ReviewState
from rightreasons.runs.blind import Question, Sample, keep_sample, load_sample

# The segments of a study unless somebody says otherwise: about twenty minutes for one person.
DEFAULT_SIZE = 60
SMALLEST = 2


def open_sample(state: ReviewState, *, size: int | None = None, seed: int | None = None) -> Sample:
    """The run's sample, drawn now if there is none. Raises ConfigError if it was drawn with another size or seed, or nothing can be drawn."""
    kept = load_sample(state.folder)
    if kept is None:
        kept = keep_sample(state.folder, draw_sample(state, size=DEFAULT_SIZE if size is None else size, seed=seed or 0))
    whole = sum(kept.judged.get(kind, 0) for kind in ("spurious", "relevant"))
    if (size is not None and min(size, whole) != len(kept.questions)) or (seed is not None and seed != kept.seed):
        raise ConfigError(
            f"{state.path / 'study.json'} has a sample of {len(kept.questions)} segments by seed {kept.seed}: leave out --size and --seed to go on "
            f"with it, or move study.json and study.jsonl away to begin another study"
        )
    return kept


def draw_sample(state: ReviewState, *, size: int, seed: int) -> Sample:
    """A sample of the segments that the LVLM called spurious or relevant, half and half where there are enough of both.

    A person's verdict on the run does not count here: the study is about the LVLM. Raises ConfigError if there is no such segment.
    """
    items = [item for item in state.snapshot().by_place.values() if item.said is not None]
    said: dict[tuple[int, int], Value] = {(item.index, item.segment): item.said.answer for item in items if item.said is not None}
    judged: Counter[str] = Counter(said.values())
    kinds = {kind: [item for item in items if said[item.index, item.segment] == kind] for kind in ("spurious", "relevant")}
    if not any(kinds.values()):
        raise ConfigError(
            f"no LVLM has called a segment of {state.path} spurious or relevant ({len(items)} segments have an LVLM's verdict): there is nothing to "
            f"compare people with"
        )
    counts = share_out(size, {kind: len(found) for kind, found in kinds.items()})
    questions = [
        Question(item.index, item.segment, item.label, said[item.index, item.segment], _words_on(state, item))
        for kind, found in kinds.items()
        for item in _draw(found, counts[kind], seed, kind)
    ]
    questions.sort(key=lambda question: question.place)
    criticism = state.folder.load_criticism()
    critic = state.config.critic.lvlm if criticism is None else criticism.lvlm
    simulated = critic.startswith("simulated:") if criticism is None else criticism.simulated
    asked = [[question.index, question.segment, question.value, question.words] for question in questions]
    name = hashlib.sha256(json.dumps([seed, asked]).encode()).hexdigest()[:12]
    return Sample(name, seed, critic, simulated, dict(judged), tuple(questions))


def share_out(size: int, there: Mapping[str, int]) -> dict[str, int]:
    """How many of each of two kinds to draw: half of ``size`` each, and what one kind lacks of the other. Raises ConfigError for a size below 2."""
    if size < SMALLEST:
        raise ConfigError(f"a study of {size} segments; expected at least {SMALLEST}, one of each kind (--size)")
    (first, one), (second, other) = there.items()
    of_first = min(one, max((size + 1) // 2, size - other))
    return {first: of_first, second: min(other, size - of_first)}


def order_questions(sample: Sample, name: str) -> list[Question]:
    """The sample in this person's own order, the same whenever the person comes back."""
    order = torch.randperm(len(sample.questions), generator=seeded(sample.seed, "study order", sample.name, name.casefold()))
    return [sample.questions[place] for place in order.tolist()]


def _draw(items: list[Item], count: int, seed: int, kind: str) -> list[Item]:
    ordered = sorted(items, key=lambda item: (item.index, item.segment))
    return [ordered[place] for place in torch.randperm(len(ordered), generator=seeded(seed, "study", kind))[:count].tolist()]


def _words_on(state: ReviewState, item: Item) -> str:
    """The critic's words on a segment from which the model's verdict follows."""
    return SegmentWords.read(state.critiques(item.index)).on(item.said or item.verdict)
