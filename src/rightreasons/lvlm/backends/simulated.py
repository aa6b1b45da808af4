"""A critic that answers from ground-truth masks with a chosen sensitivity and specificity. It is for studies only, and always called simulated.

Its critique is text, one paragraph per segment, and its judge reads nothing but that text. In fused mode it gives the same as a JSON object.
Its errors are fixed for each segment, whatever ID a vote shows it under.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from rightreasons.common.seeds import seeded
from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.records import GroundTruth, Subject, truly_spurious

_MISSES = "It does not cover what matters for the class."
_COVERS = "It covers what matters for the class."


class Simulated:
    """``options`` is empty (no errors), one number for both rates, or ``sensitivity=0.9,specificity=0.8``."""

    simulated = True
    concurrency = (1, 1)
    address = None

    def __init__(self, truth: GroundTruth, options: str = "", *, seed: int = 0) -> None:
        self.sensitivity, self.specificity = _parse_rates(options)
        self._truth, self._seed = truth, seed
        self.name = f"simulated:sensitivity={self.sensitivity:g},specificity={self.specificity:g}"

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
            return _judge("\n".join(part for part in request.parts if isinstance(part, str)))
        said = self._says_spurious(request.subject)
        return _write_object(said) if request.schema is not None else _write_critique(said)

    def parse(self, raw: str) -> Answer:
        """The raw answer is the text."""
        return Answer(raw)

    def close(self) -> None:
        """Nothing is connected."""

    def _says_spurious(self, subject: Subject) -> dict[str, bool]:
        """Whether it calls each segment spurious, by the ID that is shown."""
        if subject.known is not None:
            truths = [subject.known]
        else:
            truths = truly_spurious(subject.segments, subject.positive_effect, self._truth.mask(subject.index)).tolist()
        said = {}
        for shown, truth in enumerate(truths):
            segment = subject.order[shown] if subject.order else shown
            rate = self.sensitivity if truth else self.specificity
            errs = torch.rand((), generator=seeded(self._seed, "simulated critic", subject.index, segment)).item() >= rate
            said[f"S{shown + 1}"] = truth != errs
        return said


def _covers(*, says_spurious: bool) -> str:
    return f"This segment covers {'a region that is not part of the class' if says_spurious else 'a part of what the description names'}."


def _write_critique(said: dict[str, bool]) -> str:
    lines = [f"{name}: {_covers(says_spurious=spurious)} {_MISSES if spurious else _COVERS}" for name, spurious in said.items()]
    return "(simulated critique)\n" + "\n".join(lines)


def _write_object(said: dict[str, bool]) -> str:
    segments = {
        name: {
            "covers": _covers(says_spurious=spurious),
            "reason": _MISSES if spurious else _COVERS,
            "verdict": "spurious" if spurious else "relevant",
        }
        for name, spurious in said.items()
    }
    return json.dumps({"image_observation": "(simulated critique)", "class_region": "", "segments": segments})


def _judge(text: str) -> str:
    critique = re.findall(r"<critique>(.*?)</critique>", text, re.DOTALL)[-1]
    verdicts = {}
    for segment, words in re.findall(r"^(S\d+): (.*)$", critique, re.MULTILINE):
        verdicts[segment] = "spurious" if _MISSES in words else "relevant" if _COVERS in words else "unsure"
    return json.dumps(verdicts)


def _parse_rates(options: str) -> tuple[float, float]:
    try:
        if "=" not in options:
            sensitivity = specificity = float(options or 1)
        else:
            named = {key.strip(): float(value) for key, value in (pair.split("=") for pair in options.split(","))}
            sensitivity, specificity = named.pop("sensitivity", 1.0), named.pop("specificity", 1.0)
            if named:
                raise ValueError(f"unknown {', '.join(named)}")
        if not (0 <= sensitivity <= 1 and 0 <= specificity <= 1):
            raise ValueError("rates lie between 0 and 1")
    except ValueError as error:
        raise ConfigError(
            f"[critic] lvlm = 'simulated:{options}': {error}; expected simulated:0.87 or simulated:sensitivity=0.9,specificity=0.8"
        ) from error
    return sensitivity, specificity
