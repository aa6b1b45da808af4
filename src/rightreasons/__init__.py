"""Make image classifiers right for the right reasons.

    find_shortcuts   sample -> attribute -> segment -> render -> critique -> judge
    fix_shortcuts    mask -> align
    score            measure

``pipeline.find`` has the stages in order and is the page to read first.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rightreasons.errors import RightReasonsError
    from rightreasons.lvlm import open_lvlm
    from rightreasons.networks.presets import Preset
    from rightreasons.pipeline.handover.export import export_model
    from rightreasons.pipeline.shortcuts import find_shortcuts, fix_shortcuts
    from rightreasons.records import ClassDescription, GroundTruth, Scores, Verdict
    from rightreasons.run import Run
    from rightreasons.scoring.scores import score

# Imported when asked for: the command line starts without torch, and can set what torch reads as it loads.
_HOMES = {
    "ClassDescription": "records",
    "GroundTruth": "records",
    "Preset": "networks.presets",
    "RightReasonsError": "errors",
    "Run": "run",
    "Scores": "records",
    "Verdict": "records",
    "export_model": "pipeline.handover.export",
    "find_shortcuts": "pipeline.shortcuts",
    "fix_shortcuts": "pipeline.shortcuts",
    "open_lvlm": "lvlm",
    "score": "scoring.scores",
}

__all__ = [
    "ClassDescription",
    "GroundTruth",
    "Preset",
    "RightReasonsError",
    "Run",
    "Scores",
    "Verdict",
    "export_model",
    "find_shortcuts",
    "fix_shortcuts",
    "open_lvlm",
    "score",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("rightreasons")
    if name not in _HOMES:
        raise AttributeError(f"module 'rightreasons' has no attribute {name!r}")
    return getattr(import_module(f"rightreasons.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
