"""The critic: a vision-language model reasons about one image in six steps, and ends with a paragraph per segment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rightreasons.common.text import clean_text, contain
from rightreasons.critic.case import Case
from rightreasons.critic.parse import describe_unusable, read_paragraphs
from rightreasons.critic.prompts import fill_prompt, prompt_version
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.records import ClassDescription, Critique, Pictures

Ask = Callable[[Request], Answer]
# How many characters of an unusable answer are quoted when the model is asked again.
SHOWN_AGAIN = 6000


def critique_image(ask: Ask, case: Case, *, vote: int = 0, permutation: int = 0) -> Critique:
    """The critic's words on one image. If no paragraph names a segment, the critic is asked once more, by text alone."""
    request = critic_request(case, vote=vote, permutation=permutation)
    answer = ask(request)
    ids = segment_ids(len(case.shares))
    if answer.problem is None and not names_one_of(answer.text, ids):
        answer = ask(ask_again(request, answer.text, "it has no paragraph that starts with a segment's ID. Write those paragraphs now"))
        if answer.problem is None and not names_one_of(answer.text, ids):
            return Critique(case.subject.index, clean_text(answer.text), describe_unusable(answer.text, "no paragraph names a segment"), vote)
    return Critique(case.subject.index, clean_text(answer.text), answer.problem and clean_text(answer.problem), vote)


def critic_request(case: Case, *, vote: int = 0, permutation: int = 0) -> Request:
    """What the critic is asked about one image."""
    prompt = fill_prompt("critic", **describe_case(case))
    version = prompt_version("critic", case.pictures.style)
    return Request("critic", show_pictures(prompt, case.pictures), vote=vote, permutation=permutation, prompt=version, subject=case.subject)


def ask_again(request: Request, said: str, complaint: str) -> Request:
    """The same question by text alone, with the unusable answer quoted."""
    prompt = request.parts[0]
    words, why = contain(said[:SHOWN_AGAIN], "answer"), contain(complaint, "answer")
    again = f"{prompt}\n\nYou have answered:\n<answer>\n{words}\n</answer>\nThat could not be used: {why}."
    return replace(request, parts=(again,))


def describe_case(case: Case) -> dict[str, str]:
    """The values for a prompt's placeholders: the image's class, the expert's descriptions, and each segment's ID, place and share."""
    ids = segment_ids(len(case.shares))
    # The places are those of the pixels that the pictures show: the ones that carry a segment's effect.
    places = describe_positions(torch.where(case.subject.positive_effect > 0, case.subject.segments, -1))
    return {
        "label": case.descriptions[case.label].name,
        "descriptions": "\n".join(_describe(description) for description in case.descriptions),
        "segments": "\n".join(f"{name}: {where}, {share:.0%}" for name, where, share in zip(ids, places, case.shares, strict=False)),
        "ids": ", ".join(ids),
    }


def show_pictures(prompt: str, pictures: Pictures) -> tuple[str | bytes, ...]:
    """The prompt and the three pictures, each with its caption."""
    return (prompt, "The image as it is:", pictures.clean, "With outlines:", pictures.contours, "The segments alone:", pictures.map)


def segment_ids(count: int) -> list[str]:
    """The names under which a model is shown segments: S1, S2, ..."""
    return [f"S{segment + 1}" for segment in range(count)]


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


def names_one_of(text: str, ids: Sequence[str]) -> bool:
    """Whether a paragraph starts with one of these IDs, so that the text is a critique."""
    return not set(ids).isdisjoint(read_paragraphs(text))
