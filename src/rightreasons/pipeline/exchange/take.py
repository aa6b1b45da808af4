"""Takes marks that people made in COCO, Label Studio or CVAT into a run: a mark that names a segment is a verdict, any other a drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.common.text import clean_text
from rightreasons.data import open_data
from rightreasons.data.annotations.read import read_annotations
from rightreasons.data.annotations.region import Region, check_upright
from rightreasons.data.loading import own_size
from rightreasons.data.mask_files import shrink_mask
from rightreasons.data.names import Names, list_names, read_number
from rightreasons.errors import ConfigError, DataError
from rightreasons.records import VALUES, Drawing, Segmentation, Value, Verdict
from rightreasons.runs.appended import now, read_name
from rightreasons.runs.deciding import decide
from rightreasons.runs.drawings import add_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import read_segment, read_value

# What a label may stand for: a verdict, or nothing.
SKIP = "skip"
# A mark that names a segment is a verdict on it if the two overlap by at least this share of both together; else somebody has redrawn it.
SAME = 0.5


@dataclass(frozen=True)
class Taken:
    """What an import has appended, the ``format`` of its file, and why how many marks were left out."""

    format: str
    verdicts: list[Verdict] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_labels(assignments: Sequence[str]) -> dict[str, Value | None]:
    """``["ruler=spurious"]`` as the verdict that each label stands for, None for one that is skipped. Raises ConfigError for another form."""
    labels: dict[str, Value | None] = {}
    for text in assignments:
        label, equals, value = text.rpartition("=")
        try:
            labels[label] = None if value.strip().lower() == SKIP else read_value(value)
        except ValueError as error:
            raise ConfigError(f"--label {text!r}: {error}, or {SKIP}") from error
        if not equals or not label.strip():
            raise ConfigError(f"--label {text!r}: LABEL=VALUE was expected, such as --label ruler=spurious")
    return labels


def import_annotations(folder: RunFolder, path: Path, *, by: str, labels: Mapping[str, Value | None]) -> Taken:
    """Reads the marks in a file and appends verdicts and drawings, with the person's name, the time and the file.

    All marks are checked before anything is written.

    ``labels`` has the verdict that each label of the file stands for; spurious, relevant and unsure stand for themselves. A drawing takes the
    place of an earlier one on the same image.
    Raises ConfigError for a run without verdicts, and DataError for a file, a label or a mark that cannot be used.
    """
    name = read_name(by)
    segmentation, selection, counts = folder.load_segmentation(), folder.load_selection(), folder.segment_counts()
    if segmentation is None or selection is None or counts is None or folder.load_verdicts() is None:
        raise ConfigError(f"{folder.path} has no verdicts yet: run `rightreasons find` with the same --out to its end first")
    found = read_annotations(path)
    values: dict[str, Value | None] = {region.label: _read_value(region, labels, path) for region in found.regions}
    places, train = _find_images(folder, found.regions, path)

    def size_of(index: int) -> tuple[int, int] | None:
        return None if train is None else own_size(train, index)

    sorter = _Sorter(segmentation, {index: row for row, index in enumerate(selection.indices.tolist())}, counts, size_of)
    for region in found.regions:
        try:
            sorter.add(region, values[region.label], places[region.image])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{path}, {region.where}, image {region.image}: {error}") from error
    if not sorter.decisions and not sorter.painted and not sorter.erased:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorter.left_out.items()) or "it has no marks"
        raise DataError(
            f"{path} has nothing for this run ({why}). Marks on its {len(counts)} inspected images are taken, by the names of their files"
        )
    origin, at = f"{found.format}: {clean_text(path.name)}", now()
    verdicts: list[tuple[int, int, Value]] = [(index, segment, value) for (index, segment), value in sorter.decisions.items()]
    drawings = [replace(drawing, by=name, at=at, origin=origin) for drawing in sorter.drawings()]
    given = decide(folder, verdicts, by=name, origin=origin) if verdicts else []
    if drawings:
        add_drawings(folder, drawings)
    return Taken(found.format, given, drawings, dict(sorter.left_out))


def _read_value(region: Region, labels: Mapping[str, Value | None], path: Path) -> Value | None:
    """What the label of a mark stands for; None for nothing. Raises DataError if nobody said it."""
    known: dict[str, Value | None] = {value: value for value in VALUES}
    known |= {label.casefold(): value for label, value in labels.items()}
    if region.label.casefold() in known:
        return known[region.label.casefold()]
    if region.draw is None and region.segment is None:
        return None
    raise DataError(
        f"{path}, {region.where}: nobody knows what the label {clean_text(region.label)!r} stands for. Say it, such as "
        f"--label '{clean_text(region.label)}=spurious' (or relevant, unsure, {SKIP})"
    )


def _find_images(folder: RunFolder, regions: Sequence[Region], path: Path) -> tuple[dict[str, int | None], Dataset | None]:
    """The training image of each name in the file, or None; and the training images, opened only if a name is not one given by number here."""
    names = dict.fromkeys(region.image for region in regions)
    places: dict[str, int | None] = {name: read_number(name) for name in names}
    if all(place is not None for place in places.values()):
        return places, None
    config = folder.config()
    train = open_data(config.data, root=folder.root(), seed=config.run.seed).splits["train"]
    known = Names(list_names(train))
    for name in names:
        found = known.find(name)
        if len(found) > 1:
            raise DataError(f"{path}: {len(found)} training images are called {clean_text(name)!r}: the file has to give more of their paths")
        places[name] = found[0] if found else places[name]
    return places, train


class _Sorter:
    """Sorts marks into verdicts on segments and pixels that are spurious or not, by image; ``size_of`` gives (height, width) of an image's file."""

    def __init__(
        self, segmentation: Segmentation, row_of: Mapping[int, int], counts: Mapping[int, int], size_of: Callable[[int], tuple[int, int] | None]
    ) -> None:
        self.segmentation, self.row_of, self.counts, self.size_of = segmentation, row_of, counts, size_of
        self.decisions: dict[tuple[int, int], Value] = {}
        self.painted: dict[int, Tensor] = {}
        self.erased: dict[int, Tensor] = {}
        self.left_out: Counter[str] = Counter()

    def add(self, region: Region, value: Value | None, index: int | None) -> None:
        """Takes one mark. Raises ValueError for pixels that are none, or for two verdicts on one segment."""
        if value is None:
            self.left_out["a label that is skipped"] += 1
        elif index is None or index not in self.row_of:
            self.left_out["an image that the run did not inspect"] += 1
        elif region.draw is None:
            self._decide(index, region, value)
        else:
            self._take_pixels(index, region, value)

    def drawings(self) -> list[Drawing]:
        """One drawing for each image with marks; who made it, and when, is filled in later."""
        nothing = torch.zeros(self.segmentation.segments.shape[1:], dtype=torch.bool)
        images = dict.fromkeys([*self.painted, *self.erased])
        return [Drawing(index, self.painted.get(index, nothing), self.erased.get(index, nothing), "", "") for index in images]

    def _decide(self, index: int, region: Region, value: Value) -> None:
        segment = self._named_segment(index, region)
        if segment is None:
            self.left_out["a mark without an area that names no segment"] += 1
            return
        if self.decisions.setdefault((index, segment), value) != value:
            raise ValueError(f"S{segment + 1} is called both {self.decisions[index, segment]} and {value}; expected one verdict")

    def _named_segment(self, index: int, region: Region) -> int | None:
        try:
            segment = read_segment(region.segment or "")
        except ValueError:
            return None
        return segment if segment < self.counts[index] else None

    def _take_pixels(self, index: int, region: Region, value: Value) -> None:
        assert region.draw is not None  # it has an area
        size = (self.segmentation.segments.shape[1], self.segmentation.segments.shape[2])
        whole = region.draw()
        check_upright((whole.shape[0], whole.shape[1]), self.size_of(index))
        mask = whole if tuple(whole.shape) == size else shrink_mask(whole, size)
        segment = self._named_segment(index, region)
        if segment is not None and self._is_segment(mask, self.row_of[index], segment):
            self._decide(index, region, value)
        elif value == "unsure":
            self.left_out["pixels that are called unsure"] += 1
        elif not mask.any():
            self.left_out["a mark without a pixel"] += 1
        else:
            marked = self.painted if value == "spurious" else self.erased
            marked[index] = marked[index] | mask if index in marked else mask

    def _is_segment(self, mask: Bool[Tensor, "height width"], row: int, segment: int) -> bool:
        own = self.segmentation.segments[row] == segment
        # What is exported is the part with the effect; a person may as well mark all of it.
        return any(
            bool((mask & part).sum() >= SAME * (mask | part).sum()) and bool(part.any()) for part in (own & self.segmentation.effect[row], own)
        )
