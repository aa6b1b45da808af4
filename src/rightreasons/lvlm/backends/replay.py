"""Answers of an earlier run, replayed: the same verdicts without a model, a key or a cost."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.pictures import hash_pictures
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.lvlm.wire.chat import chat_message
from rightreasons.lvlm.wire.composite import SHAPES

# The key of a recorded answer: texts and the SHA-256 of pictures in order, with vote and permutation if the recording has them.
Asked = tuple[tuple[str, ...], int | None, int | None]
_OUTCOMES = ("answered", "refused", "truncated")


class Replay:
    """``file`` is a run's lvlm.sqlite, or JSONL that holds both the exported requests and the answers to them, in any order.

    A question is recognised by its text and pictures, whichever model it was sent to. A question without a recorded answer is an error, and is
    never sent anywhere.
    """

    simulated = False
    concurrency = (1, 1)
    address = None

    def __init__(self, file: str, root: Path = Path()) -> None:
        self.name, self._file = f"replay:{file}", root / file
        try:
            with self._file.open("rb") as opened:
                is_ledger = opened.read(15) == b"SQLite format 3"
            self._answers = dict(_read_ledger(self._file) if is_ledger else _read_lines(self._file))
        except (OSError, sqlite3.Error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"[critic] lvlm = {self.name!r} cannot be read ({error!r}); expected an lvlm.sqlite, or exported JSONL") from error
        if not self._answers:
            raise ConfigError(f"[critic] lvlm = {self.name!r} has no answer; expected an lvlm.sqlite, or JSONL with requests and their answers")

    def check(self) -> None:
        """Always available."""

    def body(self, request: Request) -> dict[str, Any]:
        """A chat with one message. The ledger replaces its pictures by their hashes."""
        return {"messages": [chat_message(request)], "max_tokens": request.max_tokens}

    def answer(self, request: Request) -> str:
        """The recorded answer, with the backend that gave it. Raises LVLMUnavailable if there is none."""
        # A model that could not take several pictures was asked with one picture of them all.
        for shape in SHAPES:
            shaped = shape(request)
            parts = tuple(part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in shaped.parts)
            for asked in ((parts, request.vote, request.permutation), (parts, None, None)):
                if asked in self._answers:
                    return self._answers[asked]
        about = f"image {request.subject.index}" if request.subject is not None else f"the question that ends {_last_words(request)!r}"
        raise LVLMUnavailable(
            f"{self.name} has no answer of the {request.role} about {about}: it was recorded with other data, settings or prompts; "
            f"use the same ones, or a model that can be asked"
        )

    def parse(self, raw: str) -> Answer:
        """Parses the recorded answer as the backend that gave it does."""
        return _read_recorded(raw)

    def close(self) -> None:
        """Nothing is connected."""


def _read_ledger(path: Path) -> Iterator[tuple[Asked, str]]:
    query = "SELECT request, model, outcome, raw FROM attempts WHERE raw IS NOT NULL ORDER BY coalesce(outcome, 'answered') = 'answered', id"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for described, model, outcome, raw in connection.execute(query):
            said = json.loads(described)
            parts = tuple(_parts(said["body"]))
            # Requests to a simulated or scripted critic have no messages. They are skipped: their answers can be computed again.
            if parts and (outcome is None or outcome in _OUTCOMES):
                yield (parts, said["vote"], said["permutation"]), _recorded(model.partition(":")[0], raw)


def _read_lines(path: Path) -> Iterator[tuple[Asked, str]]:
    requests: dict[str, tuple[str, ...]] = {}
    answers: dict[str, str] = {}
    for entry in _entries(path.read_text(encoding="utf-8")):
        name, asked = entry["custom_id"], entry.get("body") or entry.get("params")
        if asked is not None:
            requests[name] = tuple(_parts(hash_pictures(asked)))
        elif "result" in entry and entry["result"]["type"] == "succeeded":
            answers[name] = _recorded("anthropic", _raw(entry["result"]["message"]))
        elif entry.get("response") and entry["response"]["status_code"] == 200:
            answers[name] = _recorded("openai", _raw(entry["response"]["body"]))
    for name in requests.keys() & answers.keys():
        yield (requests[name], None, None), answers[name]


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """The entries of JSON lines; requests to Anthropic are one object over several lines."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        entry, at = decoder.raw_decode(text, at)
        yield from entry.get("requests", [entry])


def _parts(body: dict[str, Any]) -> Iterator[str]:
    """The texts and picture hashes of a body whose pictures were hashed, in order, whatever the provider's format."""

    def walk(value: Any) -> Iterator[str]:  # noqa: ANN401 -- any JSON value
        if isinstance(value, dict):
            if value.keys() == {"sha256", "length"}:
                yield value["sha256"]
            elif isinstance(value.get("text"), str):
                yield value["text"]
            else:
                yield from (found for inner in value.values() for found in walk(inner))
        elif isinstance(value, list):
            yield from (found for inner in value for found in walk(inner))

    yield from walk(body.get("messages") or body.get("contents"))


def _recorded(backend: str, raw: str) -> str:
    return json.dumps({"backend": backend, "raw": raw}, ensure_ascii=False)


def _read_recorded(raw: str) -> Answer:
    said = json.loads(raw)
    return _reader(said["backend"])(said["raw"])


def _raw(content: Any) -> str:  # noqa: ANN401 -- any JSON value
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


@functools.cache
def _reader(backend: str) -> Callable[[str], Answer]:
    """The function with which a backend parses a raw answer. Server backends are opened on a loopback address, and send nothing."""
    from rightreasons.lvlm.backends.anthropic import Anthropic
    from rightreasons.lvlm.backends.gemini import Gemini
    from rightreasons.lvlm.backends.human import read_human
    from rightreasons.lvlm.backends.local import read_local
    from rightreasons.lvlm.backends.openai import OpenAICompatible

    servers = {"openai": OpenAICompatible, "anthropic": Anthropic, "gemini": Gemini}
    if backend in servers:
        return servers[backend]("recorded", base_url="http://127.0.0.1").parse
    readers = {"local": read_local, "human": read_human, "replay": _read_recorded}
    if backend not in readers:
        known = ", ".join(sorted((*servers, *readers)))
        raise LVLMUnavailable(f"the recording has an answer of {backend!r}, which replay cannot read; it reads those of {known}: ask another model")
    return readers[backend]


def _last_words(request: Request) -> str:
    return "".join(part for part in request.parts if isinstance(part, str)).strip()[-60:]
