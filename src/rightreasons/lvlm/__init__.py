"""Vision-language models behind one small protocol (``protocol``); ``backends`` has the table of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rightreasons.errors import ConfigError
from rightreasons.lvlm.backends import BACKENDS, LOCAL_SERVER, check_packages
from rightreasons.lvlm.protocol import LVLM

if TYPE_CHECKING:
    from rightreasons.records import GroundTruth

__all__ = ["LOCAL_SERVER", "LVLM", "open_lvlm"]


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
    if kind not in BACKENDS or not colon:
        expected = ", ".join(backend.form for backend in BACKENDS.values())
        raise ConfigError(f"[critic] lvlm = {spec!r} is not known; expected one of {expected}")
    if not rest and kind != "simulated":
        raise ConfigError(f"[critic] lvlm = {spec!r} says nothing after the colon; expected {BACKENDS[kind].form}")
    check_packages(kind)
    return BACKENDS[kind].open(rest, base_url=base_url, allow_remote=allow_remote, timeout=timeout, truth=truth, seed=seed, root=root)
