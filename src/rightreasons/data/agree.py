"""Checks a sample of a folder's files for all of them: one window for images of more than 8 bits, and whether masks mark anything."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from rightreasons.common.seeds import seeded
from rightreasons.config import DataConfig
from rightreasons.data.decode import Header, decode_mask, sample_values
from rightreasons.data.images import THREADS
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.window import KINDS, Kind, Window, Windows, describe_kind, guess_window
from rightreasons.errors import DataError, UnreadableImage

# At most this many files of each kind, and this many masks, are decoded.
MOST_FILES = 64
# A shortcut lies beside the object. If the median mask covers more than this share of its image, masks are probably inverted.
INVERTED_SHARE = 0.5


def agree_on_windows(
    headers: Mapping[str, Header], listing: Listing, config: DataConfig, problems: list[str]
) -> tuple[Window | Windows, dict[str, Window]]:
    """What is black and white in images of more than 8 bits that do not say so: as configured, or by kind; and the same by name, to be told.

    The sample does not depend on the run's seed, nor on splits: a folder has one window. Raises DataError if values have no known scale.
    """
    if config.window is not None:
        return config.window, {"[data] window": config.window}
    found: dict[Kind, Window] = {}
    for kind in KINDS:
        names = [name for name, header in headers.items() if header.deep == kind]
        if not names:
            continue
        some = _draw(names, kind)
        values = [one for one in _read(lambda name: sample_values(listing.open_source(name)), some) if isinstance(one, np.ndarray)]
        if not values:
            continue  # each of them is named, with the reason, when it is read
        try:
            found[kind] = guess_window(kind, values)
        except UnreadableImage as error:
            raise DataError(f"{listing.told}: {len(names)} images of {describe_kind(kind)}: of {len(values)} of them together, {error}") from error
        problems.append(_describe_guess(kind, found[kind], values, f"{len(names)} of {len(headers)}"))
    return found, {describe_kind(kind): window for kind, window in found.items()}


def check_masks(entries: Sequence[Entry], listing: Listing, problems: list[str]) -> None:
    """Notes on masks that mark nothing, all or most of their image. Raises DataError if a mask of the sample cannot be read."""
    masked = {entry.name: entry for entry in entries if entry.mask is not None}
    some = _draw(list(masked), "masks")
    read = _read(lambda name: decode_mask(listing.open_source(str(masked[name].mask))), some)
    for name, mask in zip(some, read, strict=True):
        if isinstance(mask, UnreadableImage):
            raise DataError(f"the mask {masked[name].mask} of {name}: {mask}") from mask
    shares = [
        (str(masked[name].mask), int(mask.sum()) / mask.numel()) for name, mask in zip(some, read, strict=True) if isinstance(mask, torch.Tensor)
    ]
    empty, full = ([name for name, share in shares if share == bound] for bound in (0, 1))
    problems += describe_masks(len(some), empty, full)
    middle = statistics.median(share for _, share in shares) if shares else 0
    if middle > INVERTED_SHARE:
        problems.append(
            f"the masks mark more than half of their images (the middle one of {len(shares)} looked at {middle:.0%}): are they inverted? What is "
            "not black marks the shortcut"
        )


def describe_masks(count: int, empty: Sequence[str], full: Sequence[str]) -> list[str]:
    """Sentences on masks, of ``count`` that were looked at, that mark nothing, or everything."""
    told = []
    if empty:
        told.append(f"{len(empty)} of {count} masks looked at mark nothing (such as {empty[0]}): their images count as images without a mask")
    if full:
        told.append(f"{len(full)} of {count} masks looked at mark the whole image (such as {full[0]}): see whether they are what they should be")
    return told


def _describe_guess(kind: Kind, window: Window, values: Sequence[np.ndarray], count: str) -> str:
    low, high = window
    beyond = float(np.mean([((one < low) | (one > high)).mean() for one in values]))
    alone = Counter(_guess_alone(kind, one) for one in values) if kind != "DICOM" else Counter()
    # Files of another depth, such as 10 bits among 12, are shown by the same window, and darker.
    others = "; alone, their white would be " + " or ".join(f"{white} ({n})" for white, n in sorted(alone.items())) if len(alone) > 1 else ""
    clipped = f"; {beyond:.1%} of their values lie beyond" if beyond >= 0.001 else ""
    return (
        f"{count} images are {'' if kind == 'DICOM' else 'of '}{describe_kind(kind)} and do not say what is black and what is white: "
        f"{low:g} and {high:g} are taken for all, by {len(values)} of them{clipped}{others}. [data] window = [BLACK, WHITE] says otherwise"
    )


def _guess_alone(kind: Kind, values: np.ndarray) -> str:
    try:
        return f"{guess_window(kind, [values])[1]:g}"
    except UnreadableImage:
        return "unknown"


def _draw(names: list[str], purpose: str) -> list[str]:
    order = torch.randperm(len(names), generator=seeded(0, "sample of files", purpose))[:MOST_FILES].tolist()
    return [names[place] for place in sorted(order)]


def _read(read: Callable[[str], object], names: Sequence[str]) -> list[object]:
    """For each name, the result of reading it or the UnreadableImage that it raised."""

    def attempt(name: str) -> object:
        try:
            return read(name)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(attempt, names))
