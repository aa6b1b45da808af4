"""The limits on memory: how many items or pixels are held at once follows from their bytes."""

from __future__ import annotations

import ctypes
import platform

# The bytes of a batch of images as float32, if the caller has not chosen a batch size. A network's activations take about ten times as many.
BATCH_BYTES = 2**26
LARGEST_BATCH = 256
# The bytes of temporary arrays in a computation on pixels, such as a segmentation.
WORKING_BYTES = 2**28
# The bytes of images kept in memory because they may be read again in any order, and of random images that are used as one batch.
KEPT_IMAGE_BYTES = 2**28
DRAWN_IMAGE_BYTES = 2**30


def release_memory() -> None:
    """Gives freed memory back to the system. glibc would keep it, and the next stage's larger blocks may not fit into it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def how_many(bytes_each: int, budget: int, most: int = 2**62) -> int:
    """How many items fit into ``budget`` bytes: at most ``most``, and at least one, however large it is."""
    return max(1, min(most, budget // max(bytes_each, 1)))
