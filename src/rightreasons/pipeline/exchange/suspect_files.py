"""The suspects' list as files: CSV, Parquet, masks as PNG, COCO's instances, and tasks for Label Studio."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from rightreasons.common.files import make_private_folder, write_atomically, write_text
from rightreasons.common.progress import Reporter
from rightreasons.data.annotations.label_studio import FILE
from rightreasons.data.annotations.run_lengths import to_coco, to_label_studio
from rightreasons.data.loading import own_size
from rightreasons.data.mask_files import shrink_mask
from rightreasons.errors import ConfigError, MissingExtra
from rightreasons.pipeline.exchange.suspects import Marked, Segment, Suspect, SuspectList
from rightreasons.records import VALUES

FORMATS = ("csv", "parquet", "masks", "coco", "label-studio")
COLUMNS = (*(column.name for column in fields(Suspect)), "mask")
LABELS_CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mark" toName="image">
    <Label value="spurious" background="#d1242f"/>
    <Label value="relevant" background="#1a7f37"/>
    <Label value="unsure" background="#9a6700"/>
  </BrushLabels>
</View>
"""


@dataclass(frozen=True)
class Written:
    """What was written: the files, how many images they list, and in how many of them something is marked."""

    files: tuple[Path, ...]
    images: int
    marked: int


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats without repetitions. Raises ConfigError for an unknown one, MissingExtra for Parquet without pyarrow."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--as {name}: expected one of {', '.join(FORMATS)}")
    if "parquet" in formats:
        try:
            import pyarrow.parquet  # noqa: F401 -- tried before any work
        except ImportError as error:
            raise MissingExtra("pyarrow", "parquet") from error
    return tuple(dict.fromkeys(formats))


def write_suspects(found: SuspectList, folder: Path, formats: Sequence[str], *, address: str, reporter: Reporter) -> Written:
    """Writes the list in each of the formats. ``address`` stands before an image's path in the tasks for Label Studio.

    The folder is private: the files name images, and the masks show where something lies in them.
    """
    make_private_folder(folder, "folder of suspects")
    chosen = found.chosen.tolist()
    rows: list[dict[str, Any]] = []
    coco, tasks = _Coco(found), []
    with reporter.stage("suspects") as advance:
        for marked in found.marked():
            size = own_size(found.run.train, marked.suspect.image) or (int(marked.mask.shape[0]), int(marked.mask.shape[1]))
            rows.append({**asdict(marked.suspect), "mask": None})
            if "masks" in formats:
                rows[-1]["mask"] = _write_mask(folder, marked, size)
            if "coco" in formats:
                coco.add(marked, size)
            if "label-studio" in formats:
                tasks.append(_make_task(marked, size, address))
            advance(len(rows), len(chosen))
    done = len(rows)
    rows += [{**asdict(suspect), "mask": None} for suspect in found.unmarked({row["image"] for row in rows})]
    rows.sort(key=lambda row: (row["found_by"] is None, -(row["probability"] or 0.0), row["image"]))
    writers: dict[str, Callable[[], Path | None]] = {
        "csv": lambda: _write_csv(folder / "suspects.csv", rows),
        "parquet": lambda: _write_parquet(folder / "suspects.parquet", rows),
        "masks": lambda: folder / "masks",
        "coco": lambda: _write_json(folder / "coco.json", coco.content),
        "label-studio": lambda: _write_tasks(folder, tasks),
    }
    files = [writers[name]() for name in formats]
    return Written(tuple(file for file in files if file is not None), len(rows), done)


def at_own_size(mask: Bool[Tensor, "height width"], size: tuple[int, int]) -> Bool[Tensor, "own_height own_width"]:
    """A mask at the size of the image's file: each pixel of the mask becomes as many as it covers there, and a thin mark stays in a smaller file."""
    if any(own < side for own, side in zip(size, mask.shape, strict=True)):
        return shrink_mask(mask, size)
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0


