"""drawings.jsonl: pixels that people marked by hand where no segment fits, as lengths of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from rightreasons.data.annotations.run_lengths import from_runs, to_runs
from rightreasons.records import Drawing
from rightreasons.runs.appended import append_lines, read_lines
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import check_segment


def add_drawing(folder: RunFolder, drawing: Drawing) -> None:
    """Appends a drawing as one line; it is on the disk when this returns. Raises ValueError for an image that the run did not inspect."""
    add_drawings(folder, [drawing])


def add_drawings(folder: RunFolder, drawings: Sequence[Drawing]) -> None:
    """Appends drawings in one write, one a line. Raises ValueError for an image that the run did not inspect; then nothing is written."""
    inspected = dict.fromkeys(folder.segment_counts() or {}, 1)
    for drawing in drawings:
        check_segment(drawing.index, 0, inspected)
    append_lines(folder.path / "drawings.jsonl", [_write_line(drawing) for drawing in drawings])


def _write_line(drawing: Drawing) -> dict[str, Any]:
    runs = {"painted": encode_mask(drawing.painted), "erased": encode_mask(drawing.erased)}
    origin = {} if drawing.origin is None else {"origin": drawing.origin}
    return {"index": drawing.index, **runs, "by": drawing.by, "at": drawing.at, **origin}


def load_drawings(folder: RunFolder) -> list[Drawing]:
    """Every drawing in the order in which people drew; none before anybody did. Raises ConfigError naming a line that is none."""
    path = folder.path / "drawings.jsonl"
    size = folder.image_size() if path.exists() else (0, 0)

    def read(said: dict[str, Any]) -> Drawing:
        painted, erased = (decode_mask(said[key], size) for key in ("painted", "erased"))
        origin = said.get("origin")
        return Drawing(int(said["index"]), painted, erased, str(said["by"]), str(said["at"]), None if origin is None else str(origin))

    return read_lines(path, read)


def encode_mask(mask: Bool[Tensor, "height width"]) -> list[int]:
    """The lengths of runs of unmarked and marked pixels in turn, row by row; the first is of unmarked pixels, and may be 0."""
    return to_runs(mask.flatten())


def decode_mask(lengths: object, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The mask of (height, width) pixels that ``encode_mask`` gave. Raises ValueError for lengths that do not cover it."""
    return from_runs(lengths, size).view(size)
