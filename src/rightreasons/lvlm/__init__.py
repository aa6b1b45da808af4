"""Vision-language models behind one small protocol; a new backend is one file that implements it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.protocol import LVLM

if TYPE_CHECKING:
    from rightreasons.records import GroundTruth

__all__ = ["LOCAL_SERVER", "LVLM", "open_lvlm"]

# The server that openai: asks unless base_url names another one: vLLM's default address.
LOCAL_SERVER = "http://127.0.0.1:8000/v1"
# How each backend is written in a configuration; error messages list these.
_FORMS = {
    "openai": "openai:MODEL",
    "anthropic": "anthropic:MODEL",
    "gemini": "gemini:MODEL",
    "local": "local:FOLDER",
    "replay": "replay:FILE",
    "human": "human:FILE",
    "simulated": "simulated:",
    "scripted": "scripted:FILE",
}


def open_lvlm(
    spec: str,
    *,
    base_url: str | None = None,
    allow_remote: tuple[str, ...] = (),
    timeout: float = 180.0,
    truth: GroundTruth | None = None,
    seed: int = 0,
    root: Path = Path(),
) -> LVLM:
    """Opens the backend that ``spec`` names.

    ``openai:MODEL`` is any server that speaks the OpenAI chat protocol, at ``base_url`` (default: port 8000 of this machine);
    ``anthropic:MODEL`` and ``gemini:MODEL`` use the provider's own protocol, at the provider or at ``base_url``;
    ``local:FOLDER`` is a transformers model on this machine, in this process;
    ``replay:FILE`` gives the answers of an earlier run, from its lvlm.sqlite or from exported JSONL;
    ``human:FILE`` is a person, who fills in a file;
    ``simulated:0.87`` errs on 13 % of the segments, ``simulated:sensitivity=0.9,specificity=0.8`` unevenly; it needs ``truth``;
    ``scripted:FILE`` gives fixed answers.
    ``timeout`` bounds one answer of a server: the seconds from the first byte sent to the last byte received.
    A relative FILE or FOLDER is looked up in ``root``.

    Raises ConfigError for an unknown backend, MissingExtra if its package is not installed, and LVLMUnavailable for a remote host that is not
    allowed or a simulation without ground truth.
    """
    kind, colon, rest = spec.partition(":")
    if kind not in _BACKENDS or not colon:
        raise ConfigError(f"[critic] lvlm = {spec!r} is not known; expected one of {', '.join(_FORMS.values())}")
    if not rest and kind != "simulated":
        raise ConfigError(f"[critic] lvlm = {spec!r} says nothing after the colon; expected {_FORMS[kind]}")
    return _BACKENDS[kind](rest, base_url=base_url, allow_remote=allow_remote, timeout=timeout, truth=truth, seed=seed, root=root)


def _open_openai(model: str, *, base_url: str | None, allow_remote: tuple[str, ...], timeout: float, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.openai import OpenAICompatible

    return OpenAICompatible(model, base_url=base_url or LOCAL_SERVER, allow_remote=allow_remote, timeout=timeout)


def _open_anthropic(model: str, *, base_url: str | None, allow_remote: tuple[str, ...], timeout: float, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.anthropic import Anthropic

    return Anthropic(model, base_url=base_url, allow_remote=allow_remote, timeout=timeout)


def _open_gemini(model: str, *, base_url: str | None, allow_remote: tuple[str, ...], timeout: float, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.gemini import Gemini

    return Gemini(model, base_url=base_url, allow_remote=allow_remote, timeout=timeout)


def _open_local(folder: str, *, root: Path, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.local import Local

    return Local(folder, root)


def _open_replay(file: str, *, root: Path, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.replay import Replay

    return Replay(file, root)


def _open_human(file: str, *, root: Path, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.human import Human

    return Human(file, root)


def _open_simulated(options: str, *, truth: GroundTruth | None, seed: int, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.simulated import Simulated

    if truth is None or (truth.masked is not None and not truth.masked):
        raise LVLMUnavailable("simulated: needs ground-truth masks, which these data do not have; name a real model: lvlm = 'openai:MODEL'")
    return Simulated(truth, options, seed=seed)


def _open_scripted(path: str, *, root: Path, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.scripted import Scripted

    return Scripted.from_file(path, root)


_BACKENDS: dict[str, Callable[..., LVLM]] = {
    "openai": _open_openai,
    "anthropic": _open_anthropic,
    "gemini": _open_gemini,
    "local": _open_local,
    "replay": _open_replay,
    "human": _open_human,
    "simulated": _open_simulated,
    "scripted": _open_scripted,
}
