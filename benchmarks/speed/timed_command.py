"""Runs one command of the package that Python finds first, and writes how long each stage took as JSON: [clock, processor] in seconds.

"start" is what came before the first stage, imports above all, and "between" what no stage has. ``stages.py`` calls it for each checkout.

    PYTHONPATH=CHECKOUT/src python benchmarks/speed/timed_command.py stages.json find config.toml --out run
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FIRST = time.perf_counter(), time.process_time()


def main() -> None:
    target, *sys.argv[1:] = sys.argv[1:]
    from rightreasons.cli import app
    from rightreasons.common.progress import Terminal

    stages: dict[str, list[float]] = {"start": [0.0, 0.0]}
    original = Terminal.stage
    told: list[float] = []

    @contextmanager
    def stage(self: Terminal, name: str) -> Iterator[Any]:
        clock, processor = time.perf_counter(), time.process_time()
        if not told:
            told.append(clock)
            stages["start"] = [clock - FIRST[0], processor]
        try:
            with original(self, name) as advance:
                yield advance
        finally:
            earlier = stages.get(name, [0.0, 0.0])
            stages[name] = [earlier[0] + time.perf_counter() - clock, earlier[1] + time.process_time() - processor]

    Terminal.stage = stage
    try:
        app()
    except SystemExit as end:
        if end.code:
            raise
    whole = [time.perf_counter() - FIRST[0], time.process_time()]
    stages["between"] = [total - sum(seconds[part] for seconds in stages.values()) for part, total in enumerate(whole)]
    Path(target).write_text(json.dumps(stages) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
