"""A function mapped over items in threads, with the results in order."""

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
