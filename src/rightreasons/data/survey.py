"""A survey of a path before a run: counts, sizes, files that are left out and why, problems, and a contact sheet."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Dataset

from rightreasons.common.progress import Reporter
from rightreasons.common.seeds import seeded
from rightreasons.data.agree import describe_masks
from rightreasons.data.assemble import describe_empty_class
from rightreasons.data.images import ImageFiles
from rightreasons.data.loading import count_images, read_all, read_batches
from rightreasons.data.manifest import Leak, describe_conflicts, describe_leaks, find_conflicts, find_leaks, list_hashes, name_image
from rightreasons.data.task import Task
from rightreasons.errors import DataError

# The contact sheet's images in a row, and their side and the gap between them in pixels.
ROW = 10
THUMBNAIL = 96
GAP = 6
CAPTION = 18


@dataclass(frozen=True)
class Row:
    """One row of the contact sheet: what its images have in common, and where they stand in the split."""

    split: str
    name: str
    count: int
    indices: list[int]


def survey_task(task: Task, reporter: Reporter, *, decode: bool) -> dict[str, Any]:
    """Counts per split, class and group, and what is wrong, as JSON would have it. With ``decode`` every image is decoded once.

    Images that cannot be read are not counted; without ``decode`` those are the ones whose headers could not be. With it every mask is read as
    well, and those that mark nothing or all of their image are counted.
    Of files only those are hashed whose length occurs in two splits or under two labels: of no other would it matter that it is there twice.
    """
    if decode:
        for split, dataset in task.splits.items():
            with reporter.stage(f"decode {split}") as advance:
                done = 0
                for batch in read_batches(dataset):
                    done += len(batch)
                    advance(done, count_images(dataset))
    masks = _count_masks(task, reporter) if decode else []
    compared = _comparable(task.splits)
    with reporter.stage("hash") as advance:
        listed = list_hashes(compared, advance)
    leaks, conflicts = find_leaks(listed), find_conflicts(listed)
    twice = [describe_leaks(leaks, compared)] if leaks else []
    twice += [describe_conflicts(conflicts, listed, compared, task.classes)] if conflicts else []
    problems = [*task.problems, *_tell_empty(task), *masks, *twice]
    if len(task.sizes) > 1:
        problems.append(f"images of {len(task.sizes)} sizes: [data] size resizes all of them to one, as do networks that come with a size")
    return {
        "path": task.name,
        "read_as": task.told,
        "classes": list(task.classes),
        "splits": {split: _count_split(task, split) for split in task.splits},
        "sizes": dict(Counter(task.sizes).most_common(20)),
        "windows": {kind: list(window) for kind, window in task.windows.items()},
        "images_in_two_splits": [_name_places(leak, compared) for leak in leaks],
        "images_under_two_labels": [_name_places(conflict, compared) for conflict in conflicts],
        "left_out": dict(task.skipped),
        "not_read": dict(task.not_read),
        "problems": problems,
    }


def choose_rows(task: Task, seed: int = 0) -> list[Row]:
    """For every split and group (class, where no groups are known) some images, drawn by ``seed``."""
    rows = []
    for split, dataset in task.splits.items():
        members: dict[str, list[int]] = {}
        for index, name in zip(_readable(dataset), _groups(task, split), strict=True):
            members.setdefault(name, []).append(index)
        for name, indices in sorted(members.items()):
            order = torch.randperm(len(indices), generator=seeded(seed, "contact sheet", split, name))[:ROW].tolist()
            rows.append(Row(split, name, len(indices), [indices[i] for i in order]))
    return rows


def draw_sheet(task: Task, rows: list[Row]) -> bytes:
    """The contact sheet as PNG: a captioned row for each, ground-truth masks tinted red."""
    height = len(rows) * (CAPTION + THUMBNAIL + GAP) + GAP
    sheet = Image.new("RGB", (ROW * (THUMBNAIL + GAP) + GAP, height), "white")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, row in enumerate(rows):
        top = GAP + number * (CAPTION + THUMBNAIL + GAP)
        brush.text((GAP, top), f"{number + 1}  {row.split}: {row.name} ({row.count})", fill="black", font=font)
        for place, thumbnail in enumerate(_thumbnails(task, row)):
            sheet.paste(thumbnail, (GAP + place * (THUMBNAIL + GAP), top + CAPTION))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _thumbnails(task: Task, row: Row) -> list[Image.Image]:
    try:
        batch = read_all(task.splits[row.split], row.indices)
    except DataError:
        return []  # none of them can be read: they are in ``skipped`` by now, with the reason
    truth = task.truth.get(row.split)
    shown = []
    for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True):
        picture = (pixels.expand(3, -1, -1) * 255).byte().permute(1, 2, 0).numpy().copy()
        mask = truth.mask(index) if truth is not None else None
        if mask is not None:
            marked = mask.numpy()
            picture[marked] = (picture[marked] * 0.5 + np.array([255, 0, 0]) * 0.5).astype(np.uint8)
        image = Image.fromarray(picture)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        shown.append(image if max(image.size) == THUMBNAIL else image.resize(_fit(image.size), Image.Resampling.NEAREST))
    return shown


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = THUMBNAIL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _count_masks(task: Task, reporter: Reporter) -> list[str]:
    """Sentences on the masks of all splits. Raises DataError for one that cannot be read."""
    count, empty, full = 0, [], []
    for split, truth in task.truth.items():
        indices = list(truth.masked or ())
        with reporter.stage(f"masks {split}") as advance:
            for done, index in enumerate(indices, start=1):
                mask = truth.mask(index)
                if mask is None or mask.all():
                    (empty if mask is None else full).append(f"that of {name_image(task.splits[split], index)}")
                advance(done, len(indices))
        count += len(indices)
    return describe_masks(count, empty, full)


def _count_split(task: Task, split: str) -> dict[str, Any]:
    dataset = task.splits[split]
    labels, rows = _labels(task, split), _readable(dataset)
    counts = Counter(task.classes[label] for label in labels)
    patients = {dataset.entries[row].patient for row in rows} - {None} if isinstance(dataset, ImageFiles) else set()
    return {
        "images": len(labels),
        "classes": {name: counts[name] for name in task.classes},
        "groups": dict(sorted(Counter(_groups(task, split)).items())) if split in task.truth else None,
        "patients": len(patients) or None,
    }


def _name_places(leak: Leak, splits: Mapping[str, Dataset]) -> list[str]:
    return [f"{split}: {name_image(splits[split], index)}" for split, index in leak.places]


def _groups(task: Task, split: str) -> list[str]:
    """Of every readable image, its group, or its class where no groups are known."""
    if split in task.truth:
        return [task.truth[split].groups[row] for row in _readable(task.splits[split])]
    return [task.classes[label] for label in _labels(task, split)]


def _labels(task: Task, split: str) -> list[int]:
    """Of every readable image, its label."""
    dataset = task.splits[split]
    labels = dataset.labels.tolist()  # pyright: ignore[reportAttributeAccessIssue] -- every dataset of a task has them
    return [labels[row] for row in _readable(dataset)]


def _readable(dataset: Dataset) -> list[int]:
    """The images that no reading so far has found broken."""
    broken = set(dataset.unreadable) if isinstance(dataset, ImageFiles) else set()
    return [row for row in range(count_images(dataset)) if row not in broken]


def _tell_empty(task: Task) -> list[str]:
    """A sentence on each class that has no readable image in a split, which ``find`` refuses."""
    return [
        describe_empty_class(split, name)
        for split in task.splits
        for label, name in enumerate(task.classes)
        if label not in set(_labels(task, split)) and isinstance(task.splits[split], ImageFiles)
    ]


def _comparable(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits, of files only those whose length is also that of a file in another split, or under another label."""
    files = [images for images in splits.values() if isinstance(images, ImageFiles)]
    lengths = Counter(length for images in files for length, _ in {(entry.bytes, entry.label) for entry in images.entries})
    reduced: dict[str, Dataset] = {}
    for split, images in splits.items():
        if isinstance(images, ImageFiles):
            rows = [row for row, entry in enumerate(images.entries) if lengths[entry.bytes] > 1]
            if not rows:
                continue
            entries = [images.entries[row] for row in rows]
            images = ImageFiles(entries, images.labels[rows], images.reading, skipped=images.skipped, cache=images.cache)
        reduced[split] = images
    return reduced
