"""Images handed out to threads, and their results in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rightreasons.common.progress import Advance
from rightreasons.errors import LVLMError, LVLMUnavailable

T = TypeVar("T")
Item = TypeVar("Item")


def map_in_order(
    function: Callable[[Item], T], items: Sequence[Item], *, workers: int, advance: Advance, stop: Callable[[LVLMError], None] | None = None
) -> list[T]:
    """The results in the order of ``items``, whatever order they finish in. The first error, in time, keeps what has not started from starting.

    ``stop`` is told of it, so that what has started asks for nothing new; its last requests are waited for, but not by whoever pressed Ctrl-C.
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
