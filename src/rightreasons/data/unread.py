"""The files of a folder that are not read, by kind: counted, so that nothing is passed over without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rightreasons.data.beside import MASK, THUMBNAIL, kind_by_suffix
from rightreasons.data.formats.rows import MARK
from rightreasons.data.listing import Listing
from rightreasons.data.tree import Tree

HIDDEN = "hidden files and folders"
_KINDS = {MASK: "masks and other drawings on images", THUMBNAIL: "thumbnails", "images": "images that no class and no row has"}


def list_unread(tree: Tree, listing: Listing) -> dict[str, list[str]]:
    """The files below ``tree`` that the listing has not read, by kind; the most numerous kind comes first. Links are in ``left_out`` already."""
    read = {*listing.read, *listing.left_out}
    for entry in listing.entries:
        read.add(entry.name.partition(MARK)[0] if MARK in entry.name and entry.name not in tree.files else entry.name)
        if entry.mask is not None:
            read.add(entry.mask)
    found: dict[str, list[str]] = {}
    for name in tree.files:
        if name not in read:
            kind = tree.beside.get(name) or ("images" if name in tree.unnamed else kind_by_suffix(name)) or "other files"
            found.setdefault(_KINDS.get(kind, kind), []).append(name)
    if tree.hidden:
        found[HIDDEN] = list(tree.hidden)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def describe_unread(unread: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence on what is not read, or none; masks come with the way to name them."""
    if not unread:
        return []
    parts = [f"{len(names)} {kind} (such as {names[0]})" for kind, names in unread.items()]
    hint = "; masks of the shortcut can be named in a table with the columns filename, label and mask" if _KINDS[MASK] in unread else ""
    return [f"not read: {', '.join(parts)}{hint}"]
