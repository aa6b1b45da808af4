"""Requests and answers in the file formats of providers' batch services, for machines that may not send: a person carries the files.

OpenAI: one JSON object a line, {"custom_id", "method", "url", "body"}, answered by {"custom_id", "response": {"status_code", "body"}, "error"}.
Anthropic: {"requests": [{"custom_id", "params"}, ...]}, answered by one line {"custom_id", "result": {"type", "message"}} for each.
A ``custom_id`` is the ledger's key of the request: a hash, which names no file and no patient.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rightreasons.errors import ConfigError, LVLMError, LVLMTooBig
from rightreasons.lvlm.backends import BACKENDS, kind_of
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.pipeline.questions.open_questions import Desk, Plan, Question


@dataclass(frozen=True)
class Limits:
    """How many requests and bytes a provider accepts in one file."""

    requests: int
    bytes: int


# The limits that providers published in 2026. A megabyte is read as a million bytes, the smaller meaning.
LIMITS = {"openai": Limits(50_000, 200_000_000), "anthropic": Limits(100_000, 256_000_000)}
_FRAMES = {"openai": (b"", b"\n", b"\n"), "anthropic": (b'{"requests": [\n', b",\n", b"\n]}\n")}


@dataclass
class Imported:
    """What became of the lines of a file. ``recorded`` counts new answers; ``no_answer`` counts those of them that are refusals or cut off."""

    recorded: int = 0
    no_answer: int = 0
    already: int = 0
    duplicate: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def export_requests(questions: Iterable[Question], ledger: Ledger, to: Path, *, limits: dict[str, Limits] = LIMITS) -> list[Path]:
    """Writes the requests to ``to``, or to numbered files beside it if a provider's limits or several models require more than one.

    Raises ConfigError for a backend without a batch service, or if a file exists already.
    """
    taken = [path for path in (to, *to.parent.glob(f"{to.stem}-[0-9][0-9][0-9]{to.suffix}")) if path.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists already: choose another --to, or delete it")
    open_files: dict[str, _Part] = {}
    done: list[_Part] = []
    seen: set[str] = set()
    try:
        for question in questions:
            key, name = ledger.key(question.lvlm, question.request), question.lvlm.name
            if key in seen:
                continue
            seen.add(key)
            style = _style(name)
            line = _request_line(style, key, question.lvlm.body(ledger.shape(key, question.request)))
            part = open_files.get(name)
            if part is None or not part.has_room(line, limits[style]):
                part = open_files[name] = _Part(to, len(done), style)
                done.append(part)
                if not part.has_room(line, limits[style]):
                    raise LVLMTooBig(f"a single request has {len(line):,} bytes, and a file may have {limits[style].bytes:,}: use smaller images")
            part.write(line)
        for part in done:
            part.close()
    except BaseException:
        for part in done:
            part.discard()
        raise
    paths = [to] if len(done) == 1 else [to.with_name(f"{to.stem}-{number:03d}{to.suffix}") for number in range(1, len(done) + 1)]
    for part, path in zip(done, paths, strict=True):
        part.path.replace(path)
    return paths


def export_answers(ledger: Path, to: Path) -> int:
    """Writes every stored answer as a line of batch output, for another person's ``lvlm import``. Returns their number."""
    if to.exists():
        raise ConfigError(f"{to} exists already: choose another --to, or delete it")
    count = 0
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection, _private(to) as file:
        for key, model, raw in connection.execute("SELECT key, model, raw FROM attempts WHERE state = 'answered' ORDER BY id"):
            content = _json_or_text(raw)
            if _batch_of(model) == "anthropic":
                result: dict[str, Any] = {"result": {"type": "succeeded", "message": content}}
            else:
                result = {"response": {"status_code": 200, "body": content}}
            file.write(json.dumps({"custom_id": key, **result}, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def import_answers(plan: Plan, ledger: Ledger, file: Path) -> Imported:
    """Records every answer in ``file`` that a question of the run waits for; importing the same file again changes nothing.

    The judge's questions exist only once the critic's are answered, so each image is asked again until the file has no further answer for it.
    """
    counts = Imported()
    answers = dict(read_answers(file, counts))
    unused = set(answers)
    for case in plan.all_cases():
        while True:
            desk = Desk(ledger)
            plan.consult(case, desk)
            asked = {ledger.key(question.lvlm, question.request): question for question in (*desk.open, *desk.unsettled)}
            news = [key for key in asked if key in unused and not ledger.holds(key, answers[key])]
            for key in news:
                unused.discard(key)
                _record(ledger, asked[key], key, answers[key], counts)
            if not news:
                break
        known = {ledger.key(question.lvlm, question.request) for question in (*desk.answered, *desk.unsettled, *desk.open)} & unused
        counts.already += len(known)
        unused -= known
    counts.unknown += sorted(unused)
    return counts


def read_answers(file: Path, counts: Imported) -> Iterator[tuple[str, str]]:
    """Custom IDs and raw answers; lines without an answer are noted in ``counts``. Raises ConfigError for a file that cannot be read."""
    seen: set[str] = set()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the answers {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key, raw, failure = _read_entry(entry)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            counts.malformed.append(f"line {number}: {error!r}")
            continue
        if key in seen:
            counts.duplicate.append(key)
        elif failure is not None:
            counts.failed.append(f"{key}: {failure}")
        else:
            seen.add(key)
            yield key, raw


def _read_entry(entry: dict[str, Any]) -> tuple[str, str, str | None]:
    """Custom ID, raw answer, and the reason if there is none. Raises LookupError, TypeError or the like for an entry of an unknown form."""
    key = entry["custom_id"]
    if not isinstance(key, str):
        raise TypeError("custom_id is not text")
    if "result" in entry:
        result = entry["result"]
        if result["type"] == "succeeded":
            return key, _raw(result["message"]), None
        return key, "", f"{result['type']} {json.dumps(result.get('error', ''))[:200]}"
    if "answer" in entry:
        return (key, _raw(entry["answer"]), None) if entry["answer"] else (key, "", "not answered yet")
    if entry.get("error"):
        return key, "", json.dumps(entry["error"])[:200]
    response = entry["response"]
    if response["status_code"] != 200:
        return key, "", f"status {response['status_code']} {json.dumps(response.get('body'))[:200]}"
    return key, _raw(response["body"]), None


def _record(ledger: Ledger, question: Question, key: str, raw: str, counts: Imported) -> None:
    try:
        question.lvlm.parse(raw)
    except LVLMError as error:
        counts.malformed.append(f"{key}: {error}")
        return
    answer = ledger.record(question.lvlm, question.request, raw)
    counts.recorded += 1
    counts.no_answer += answer.problem is not None


class _Part:
    """One file being written: mode 0600, and under a temporary name until all files are complete."""

    def __init__(self, to: Path, number: int, style: str) -> None:
        self.path = to.with_name(f".{to.name}.{number}.{os.getpid()}.part")
        self._head, self._between, self._foot = _FRAMES[style]
        self._file = _private(self.path)
        self._file.write(self._head)
        self._lines, self._bytes = 0, len(self._head) + len(self._foot)

    def has_room(self, line: bytes, limits: Limits) -> bool:
        return self._lines < limits.requests and self._bytes + len(line) + len(self._between) <= limits.bytes

    def write(self, line: bytes) -> None:
        written = line if self._lines == 0 else self._between + line
        self._file.write(written)
        self._lines, self._bytes = self._lines + 1, self._bytes + len(written)

    def close(self) -> None:
        self._file.write(self._foot)
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _style(lvlm_name: str) -> str:
    style = _batch_of(lvlm_name)
    if style is None:
        expected = " or ".join(backend.form for backend in BACKENDS.values() if backend.batch)
        raise ConfigError(f"{lvlm_name!r} has no batch service with a known format; expected {expected}")
    return style


def _batch_of(lvlm_name: str) -> str | None:
    """The format of a backend's batch files; None if it has none."""
    kind = kind_of(lvlm_name)
    return BACKENDS[kind].batch if kind in BACKENDS else None


def _request_line(style: str, key: str, body: dict[str, Any]) -> bytes:
    entry = (
        {"custom_id": key, "params": body}
        if style == "anthropic"
        else {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
    )
    return json.dumps(entry, ensure_ascii=False).encode()


def _raw(content: Any) -> str:  # noqa: ANN401 -- any JSON value
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _json_or_text(raw: str) -> Any:  # noqa: ANN401 -- any JSON value
    try:
        content = json.loads(raw)
    except ValueError:
        return raw
    # A bare JSON string would lose its quotes when it is imported again.
    return content if isinstance(content, dict) else raw
