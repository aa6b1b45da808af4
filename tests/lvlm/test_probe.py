"""What the probe says of servers that can and servers that cannot, each over real HTTP."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image, ImageChops

from rightreasons.errors import LVLMRejected, LVLMUnavailable
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.anthropic import Anthropic
from rightreasons.lvlm.backends.gemini import Gemini
from rightreasons.lvlm.probe import NUMBERS, draw_number, probe
from tests.support.wire_server import WireServer

GOOD = {
    "answers": True,
    "pictures": True,
    "most_pictures": 3,
    "json_schema": True,
    "json_object": True,
    "max_tokens_name": "max_completion_tokens",
    "truncates": True,
    "usage": True,
    "problem": None,
}
SHOWN = {number: Image.open(io.BytesIO(draw_number(number))) for number in NUMBERS}


def read_number(url: str) -> str:
    """Which number a picture shows, from its pixels."""
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    return next(number for number, known in SHOWN.items() if ImageChops.difference(picture, known).getbbox() is None)


class Model:
    """A server of the OpenAI protocol that keeps every promise, save what the options take away."""

    def __init__(
        self, *, sees=3, forms=("json_schema", "json_object"), caps=("max_completion_tokens",), refuses=(), counts=True, says_length=True, text=None
    ):
        self.sees, self.forms, self.caps, self.refuses = sees, forms, caps, refuses
        self.counts, self.says_length, self.text = counts, says_length, text

    def __call__(self, seen):
        body = seen.body
        for name in self.refuses:
            if name in body or body.get("response_format", {}).get("type") == name:
                return 400, {}, {"error": {"message": f"Unsupported parameter: '{name}'"}}
        parts = body["messages"][0]["content"]
        numbers = [read_number(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        form = body.get("response_format", {}).get("type")
        words = "Hello there."
        if numbers:
            words = ", ".join(numbers[-self.sees :]) if self.sees else "A lovely picture."
        elif "Count from" in parts[0]["text"]:
            words = "one two three " * 100
        elif form in self.forms:
            words = json.dumps({"S1": "unsure"} if form == "json_schema" else {"greeting": "hello"})
        words = self.text if self.text is not None else words
        cap = next((body[name] for name in self.caps if name in body), None)
        tokens = words.split()
        cut = cap is not None and len(tokens) > cap
        reason = "length" if cut and self.says_length else "stop"
        choice = {"message": {"role": "assistant", "content": " ".join(tokens[:cap])}, "finish_reason": reason}
        usage = {"prompt_tokens": 9, "completion_tokens": len(tokens[:cap])} if self.counts else None
        return 200, {}, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def probed(model) -> dict:
    with WireServer(model) as wire:
        lvlm = open_lvlm("openai:m", base_url=wire.base_url + "/v1")
        try:
            found = probe(lvlm)
        finally:
            lvlm.close()
        assert len(wire.seen) <= 12, "cheap"
    assert found.pop("seconds") >= 0
    return found


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (Model(), {}),
        (Model(sees=0), {"pictures": False, "most_pictures": 0}),
        (Model(sees=1), {"most_pictures": 1}),
        (Model(forms=("json_object",)), {"json_schema": False}),
        (Model(forms=()), {"json_schema": False, "json_object": False}),
        (Model(refuses=("json_schema",)), {"json_schema": False}),
        (Model(refuses=("response_format",)), {"json_schema": False, "json_object": False}),
        (Model(refuses=("max_completion_tokens",), caps=("max_tokens",)), {"max_tokens_name": "max_tokens"}),
        (Model(caps=("max_tokens",)), {"max_tokens_name": "max_tokens"}),
        (Model(caps=()), {"max_tokens_name": None, "truncates": False}),
        (Model(says_length=False), {"truncates": False}),
        (Model(says_length=False, counts=False), {"max_tokens_name": None, "truncates": False, "usage": False}),
    ],
)
def test_each_ability_is_told(model, change):
    assert probed(model) == GOOD | change


@pytest.mark.parametrize("text", ["x\x00\x1b�", "{{{{", "[" * 100_000, "47", "null"])
def test_a_poor_model_makes_a_poor_table(text):
    found = probed(Model(text=text))
    assert not found["json_schema"] and not found["json_object"] and found["most_pictures"] in (0, 1) and found["usage"]


def test_a_model_that_says_nothing():
    assert probed(Model(text="")) | {"problem": None} == GOOD | {
        "answers": False, "pictures": False, "most_pictures": 0, "json_schema": False, "json_object": False,
    }  # fmt: skip


def test_a_model_that_takes_no_picture():
    model = Model()
    reject = (400, {}, {"error": {"message": "this model reads no images"}})
    found = probed(lambda seen: reject if len(seen.body["messages"][0]["content"]) > 1 else model(seen))
    assert "reads no images" in found.pop("problem")
    assert found == {key: value for key, value in GOOD.items() if key != "problem"} | {"pictures": False, "most_pictures": 0}


def test_nobody_there_or_a_bad_key():
    with pytest.raises(LVLMRejected, match="OPENAI_API_KEY"):
        probed(lambda seen: (401, {}, {"error": {"message": "no"}}))
    with pytest.raises(LVLMUnavailable, match="gives no answer"):
        probed(lambda seen: (503, {"retry-after": "0.01"}, {"error": {"message": "starting"}}))


def test_the_native_backends():
    def anthropic(seen):
        text = '{"S1": "unsure"}' if "output_config" in seen.body else "Hello."
        reason = "max_tokens" if seen.body["max_tokens"] == 16 else "end_turn"
        usage = {"input_tokens": 5, "output_tokens": 5}
        return 200, {}, {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": reason, "usage": usage}

    def gemini(seen):
        settings = seen.body["generationConfig"]
        text = '{"S1": "unsure"}' if "responseJsonSchema" in settings else '{"a": 1}' if "responseMimeType" in settings else "Hello."
        reason = "MAX_TOKENS" if settings["maxOutputTokens"] == 16 else "STOP"
        usage = {"promptTokenCount": 5, "candidatesTokenCount": 5}
        return 200, {}, {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": reason}], "usageMetadata": usage}

    for backend, reply, form, name in ((Anthropic, anthropic, None, "max_tokens"), (Gemini, gemini, True, "maxOutputTokens")):
        with WireServer(reply) as wire:
            lvlm = backend("m", base_url=wire.base_url)
            found = probe(lvlm)
            lvlm.close()
        assert found.pop("seconds") > 0
        assert found == GOOD | {"pictures": False, "most_pictures": 0, "json_object": form, "max_tokens_name": name}
