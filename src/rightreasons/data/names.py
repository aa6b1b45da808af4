"""The names of images: where they lie in a folder, or their number where they lie in none; and an image found by what somebody calls it."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence

from torch.utils.data import Dataset, Subset

# What an image without a file is called, by its number.
_NUMBERED = re.compile(r"rightreasons-(\d{6,})\.png")
# Label Studio puts this before the name of a file that was uploaded.
_UPLOADED = re.compile(r"[0-9a-f]{8}-")


def list_names(dataset: Dataset) -> list[str]:
    """The name of each image: its path below the folder of the data, with "/"; or "rightreasons-000012.png" where images are not in files."""
    if isinstance(dataset, Subset):
        names = list_names(dataset.dataset)
        return [names[index] for index in dataset.indices]
    entries = getattr(dataset, "entries", None)
    count: int = len(dataset)  # pyright: ignore[reportArgumentType] -- datasets here have a length
    return [entry.name for entry in entries] if entries is not None else [name_number(index) for index in range(count)]


def name_number(index: int) -> str:
    """The name of an image that is in no file."""
    return f"rightreasons-{index:06d}.png"


def read_number(name: str) -> int | None:
    """The number in a name that ``name_number`` made; None for any other name."""
    found = _NUMBERED.fullmatch(posixpath.basename(name))
    return int(found[1]) if found else None


class Names:
    """Finds images by the names that people and programs give them: the whole path, or an end of it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._by_file: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            self._by_file[posixpath.basename(name)].append(index)

    def find(self, said: str) -> list[int]:
        """The images whose path ends in ``said``, or in whose path ``said`` ends, as a longer path to the same file does.

        A file's name alone, in another folder, does not count: two splits may have a file of that name each. One that was uploaded to Label
        Studio has no folder left.
        """
        said = said.replace("\\", "/").strip("/")
        name = posixpath.basename(said)
        same = self._by_file.get(name, [])
        if not same and _UPLOADED.match(name):
            return self._by_file.get(name[9:], [])
        fits = (lambda whole: whole == said, lambda whole: whole.endswith(f"/{said}"), lambda whole: said.endswith(f"/{whole}"))
        return next((found for fit in fits if (found := [index for index in same if fit(self._names[index])])), [])
