"""What a server and model can do, each ability tried with a real call, since neither documentation nor a status of 200 can be relied on."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from typing import Any

from rightreasons.errors import LVLMBusy, LVLMError, LVLMRejected, LVLMUnavailable, LVLMUnsupported
from rightreasons.lvlm.protocol import LVLM, Answer, Request, get_reply

# The numbers shown in the pictures. Nobody guesses three numbers of two digits in order.
NUMBERS = ("47", "83", "26")
_SCHEMA = {
    "type": "object",
    "properties": {"S1": {"type": "string", "enum": ["relevant", "spurious", "unsure"]}},
    "required": ["S1"],
    "additionalProperties": False,
}
_CAP = 16
_TRIES = 4
_LONGEST_WAIT = 5.0


def probe(lvlm: LVLM) -> dict[str, Any]:
    """What ``lvlm`` can do, found by seven to eleven small calls that are not recorded in a ledger.

    ``answers``: it answers at all. ``pictures``: it reads the number in a picture. ``most_pictures``: how many pictures of one prompt it reads (0, 1
    or 3; the critic shows 3). ``json_schema``, ``json_object``: its answer has that form although the prompt asks for something else (None if the
    backend does not know the form). ``max_tokens_name``: the parameter that caps an answer, None if none does. ``truncates``: it reports that an
    answer was cut off. ``usage``: it counts tokens. ``seconds``: the longest call. ``problem``: why the first answer that failed to come did so.

    A weak model gives a table with many no's, never an error. Raises LVLMUnavailable or LVLMRejected if nothing is answered at all.
    """
    talk = _Talk(lvlm)
    hello = Request("control", ("Say hello in one short sentence.",), max_tokens=256)
    first = talk.ask(hello, stop=True)
    read = [count for count in (1, 3) if _numbers_in(talk.ask(_show(count)).text, count)]
    formed = replace(hello, schema=_SCHEMA)
    schema = talk.ask(formed)
    free = _without_schema(lvlm.body(formed))
    any_object = None if free is None else talk.ask(formed, free)
    name, truncates = _find_cap(talk)
    return {
        "answers": bool(first.text.strip()),
        "pictures": 1 in read,
        "most_pictures": max(read, default=0),
        "json_schema": _object(schema.text).get("S1") in _SCHEMA["properties"]["S1"]["enum"],
        "json_object": None if any_object is None else _is_object(any_object.text),
        "max_tokens_name": name,
        "truncates": truncates,
        "usage": None not in (first.usage.input_tokens, first.usage.output_tokens),
        "seconds": round(talk.longest, 3),
        "problem": talk.problem,
    }


def draw_number(number: str) -> bytes:
    """A PNG of 512 x 512 pixels with the number in black on white, as large as fits."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(picture).text((256, 256), number, fill="black", font=ImageFont.load_default(360), anchor="mm")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _show(count: int) -> Request:
    words = "Each picture shows one number. Say the numbers in the order of the pictures, with commas between them, and nothing else."
    return Request("control", (words, *map(draw_number, NUMBERS[:count])), max_tokens=256)


def _numbers_in(text: str, count: int) -> bool:
    digits = "".join(letter if letter.isdigit() else " " for letter in text).split()
    return digits == list(NUMBERS[:count])


def _without_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """The same request for any JSON object; None if the backend's protocol has no such form."""
    if "response_format" in body:
        return body | {"response_format": {"type": "json_object"}}
    if "responseJsonSchema" in body.get("generationConfig", {}):
        return body | {"generationConfig": {key: value for key, value in body["generationConfig"].items() if key != "responseJsonSchema"}}
    return None


def _find_cap(talk: _Talk) -> tuple[str | None, bool]:
    """The name of the parameter that caps an answer, and whether the server reports that the answer was cut off."""
    request = Request("control", ("Count from one to three hundred in words.",), max_tokens=_CAP)
    body = talk.lvlm.body(request)
    name = next((key for key, value in body.get("generationConfig", body).items() if value == _CAP), None)
    newer, older = "max_completion_tokens", "max_tokens"
    # The older name is set to None, because a server on this machine is otherwise sent both names at once.
    answer = _ask_at_length(talk, request, body | {older: None} if name == newer else body)
    if name == newer and any(newer in words for words in talk.refused):
        name = older
    elif name == newer and not _is_capped(answer):  # accepted with a 200, and ignored
        name = older
        answer = _ask_at_length(talk, request, {key: value for key, value in body.items() if key != newer} | {older: _CAP})
    return (name, answer.outcome == "truncated") if _is_capped(answer) else (None, False)


def _ask_at_length(talk: _Talk, request: Request, body: dict[str, Any]) -> Answer:
    """An answer that reaches the cap. One that ends earlier says nothing about the cap, so the model is asked again, at most twice."""
    answer = talk.ask(request, body, note=False)
    for _ in range(2):
        if answer.usage.output_tokens is None or answer.usage.output_tokens >= _CAP:
            break
        answer = talk.ask(request, body, note=False)
    return answer


def _is_capped(answer: Answer) -> bool:
    return answer.outcome == "truncated" or answer.usage.output_tokens == _CAP


class _Talk:
    """Calls to one backend: the longest time, the parameters that were refused, and the first problem."""

    def __init__(self, lvlm: LVLM) -> None:
        self.lvlm = lvlm
        self.longest = 0.0
        self.refused: list[str] = []
        self.problem: str | None = None

    def ask(self, request: Request, body: dict[str, Any] | None = None, *, stop: bool = False, note: bool = True) -> Answer:
        """One answer. A server that is busy, or refuses a parameter, is asked again. With ``stop``, no answer at all is an error."""
        answer = Answer("", problem="no answer", outcome="unknown")
        for _ in range(_TRIES):
            began = time.perf_counter()
            try:
                answer = self.lvlm.parse(get_reply(self.lvlm, request, body))
                self.longest = max(self.longest, time.perf_counter() - began)
                break
            except LVLMError as error:
                answer = replace(answer, problem=str(error))
                if stop and isinstance(error, LVLMUnavailable | LVLMRejected):
                    raise
                if isinstance(error, LVLMUnsupported):
                    self.refused.append(str(error))
                elif isinstance(error, LVLMBusy):
                    time.sleep(min(_LONGEST_WAIT, 1.0 if error.wait is None else error.wait))
                else:
                    break
        if stop and answer.outcome == "unknown":
            raise LVLMUnavailable(f"{self.lvlm.name} gives no answer: {answer.problem}. Check the model's name and the server's log")
        if note:
            self.problem = self.problem or answer.problem
        return answer


def _object(text: str) -> dict[str, Any]:
    """The whole text as a JSON object; empty if it is anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_object(text: str) -> bool:
    return bool(_object(text)) or text.strip() == "{}"
