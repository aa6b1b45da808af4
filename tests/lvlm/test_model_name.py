"""Who answers: the name that a server gives is kept with the answer, told once if it is another model, and known again from an older ledger."""

from __future__ import annotations

import json

import pytest

from rightreasons.lvlm.backends.anthropic import Anthropic
from rightreasons.lvlm.backends.gemini import Gemini
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import LONGEST_NAME, Request
from rightreasons.lvlm.wire.model_name import is_same_model

ANSWERS = {
    "openai": (OpenAICompatible, "model", {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}),
    "anthropic": (Anthropic, "model", {"type": "message", "content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}),
    "gemini": (Gemini, "modelVersion", {"candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}]}),
}
QUESTION = Request("judge", ("What is S1?",))


@pytest.mark.parametrize(
    ("asked", "answering"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("claude-opus-4-0", "claude-opus-4-20250514"),
        ("claude-opus-4-1", "claude-opus-4-1-20250805"),
        ("gemini-2.5-flash", "models/gemini-2.5-flash-preview-05-20"),
        ("gemini-1.5-pro", "gemini-1.5-pro-002"),
        ("openai/gpt-4o:free", "gpt-4o-2024-08-06"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b-instruct"),
        ("llava", "llava:latest"),
        ("minicpm-v", "/models/minicpm-v.gguf"),
    ],
)
def test_a_date_a_version_or_a_folder_is_no_other_model(asked, answering):
    assert is_same_model(asked, answering) and is_same_model(answering, asked)


@pytest.mark.parametrize(
    ("asked", "answering"),
    [
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("gpt-4", "gpt-4.1"),
        ("gpt-4", "gpt-3.5-turbo"),
        ("llava:7b", "llava:13b"),
        ("gemini-2.5-pro", "gemini-2.5-flash"),
        ("claude-opus-4-1", "claude-opus-4-20250514"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
        ("stub", "other-small-model"),
    ],
)
def test_another_size_generation_or_chosen_day_is_another_model(asked, answering):
    assert not is_same_model(asked, answering) and not is_same_model(answering, asked)


def opened(kind: str):
    return ANSWERS[kind][0]("big-model", base_url="http://127.0.0.1:9")


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize(
    ("said", "read"), [("small", "small"), (None, None), ("", None), (7, None), ("a\n\x1b[1mb", "a \ufffd[1mb"), ("x" * 999, "x" * LONGEST_NAME)]
)
def test_the_name_that_comes_with_an_answer(kind, said, read):
    _, key, answer = ANSWERS[kind]
    parsed = opened(kind).parse(json.dumps(answer | {key: said}))
    assert parsed.text == "ok" and parsed.model == read


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_model_is_told_once_and_known_again_from_the_ledger(tmp_path, kind):
    """The ledger keeps answers as they came, so that one from before this was looked at tells it as well."""
    _, key, answer = ANSWERS[kind]
    lvlm = opened(kind)
    requests = [Request("judge", (f"What is S{number}?",)) for number in range(3)]
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    for request in requests:
        ledger.record(lvlm, request, json.dumps(answer | {key: "small-model"}))
    ledger.close()
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    assert [ledger.ask(lvlm, request).model for request in requests] == ["small-model"] * 3 and ledger.sent == 0
    assert ledger.answered_by == {f"{kind}:big-model": {"small-model"}}
    (note,) = ledger.notes
    assert note.startswith(f"{kind}:big-model was asked, and 'small-model' answers")
    ledger.close()


def test_the_same_model_is_no_note(tmp_path):
    _, key, answer = ANSWERS["openai"]
    lvlm, ledger = opened("openai"), Ledger(tmp_path / "lvlm.sqlite")
    ledger.record(lvlm, QUESTION, json.dumps(answer | {key: "big-model-2026-01-01"}))
    assert ledger.ask(lvlm, QUESTION).model == "big-model-2026-01-01"
    assert ledger.notes == [] and ledger.answered_by == {"openai:big-model": {"big-model-2026-01-01"}}
    ledger.close()
