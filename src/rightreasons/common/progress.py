"""Progress for people on standard error: a bar with the remaining time on a terminal, elsewhere a line for each stage, and for each minute of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Protocol, runtime_checkable

Advance = Callable[[int, int], None]
# Seconds between two lines on how far a stage is, where there is no terminal.
TOLD_EVERY = 60.0


@runtime_checkable
class Reporter(Protocol):
    """Receives stages and notes."""

    seconds: dict[str, float]

    def stage(self, name: str) -> AbstractContextManager[Advance]:
        """A context in which the stage runs; it yields a function of (done, total) that reports progress."""
        ...

    def note(self, text: str) -> None:
        """Reports something that a person should know."""
        ...


def describe_seconds(seconds: float) -> str:
    """A length of time in the unit that suits it: "22 h", "6 min", "12 s"."""
    unit, size = next(((unit, size) for unit, size in (("h", 5400), ("min", 90)) if seconds >= size), ("s", 1))
    return f"{seconds / {'h': 3600, 'min': 60, 's': 1}[unit]:.0f} {unit}"


def _clock(seconds: int | float | None) -> str:
    return str(timedelta(seconds=int(seconds or 0)))


class Silent:
    """Records the time of each stage and the notes, and shows nothing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Times a stage."""
        start = time.perf_counter()
        yield lambda done, total: None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def note(self, text: str) -> None:
        """Keeps the note."""
        self.notes.append(text)


class Logged(Silent):
    """The default reporter of the Python functions: each note is a warning of the logger "rightreasons"."""

    def note(self, text: str) -> None:
        """Logs the note."""
        super().note(text)
        logging.getLogger("rightreasons").warning(text)


class Terminal(Silent):
    """Shows a bar per stage with the remaining time, or plain lines if standard error is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Times a stage and shows how far it is."""
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn

        class Times(ProgressColumn):
            """The elapsed time, and the remaining time once it can be estimated."""

            def render(self, task: Task) -> str:
                left = None if task.total is None else task.time_remaining
                return f"{_clock(task.elapsed)} elapsed" + ("" if left is None else f", {_clock(left)} left")

        columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[count]}"), Times())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(name, total=None, count="")
            earlier, told = self.seconds.get(name, 0.0), time.perf_counter()

            def advance(done: int, total: int) -> None:
                nonlocal told
                bar.update(task, completed=done, total=total, count=f"{done}/{total}")
                if not self._console.is_terminal and time.perf_counter() - told >= TOLD_EVERY:
                    told = time.perf_counter()
                    self._console.print(f"{name:<12} {done}/{total}, {_clock(bar.tasks[task].elapsed)} elapsed")

            with super().stage(name):
                yield advance
        self._console.print(f"{name:<12} {self.seconds[name] - earlier:8.1f} s")

    def note(self, text: str) -> None:
        """Shows the note."""
        super().note(text)
        self._console.print(f"note: {text}", markup=False, soft_wrap=True)
