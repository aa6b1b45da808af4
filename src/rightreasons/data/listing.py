"""What every format is read into: a listing of images by name, with what the folder says of each. No image is opened for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

# A file that can be opened, or the bytes of one.
Source = Path | BytesIO


@dataclass(frozen=True, slots=True)
class Entry:
    """One image. ``name`` is its path below the folder, or its place in a file of many; ``bytes`` how long it is, where that is known.

    ``label`` and ``split`` are as the data have them. ``attribute``, ``attributes`` and ``mask`` are ground truth of the shortcut, and for scoring
    alone. ``patient`` is whose images stay in one split.
    """

    name: str
    label: str
    split: str | None = None
    patient: str | None = None
    attribute: str | None = None
    attributes: tuple[str, ...] = ()
    mask: str | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Listing:
    """A folder as its format reads it.

    ``told`` says by what it was recognised; ``open_source`` gives the file of an entry's name, or of its mask's. ``classes`` is the order of the
    labels where the format has one, ``names`` what its labels are called; ``carries`` the attribute that is the shortcut, where only one of
    them is. ``problems`` are sentences about the whole, ``left_out`` the files that are not read, and why; ``read`` names the files other than
    images that were read. ``inner`` has the folders between an image and its class, where folders are classes.
    """

    format: str
    told: str
    entries: Sequence[Entry]
    open_source: Callable[[str], Source]
    classes: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    carries: str | None = None
    other_attributes: tuple[str, ...] = ()
    problems: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    read: frozenset[str] = frozenset()
    inner: Sequence[str] | None = None
