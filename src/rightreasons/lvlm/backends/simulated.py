"""A critic that answers from ground-truth masks with a chosen sensitivity and specificity. It is for studies only, and always called simulated.

Its critique is text, one paragraph per segment, and its judge reads nothing but that text. In fused mode it gives the same as a JSON object.
Its errors are fixed for each segment, whatever ID a vote shows it under.

It can be unsure of segments that mix the shortcut with something else: those of whose positive effect a share near one half lies in the mask. Asked
about the close-up of a segment it decides by the same truth and rates, with errors of their own, and is unsure within a narrower range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from rightreasons.common.seeds import seeded
from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.records import GroundTruth, Subject, Value, measure_effect

_MISSES = "It does not cover what matters for the class."
_COVERS = "It covers what matters for the class."
_UNCLEAR = "It cannot be told whether it covers what matters for the class."
_WORDS: Mapping[Value, tuple[str, str]] = {
    "spurious": ("This segment covers a region that is not part of the class.", _MISSES),
    "relevant": ("This segment covers a part of what the description names.", _COVERS),
    "unsure": ("This segment covers a part of what the description names and a region that is not part of the class.", _UNCLEAR),
}


class Simulated:
    """``options`` is empty (no errors), one number for both rates, or ``sensitivity=0.9,specificity=0.8``.

    With ``unsure=0.2`` it is unsure of segments of which between 0.3 and 0.7 of the effect lie in the mask, and with ``unsure_close=0.05`` as well
    where it sees them from near and that share is between 0.45 and 0.55; both are 0, never, unless they are given.
    """

    simulated = True
    concurrency = (1, 1)
    address = None

    def __init__(self, truth: GroundTruth, options: str = "", *, seed: int = 0) -> None:
        rates = _parse_rates(options)
        self.sensitivity, self.specificity, self.unsure, self.unsure_close = rates.values()
        self._truth, self._seed = truth, seed
        # What it is never unsure of is not in its name, under which the answers of older runs are stored.
        self.name = "simulated:" + ",".join(f"{key}={rate:g}" for key, rate in rates.items() if rate or key in ("sensitivity", "specificity"))

    @classmethod
    def with_masks(cls, truth: GroundTruth | None, options: str, *, seed: int) -> Simulated:
        """Opens it for a data set. Raises LVLMUnavailable for one without ground-truth masks."""
        if truth is None or (truth.masked is not None and not truth.masked):
            raise LVLMUnavailable("simulated: needs ground-truth masks, which these data do not have; name a real model: lvlm = 'openai:MODEL'")
        return cls(truth, options, seed=seed)

    def check(self) -> None:
        """Always available."""

    def body(self, request: Request) -> dict[str, Any]:
        """The texts alone, and the image's index, the seed and the permutation, on which the answer depends."""
        index = None if request.subject is None else request.subject.index
        texts = [part for part in request.parts if isinstance(part, str)]
        return {"texts": texts, "image": index, "seed": self._seed, "permutation": request.permutation}

    def answer(self, request: Request) -> str:
        """Writes a critique from the masks, or reads verdicts from a critique's text."""
        if request.subject is None:
            return _read_critique("\n".join(part for part in request.parts if isinstance(part, str)))
        said = self._judge(request.subject, near=request.role == "close-up")
        if request.role == "close-up":
            return json.dumps(_describe(said["S1"]))
        return _write_object(said) if request.schema is not None else _write_critique(said)

    def parse(self, raw: str) -> Answer:
        """The raw answer is the text."""
        return Answer(raw)

    def close(self) -> None:
        """Nothing is connected."""

    def _judge(self, subject: Subject, *, near: bool) -> dict[str, Value]:
        """What it says of each segment, by the ID that is shown."""
        if subject.known is not None:
            truths, mixed = [subject.known], [False]
        else:
            inside, effect = measure_effect(subject.segments, subject.positive_effect, self._truth.mask(subject.index))
            truths = (inside > effect / 2).tolist()
            mixed = ((inside / effect.clamp_min(1e-12) - 0.5).abs() < (self.unsure_close if near else self.unsure)).tolist()
        said: dict[str, Value] = {}
        for shown, truth in enumerate(truths):
            segment = subject.order[shown] if subject.order else shown
            rate = self.sensitivity if truth else self.specificity
            drawn = seeded(self._seed, "simulated close-up" if near else "simulated critic", subject.index, segment)
            errs = torch.rand((), generator=drawn).item() >= rate
            said[f"S{shown + 1}"] = "unsure" if mixed[shown] else "spurious" if truth != errs else "relevant"
        return said


def _describe(value: Value) -> dict[str, str]:
    covers, reason = _WORDS[value]
    return {"covers": covers, "reason": reason, "verdict": value}


def _write_critique(said: Mapping[str, Value]) -> str:
    return "(simulated critique)\n" + "\n".join(f"{name}: {' '.join(_WORDS[value])}" for name, value in said.items())


def _write_object(said: Mapping[str, Value]) -> str:
    segments = {name: _describe(value) for name, value in said.items()}
    return json.dumps({"image_observation": "(simulated critique)", "class_region": "", "segments": segments})


def _read_critique(text: str) -> str:
    critique = re.findall(r"<critique>(.*?)</critique>", text, re.DOTALL)[-1]
    verdicts = {}
    for segment, words in re.findall(r"^(S\d+): (.*)$", critique, re.MULTILINE):
        verdicts[segment] = "spurious" if _MISSES in words else "relevant" if _COVERS in words else "unsure"
    return json.dumps(verdicts)


def _parse_rates(options: str) -> dict[str, float]:
    rates = {"sensitivity": 1.0, "specificity": 1.0, "unsure": 0.0, "unsure_close": 0.0}
    try:
        if "=" not in options:
            rates |= dict.fromkeys(("sensitivity", "specificity"), float(options or 1))
        else:
            named = {key.strip(): float(value) for key, value in (pair.split("=") for pair in options.split(","))}
            if unknown := named.keys() - rates.keys():
                raise ValueError(f"unknown {', '.join(sorted(unknown))}")
            rates |= named
        if not all(0 <= rate <= (0.5 if key.startswith("unsure") else 1) for key, rate in rates.items()):
            raise ValueError("rates lie between 0 and 1, and unsure and unsure_close between 0 and 0.5")
    except ValueError as error:
        raise ConfigError(
            f"[critic] lvlm = 'simulated:{options}': {error}; expected simulated:0.87 or simulated:sensitivity=0.9,specificity=0.8, "
            f"perhaps with unsure=0.2"
        ) from error
    return rates
