"""A person as critic or judge: questions are written to a file, and the run can be resumed until they are answered.

The file has one JSON object a line: ``custom_id``, ``role``, ``question`` (with [picture 1], [picture 2] in place of pictures), ``pictures`` (files
in a folder beside it), and ``answer``, which is empty. The person writes the answer there: text, or for a judge the JSON object that the question
asks for. Then the same ``rightreasons find`` continues, or ``rightreasons lvlm import RUN FILE`` reads a copy that was filled in elsewhere. The
judge's questions appear once the critic's are answered.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from rightreasons.errors import WAITING, ConfigError
from rightreasons.lvlm.protocol import Answer, Request, Usage
from rightreasons.lvlm.wire.chat import chat_message
from rightreasons.lvlm.wire.request_key import request_key

_NO_TOKENS = Usage(0, 0)


class Human:
    """Asks by writing to ``file`` (mode 0600). A question that is in the file already is not written again."""

    simulated = False
    concurrency = (1, 1)
    address = None

    def __init__(self, file: str, root: Path = Path()) -> None:
        self.name, self._file = f"human:{file}", root / file
        self._lock = threading.Lock()
        if not self._file.parent.is_dir():
            raise ConfigError(f"[critic] lvlm = {self.name!r}: there is no folder {self._file.parent}; make it first")

    def check(self) -> None:
        """Checks that the file can be read. Raises ConfigError naming a damaged line."""
        self._entries()

    def body(self, request: Request) -> dict[str, Any]:
        """A chat with one message, and the answer's ``schema`` if it has one."""
        body = {"messages": [chat_message(request)]}
        return body if request.schema is None else body | {"schema": dict(request.schema)}

    def answer(self, request: Request) -> str:
        """What the person has written so far: an empty text for a new question."""
        key = request_key(self, request)
        with self._lock:
            entry = self._entries().get(key)
            if entry is None:
                self._append(self._entry(key, request))
                return ""
        answer = entry.get("answer") or ""
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    def parse(self, raw: str) -> Answer:
        """The person's words. An empty answer means that the person has not answered yet."""
        answer = read_human(raw)
        return answer if answer.problem is None else Answer("", problem=f"{WAITING}: write the answer into {self._file}", outcome="unknown")

    def close(self) -> None:
        """Nothing is connected."""

    def count_waiting(self) -> tuple[int, Path]:
        """How many questions in the file have no answer yet, and the file."""
        return sum(not entry.get("answer") for entry in self._entries().values()), self._file

    def _entries(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        entries = {}
        for number, line in enumerate(self._file.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                    entries[entry["custom_id"]] = entry
                except (ValueError, LookupError, TypeError) as error:
                    raise ConfigError(
                        f"{self._file}, line {number}: {error!r}; expected a JSON object with custom_id and answer on one line"
                    ) from error
        return entries

    def _entry(self, key: str, request: Request) -> dict[str, Any]:
        """The question's entry in the file. Writes its pictures beside the file."""
        folder = self._file.with_name(f"{self._file.stem}-pictures")
        words, pictures = [], []
        for part in request.parts:
            if isinstance(part, str):
                words.append(part)
                continue
            path = folder / f"{key[:16]}-{len(pictures) + 1}.png"
            folder.mkdir(mode=0o700, exist_ok=True)
            _write(path, part, os.O_TRUNC)
            pictures.append(str(path.relative_to(self._file.parent)))
            words.append(f"[picture {len(pictures)}]")
        entry = {"custom_id": key, "role": request.role, "question": "\n".join(words), "pictures": pictures}
        return entry | ({} if request.schema is None else {"schema": dict(request.schema)}) | {"answer": ""}

    def _append(self, entry: dict[str, Any]) -> None:
        ends_cleanly = not self._file.exists() or self._file.read_bytes()[-1:] in (b"", b"\n")  # an editor may leave out the last newline
        _write(self._file, ("" if ends_cleanly else "\n").encode() + json.dumps(entry, ensure_ascii=False).encode() + b"\n", os.O_APPEND)


def read_human(raw: str) -> Answer:
    """Parses a person's raw answer."""
    return Answer(raw, usage=_NO_TOKENS) if raw.strip() else Answer("", problem="nobody has answered", outcome="unknown")


def _write(path: Path, content: bytes, how: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb") as file:
        file.write(content)
