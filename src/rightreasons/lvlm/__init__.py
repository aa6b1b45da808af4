"""Vision-language models behind one small protocol; a new backend is one file that fulfils it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.protocol import LVLM

if TYPE_CHECKING:
    from rightreasons.records import GroundTruth

__all__ = ["LVLM", "open_lvlm"]


def open_lvlm(
    spec: str,
    *,
    base_url: str = "http://127.0.0.1:8000/v1",
    allow_remote: tuple[str, ...] = (),
    truth: GroundTruth | None = None,
    seed: int = 0,
) -> LVLM:
    """The backend that ``spec`` names: ``openai:MODEL`` (any OpenAI-compatible server), ``simulated:`` or ``scripted:FILE``.

    ``simulated:0.87`` errs on 13 % of the segments, ``simulated:sensitivity=0.9,specificity=0.8`` unevenly; it needs ``truth``.
    Raises ConfigError for an unknown backend, LVLMUnavailable for a remote host without leave or a simulation without ground truth.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _BACKENDS:
        raise ConfigError(f"[critic] lvlm = {spec!r} is not known; expected openai:MODEL, simulated: or scripted:FILE")
    return _BACKENDS[kind](rest, base_url=base_url, allow_remote=allow_remote, truth=truth, seed=seed)


def _open_openai(model: str, *, base_url: str, allow_remote: tuple[str, ...], **_: object) -> LVLM:
    from rightreasons.lvlm.openai import OpenAICompatible

    if not model:
        raise ConfigError("[critic] lvlm = 'openai:' names no model; expected openai:MODEL")
    return OpenAICompatible(model, base_url=base_url, allow_remote=allow_remote)


def _open_simulated(options: str, *, truth: GroundTruth | None, seed: int, **_: object) -> LVLM:
    from rightreasons.lvlm.simulated import Simulated

    if truth is None:
        raise LVLMUnavailable("simulated: needs ground-truth masks, which these data do not have; name a real model: lvlm = 'openai:MODEL'")
    return Simulated(truth, options, seed=seed)


def _open_scripted(path: str, **_: object) -> LVLM:
    from rightreasons.lvlm.scripted import Scripted

    return Scripted.from_file(path)


_BACKENDS: dict[str, Callable[..., LVLM]] = {"openai": _open_openai, "simulated": _open_simulated, "scripted": _open_scripted}
