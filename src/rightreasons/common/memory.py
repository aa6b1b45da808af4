"""The one place where work is cut to a share of memory: how many items, or pixels, are held at once follows from their bytes."""

from __future__ import annotations

import ctypes
import platform

# Pixels of a batch of images as float32, where the caller has not chosen a batch size. A network's activations are some ten times that.
BATCH_BYTES = 2**26
LARGEST_BATCH = 256
# Temporary arrays of a computation on pixels, such as a segmentation's.
WORKING_BYTES = 2**28
# Images that are kept in memory because they may be read again in any order, and random ones that are used as one batch.
KEPT_IMAGE_BYTES = 2**28
DRAWN_IMAGE_BYTES = 2**30


def release_memory() -> None:
    """Gives what was freed back to the system. glibc keeps it for the next stage, whose blocks may be too large for what is left."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def how_many(bytes_each: int, budget: int, most: int = 2**62) -> int:
    """As many items as ``budget`` bytes hold, at most ``most``; one at least, however large it is."""
    return max(1, min(most, budget // max(bytes_each, 1)))
