"""Make image classifiers right for the right reasons.

    find_shortcuts   sample -> attribute -> segment -> render -> critique -> judge
    fix_shortcuts    mask -> align
    score            evaluate

``pipeline`` has the stages in order and is the page to read first.
"""

from rightreasons.errors import RightReasonsError
from rightreasons.lvlm import open_lvlm
from rightreasons.measure import score
from rightreasons.pipeline import Run, find_shortcuts, fix_shortcuts
from rightreasons.records import ClassDescription, GroundTruth, Scores, Verdict

__all__ = [
    "ClassDescription",
    "GroundTruth",
    "RightReasonsError",
    "Run",
    "Scores",
    "Verdict",
    "find_shortcuts",
    "fix_shortcuts",
    "open_lvlm",
    "score",
]
