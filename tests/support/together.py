"""A function in several processes with the environment that torchrun gives them, quickly: they are forked from one that has loaded the package."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 300


class Ended(NamedTuple):
    """How a process ended, and what it has written."""

    code: int | None
    output: str


def run_together(function: Callable, *arguments: object, size: int, folder: Path) -> list[Ended]:
    """``function(*arguments)`` in ``size`` processes at once; one is started without torchrun's environment. ``folder`` takes their outputs."""
    context, port = multiprocessing.get_context("forkserver"), _free_port()
    context.set_forkserver_preload(["rightreasons.cli.commands", "rightreasons.pipeline.results", "tests.support.together"])
    outputs = [folder / f"output-{size}-{rank}.txt" for rank in range(size)]
    parts = [context.Process(target=_call, args=(function, arguments, rank, size, port, outputs[rank])) for rank in range(size)]
    for process in parts:
        process.start()
    for process in parts:
        process.join(SECONDS)
        process.kill()  # nothing happens to one that has ended
        process.join()
    return [Ended(process.exitcode, output.read_text()) for process, output in zip(parts, outputs, strict=True)]


def invoke_alone(*arguments: str, batch: int) -> None:
    """The command, with at most ``batch`` images in a batch that nobody has chosen, so that a small set has several."""
    from rightreasons.cli import app
    from rightreasons.data import loading

    loading.LARGEST_BATCH = batch
    app(list(arguments))


def _call(function: Callable, arguments: tuple, rank: int, size: int, port: int, output: Path) -> None:
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
    os.environ |= {"OMP_NUM_THREADS": "1", "RIGHTREASONS_DEVICE": "cpu"}
    if size > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"} | {name: str(value) for name, value in numbers.items()}
    function(*arguments)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
