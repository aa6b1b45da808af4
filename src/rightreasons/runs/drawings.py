"""drawings.jsonl: pixels that people marked by hand where no segment fits, as lengths of runs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.records import Drawing
from rightreasons.runs.appended import append_lines, read_lines
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import check_segment


def add_drawing(folder: RunFolder, drawing: Drawing) -> None:
    """Appends a drawing as one line; it is on the disk when this returns. Raises ValueError for an image that the run did not inspect."""
    check_segment(drawing.index, 0, dict.fromkeys(folder.segment_counts() or {}, 1))
    runs = {"painted": encode_mask(drawing.painted), "erased": encode_mask(drawing.erased)}
    append_lines(folder.path / "drawings.jsonl", [{"index": drawing.index, **runs, "by": drawing.by, "at": drawing.at}])


def load_drawings(folder: RunFolder) -> list[Drawing]:
    """Every drawing in the order in which people drew; none before anybody did. Raises ConfigError naming a line that is none."""
    path = folder.path / "drawings.jsonl"
    size = folder.image_size() if path.exists() else (0, 0)

    def read(said: dict[str, Any]) -> Drawing:
        painted, erased = (decode_mask(said[key], size) for key in ("painted", "erased"))
        return Drawing(int(said["index"]), painted, erased, str(said["by"]), str(said["at"]))

    return read_lines(path, read)


def encode_mask(mask: Bool[Tensor, "height width"]) -> list[int]:
    """The lengths of runs of unmarked and marked pixels in turn, row by row; the first is of unmarked pixels, and may be 0."""
    flat = mask.flatten()
    starts = (flat[1:] != flat[:-1]).nonzero()[:, 0] + 1
    edges = [0, *starts.tolist(), len(flat)]
    lengths = [end - start for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [0, *lengths] if bool(flat[0]) else lengths


def decode_mask(lengths: object, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The mask of (height, width) pixels that ``encode_mask`` gave. Raises ValueError for lengths that do not cover it."""
    whole = size[0] * size[1]
    if not isinstance(lengths, list) or len(lengths) > whole + 1 or any(type(length) is not int or length < 0 for length in lengths):
        raise ValueError("the lengths of runs are no list of whole numbers from 0 on")
    if sum(lengths) != whole:
        raise ValueError(f"the runs cover {sum(lengths)} pixels; expected {size[0]} x {size[1]} = {whole}")
    marks = torch.arange(len(lengths)) % 2 == 1
    return marks.repeat_interleave(torch.tensor(lengths, dtype=torch.int64)).view(size)
