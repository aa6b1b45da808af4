"""Control questions with known answers, asked in every run. A critic that fails one should not be trusted.

The pictures are drawn here, with a class of their own, so that the right answer does not depend on an expert's descriptions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.critic.case import Case
from rightreasons.critic.pictures import render_pictures
from rightreasons.lvlm.backends import BACKENDS, kind_of
from rightreasons.lvlm.protocol import LVLM
from rightreasons.records import ClassDescription, Control, Subject, Verdict

# The controls by an index that no image of a dataset has. Only a simulated critic is asked the last one.
CONTROLS = {-1: "plain background", -2: "blank image", -3: "known core"}
CORE = -3
# What each control tests, in the words of the report.
MEANINGS = {
    "plain background": "a segment over nothing, beside the only thing in the picture: relevant is wrong",
    "blank image": "a segment in a picture of nothing at all: relevant is wrong, and no answer is no fault",
    "known core": "a segment over the very thing that the class is named for: spurious is wrong",
}
_WORDS = (ClassDescription("cross", "The dark cross: its two bars.", "The plain ground around the cross."),)
_SIDE = 32


def controls_for(critic: LVLM) -> list[Case]:
    """The controls that a critic is asked. A person is asked none, nor is a recording, which has no answers to new questions."""
    kind = kind_of(critic.name)
    if kind in BACKENDS and not BACKENDS[kind].asks_controls:
        return []
    return [control_case(index) for index in CONTROLS if index != CORE or critic.simulated]


@functools.cache
def control_case(index: int) -> Case:
    """A picture of a cross, or of nothing, with one segment: a patch of empty ground, or the cross itself."""
    image = torch.full((3, _SIDE, _SIDE), 0.82)
    cross = _cross()
    if CONTROLS[index] != "blank image":
        image[:, cross] = 0.15
    patch = torch.zeros_like(cross)
    patch[3:11, 21:29] = True  # touches neither bar
    shown = torch.where(cross if index == CORE else patch, 0, -1)
    subject = Subject(index, shown, (shown >= 0).float(), known=index != CORE)
    return Case(image, shown, render_pictures(image, shown), subject, 0, _WORDS, (1.0,))


def read_controls(verdicts: Iterable[Verdict]) -> list[Control]:
    """The results of the controls, from their verdicts. Unsure passes; without an answer the result is None."""
    controls = []
    for verdict in verdicts:
        name = CONTROLS[verdict.index]
        wrong = "spurious" if verdict.index == CORE else "relevant"
        controls.append(Control(name, None if verdict.problem else verdict.value != wrong, verdict.problem or verdict.value))
    return controls


def _cross() -> Bool[Tensor, "height width"]:
    cross = torch.zeros(_SIDE, _SIDE, dtype=torch.bool)
    cross[8:28, 10:14] = cross[16:20, 4:20] = True
    return cross