def _write_mask(folder: Path, marked: Marked, size: tuple[int, int]) -> str:
    """Writes a mask as black and white, and returns its path in the folder."""
    name = f"masks/{marked.suspect.image:06d}.png"
    make_private_folder(folder / "masks", "folder of masks")
    picture = Image.fromarray(at_own_size(marked.mask, size).numpy())
    write_atomically(folder / name, lambda part: picture.save(part, "PNG"))
    return name


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
    return path


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    types = {"int": pyarrow.int64(), "str": pyarrow.string(), "str | None": pyarrow.string(), "float | None": pyarrow.float64()}
    schema = pyarrow.schema([*((column.name, types[str(column.type)]) for column in fields(Suspect)), ("mask", pyarrow.string())])
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    write_atomically(path, lambda part: pyarrow.parquet.write_table(table, part))
    return path


def _write_json(path: Path, content: object) -> Path:
    write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _write_tasks(folder: Path, tasks: Sequence[dict[str, Any]]) -> Path:
    write_text(folder / "label-studio.xml", LABELS_CONFIG)
    return _write_json(folder / "label-studio.json", tasks)


def _list_pieces(marked: Marked) -> Sequence[Segment]:
    """What is marked: the judged segments of an inspected image, or the probe's mark as one piece."""
    return marked.segments or (Segment(None, "spurious", marked.mask),)


class _Coco:
    """COCO's instances, as they grow. The images have their own numbers; annotations count from 1, since pycocotools takes 0 for none."""

    def __init__(self, found: SuspectList) -> None:
        described = f"suspects of the run {found.run.folder.path.name}, by rightreasons: segments and marks, by verdict"
        self.content: dict[str, Any] = {
            "info": {"description": described, "version": "1.0"},
            "licenses": [],
            "categories": [{"id": number, "name": value, "supercategory": "verdict"} for number, value in enumerate(VALUES, start=1)],
            "images": [],
            "annotations": [],
        }

    def add(self, marked: Marked, size: tuple[int, int]) -> None:
        """Adds an image with an annotation for each segment."""
        suspect, annotations = marked.suspect, self.content["annotations"]
        self.content["images"].append({"id": suspect.image, "file_name": suspect.filepath, "height": size[0], "width": size[1]})
        for segment in _list_pieces(marked):
            mask = at_own_size(segment.mask, size)
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            if not len(rows):  # a file that is smaller than the network's input may lose it
                continue
            left, top = int(columns[0]), int(rows[0])
            told = {"found_by": suspect.found_by, "probability": suspect.probability, "strength": suspect.strength}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": suspect.image,
                    "category_id": VALUES.index(segment.value) + 1,
                    "segmentation": to_coco(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "iscrowd": 1,
                    "attributes": {**told, **({} if segment.name is None else {"segment": segment.name})},
                }
            )


def _make_task(marked: Marked, size: tuple[int, int], address: str) -> dict[str, Any]:
    """A task of Label Studio with each segment as a brush stroke of a pre-annotation, to be corrected."""
    suspect = marked.suspect
    results = []
    for number, segment in enumerate(_list_pieces(marked)):
        mask = at_own_size(segment.mask, size)
        if mask.any():
            results.append(
                {
                    "id": f"{suspect.image}-{number}",
                    "type": "brushlabels",
                    "from_name": "mark",
                    "to_name": "image",
                    "original_width": size[1],
                    "original_height": size[0],
                    "image_rotation": 0,
                    "value": {"format": "rle", "rle": to_label_studio(mask), "brushlabels": [segment.value]},
                    **({} if segment.name is None else {"meta": {"text": [segment.name]}}),
                }
            )
    told = {key: value for key, value in asdict(suspect).items() if key not in ("filepath", "x", "y", "width", "height")}
    prediction: dict[str, Any] = {"model_version": "rightreasons", "result": results}
    if suspect.probability is not None:
        prediction["score"] = suspect.probability
    # The number is under another key: Label Studio shows what is under "image".
    told["number"] = told.pop("image")
    return {"data": {"image": address + quote(suspect.filepath), FILE: suspect.filepath, **told}, "predictions": [prediction]}
