"""The most memory that this process holds during a piece of work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Seconds between two looks at the memory that is held.
EVERY = 0.05
_STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """In bytes: ``resident`` is the process's memory, None where the system does not tell it; ``gpu`` is torch's on CUDA, None without it."""

    resident: int | None = None
    gpu: int | None = None


@contextmanager
def measure_peak() -> Iterator[Peak]:
    """Fills the yielded record when the work ends, also when it fails.

    Where the process's own record (Linux's VmHWM) was broken meanwhile, the peak is exact; else it is the highest of looks every ``EVERY`` seconds.
    The kernel's record is not reset, since others may read it.
    """
    peak, done = Peak(), threading.Event()
    highest, before = _held("VmRSS"), _held("VmHWM")

    def watch() -> None:
        nonlocal highest
        while not done.wait(EVERY):
            highest = max(highest, _held("VmRSS"))

    thread = threading.Thread(target=watch, daemon=True)
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    if highest:
        thread.start()
    try:
        yield peak
    finally:
        done.set()
        if highest:
            thread.join()
            after = _held("VmHWM")
            peak.resident = after if after > before else max(highest, _held("VmRSS"))
        cuda = cuda or _cuda()
        if cuda is not None:
            peak.gpu = cuda.max_memory_allocated()


def _held(key: str) -> int:
    """A line of the process's status in bytes; 0 where the system has none."""
    try:
        words = _STATUS.read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in words.splitlines() if line.startswith(f"{key}:")), 0)


def _cuda():  # noqa: ANN202 -- torch.cuda, if the work has loaded it and uses it: this file works without torch
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
