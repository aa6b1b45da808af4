"""A function mapped over items in threads, with the results in order; and how many processes torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rightreasons.common.progress import Advance
from rightreasons.errors import LVLMError, LVLMUnavailable

T = TypeVar("T")
Item = TypeVar("Item")


def launched() -> int:
    """How many processes torchrun has started to work on one run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_main() -> bool:
    """Whether this is the process that runs the command: the only one, or the first that torchrun has started."""
    return launched() == 1 or os.environ.get("RANK") == "0"


def map_in_order(
    function: Callable[[Item], T], items: Sequence[Item], *, workers: int, advance: Advance, stop: Callable[[LVLMError], None] | None = None
) -> list[T]:
    """The results in the order of ``items``, in whatever order they finish. After the first error no further item is started.

    ``stop`` is called then, so that items under way send nothing new. Their last requests are waited for, except after Ctrl-C.
    """
    advance(0, len(items))
    pool = ThreadPoolExecutor(workers)
    futures = [pool.submit(function, item) for item in items]
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            advance(done, len(items))
    except BaseException as error:
        if stop is not None:
            stop(LVLMUnavailable("the run is stopping"))
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()
    return [future.result() for future in futures]
