"""A backend that answers from a script and remembers its requests: for tests, and for trying out prompts without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm.protocol import Answer, Request


class Scripted:
    """Answers with ``reply(request)``; ``history`` has every request that was sent."""

    simulated = False
    concurrency = (1, 1)
    address = None

    def __init__(self, reply: Callable[[Request], str], name: str = "scripted:", *, keeps_pictures: bool = True) -> None:
        self.name, self._reply, self._keeps_pictures = name, reply, keeps_pictures
        self.history: list[Request] = []

    @classmethod
    def from_file(cls, path: str, root: Path = Path()) -> Scripted:
        """Reads a JSON file ``{"critic": [...], "judge": [...]}`` or ``{"fused": [...]}``: answers for each role in order, the last one repeated.

        A list ``close-up`` may be there as well. A control gets the critic's last answer, and uses none up.
        """
        try:
            script = json.loads((root / path).read_text(encoding="utf-8"))
            roles = (("fused",) if "fused" in script else ("critic", "judge")) + (("close-up",) if "close-up" in script else ())
            answers = {role: list(script[role]) for role in roles}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"[critic] lvlm = 'scripted:{path}': {error}; expected a JSON file with the lists critic and judge, or fused"
            ) from error

        def reply(request: Request) -> str:
            role = request.role if request.role != "control" else "fused" if "fused" in answers else "critic"
            queue = answers.get(role)
            if not queue:
                raise LVLMUnavailable(f"scripted:{path} has no answer for the {role}")
            if request.role == "control":
                return str(queue[-1])
            return str(queue.pop(0) if len(queue) > 1 else queue[0])

        return cls(reply, f"scripted:{path}", keeps_pictures=False)

    def check(self) -> None:
        """Always available."""

    def body(self, request: Request) -> dict[str, Any]:
        """The role, the texts, and the image's index."""
        return {
            "role": request.role,
            "texts": [part for part in request.parts if isinstance(part, str)],
            "index": getattr(request.subject, "index", None),
        }

    def answer(self, request: Request) -> str:
        """The script's next answer."""
        texts = tuple(part for part in request.parts if isinstance(part, str))
        # A run from a file may have thousands of large images, so its history leaves the pictures out.
        self.history.append(request if self._keeps_pictures else replace(request, parts=texts, subject=None))
        return self._reply(request)

    def parse(self, raw: str) -> Answer:
        """The raw answer is the text."""
        return Answer(raw)

    def close(self) -> None:
        """Nothing is connected."""
