"""The table of backends. A new one is a file in this folder that fulfils ``Sender`` or ``Answerer``, and a row here.

A backend with an API key also has its variable in ``wire.privacy.KEYS``, and one whose recorded answers can be replayed its parser in ``replay``.
Free of torch: a backend is imported when it is opened.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rightreasons.errors import MissingExtra
from rightreasons.lvlm.protocol import LVLM
from rightreasons.lvlm.wire.privacy import KEYS

# The server that openai: asks unless base_url names another one: vLLM's default address.
LOCAL_SERVER = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    ``form``: how a configuration writes the backend. ``open``: opens it by what follows the colon and those arguments of ``open_lvlm`` that it needs.
    ``packages``: the modules that it needs and their packages, which the extra of the backend's name installs. ``key``: the variable of its API key,
    if requests go to a server. ``free``: whether answers cost nothing. ``batch``: the format of its provider's batch files.
    ``asks_controls``: whether it can be asked control questions.
    """

    form: str
    open: Callable[..., LVLM]
    packages: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    free: bool = False
    batch: Literal["openai", "anthropic"] | None = None
    asks_controls: bool = True


def check_packages(kind: str) -> None:
    """Raises MissingExtra if a package that a backend needs is not installed."""
    for module, package in BACKENDS[kind].packages.items():
        parts = module.split(".")
        # The parent first: find_spec raises an error of its own if the parent is missing.
        if any(importlib.util.find_spec(".".join(parts[:length])) is None for length in range(1, len(parts) + 1)):
            raise MissingExtra(package, kind)


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


def _open_simulated(options: str, *, truth: Any, seed: int, **_: object) -> LVLM:  # noqa: ANN401 -- only the backend itself knows ground truth
    from rightreasons.lvlm.backends.simulated import Simulated

    return Simulated.with_masks(truth, options, seed=seed)


def _open_scripted(path: str, *, root: Path, **_: object) -> LVLM:
    from rightreasons.lvlm.backends.scripted import Scripted

    return Scripted.from_file(path, root)


BACKENDS: dict[str, Backend] = {
    "openai": Backend("openai:MODEL", _open_openai, {"openai": "openai"}, key=KEYS["openai"], batch="openai"),
    "anthropic": Backend("anthropic:MODEL", _open_anthropic, {"anthropic": "anthropic"}, key=KEYS["anthropic"], batch="anthropic"),
    "gemini": Backend("gemini:MODEL", _open_gemini, {"google.genai": "google-genai"}, key=KEYS["gemini"]),
    "local": Backend("local:FOLDER", _open_local, {"transformers": "transformers", "xgrammar": "xgrammar"}, free=True),
    "replay": Backend("replay:FILE", _open_replay, free=True, asks_controls=False),  # it has no answers to new questions
    "human": Backend("human:FILE", _open_human, free=True, asks_controls=False),
    "simulated": Backend("simulated:", _open_simulated, free=True),
    "scripted": Backend("scripted:FILE", _open_scripted, free=True),
}


def kind_of(name: str) -> str:
    """The kind of a backend by its name: "openai" for ``openai:MODEL``."""
    return name.partition(":")[0]
