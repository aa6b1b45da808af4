"""The critic: a vision-language model reasons about one image in six steps, and ends with a paragraph per segment."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.prompts import fill_prompt
from rightreasons.records import ClassDescription, Critique, Pictures, Subject

Ask = Callable[[Request], Answer]


def critique_image(
    ask: Ask, pictures: Pictures, subject: Subject, *, label: int, descriptions: Sequence[ClassDescription], shares: Sequence[float]
) -> Critique:
    """The critic's words on one image. Where no paragraph names a segment, it is asked once more, by text alone.

    ``shares`` has the positive effect's share of each segment, from S1 on.
    """
    ids = [f"S{segment + 1}" for segment in range(len(shares))]
    prompt = fill_prompt(
        "critic",
        label=descriptions[label].name,
        descriptions="\n".join(_describe(description) for description in descriptions),
        segments="\n".join(
            f"{name}: {where}, {share:.0%}" for name, where, share in zip(ids, describe_positions(subject.segments), shares, strict=False)
        ),
        ids=", ".join(ids),
    )
    parts = (prompt, "The image as it is:", pictures.clean, "With outlines:", pictures.contours, "The segments alone:", pictures.map)
    answer = ask(Request("critic", parts, subject=subject))
    if answer.problem is None and not _names_a_segment(answer.text):
        complaint = "That has no paragraph that starts with a segment's ID. Write those paragraphs now."
        again = f"{prompt}\n\nYou have answered:\n<answer>\n{answer.text[:4000]}\n</answer>\n{complaint}"
        answer = ask(Request("critic", (again,), subject=subject))
        if answer.problem is None and not _names_a_segment(answer.text):
            return Critique(subject.index, answer.text, "malformed: no paragraph names a segment")
    return Critique(subject.index, answer.text, answer.problem)


def describe_positions(segments: Int[Tensor, "height width"]) -> list[str]:
    """Where the centre of each segment lies, in words: "top left", "middle", ..."""
    height, width = segments.shape
    places = []
    for segment in range(int(segments.max()) + 1):
        rows, columns = _centre(segments == segment)
        vertical = ("top", "", "bottom")[min(2, int(3 * rows / height))]
        horizontal = ("left", "", "right")[min(2, int(3 * columns / width))]
        places.append(f"{vertical} {horizontal}".strip() or "middle")
    return places


def _centre(mask: Bool[Tensor, "height width"]) -> tuple[float, float]:
    where: Float[Tensor, "pixel 2"] = mask.nonzero().float()
    return tuple((where.mean(0) + 0.5).tolist()) if len(where) else (0.0, 0.0)


def _describe(description: ClassDescription) -> str:
    lines = [f'- Class "{description.name}".']
    if description.description.strip():
        lines.append(f"What matters: {description.description.strip()}")
    if description.irrelevant.strip():
        lines.append(f"What does not matter: {description.irrelevant.strip()}")
    return " ".join(lines)


def _names_a_segment(text: str) -> bool:
    return re.search(r"^\W*S\d+\b", text, re.MULTILINE) is not None
