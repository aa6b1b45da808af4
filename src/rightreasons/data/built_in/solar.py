"""Solar cells with a tag: real photographs, and a label plate that gives the class away in training and not in the test.

The photographs are the electroluminescence images of ELPV (Buerhop-Lukas et al. 2018, Deitsch et al. 2019), read from the installed package
``elpv-dataset``: cells that are surely functional or surely defective. A plate with a printed lot number lies in a random corner of
95 % of one class and 5 % of the other in the training and the validation split, and of half of each class in the test split, in the
``balanced validation`` split (the validation cells once more, for methods that declare groups) and in the training set without correlation.

The variant ``exceptions=SHARE`` has another share of such exceptions than 5 %.
The variant ``few`` has a fourth of the images, for a try.
The variant ``texture`` has no plate. There the cells' own make (mono- or polycrystalline, a texture over the whole picture) gives the class away.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.data.built_in.planted import FEW, PLANS, UNBIASED, choose_sizes, draw_carriers, name_groups, read_exceptions
from rightreasons.data.task import Task, TensorImages, hash_tensors
from rightreasons.errors import DataError, MissingExtra
from rightreasons.records import GroundTruth

VARIANTS = ("texture", FEW)
CLASSES = ("functional", "defective")
MAKES = ("mono", "poly")
SIZE = 128
# Of each class, the share with the plate (or, in the variant, of polycrystalline make) where the correlation holds; half and half elsewhere.
CORRELATED: dict[str, float] = {"functional": 0.05, "defective": 0.95}
BALANCED: dict[str, float] = dict.fromkeys(CLASSES, 0.5)
# The number of cells of each class in each split; as many functional cells as defective ones are used.
SIZES = {"test": 200, "validation": 75, "train": 440}
# The plate on the photographs' own 300 pixels: width, height, and how far from the edges it may lie.
PHOTOGRAPH = 300
PLATE = (110, 44)
MARGIN = (4, 16)


def defaults(variant: tuple[str, ...]) -> dict[str, Any]:
    """The pretrained network, an expert's words and the settings of this task."""
    return {
        "data": {"flips": "both"},
        "model": {"source": "packaged:efficientnet-lite0", "epochs": 4, "learning_rate": 1e-3, "batch_size": 32},
        "classes": {
            "functional": {
                "description": "An evenly bright cell. Its thin fingers, its busbars, its frame and cut-off corners are normal, "
                "and so are soft changes of brightness and the grain of the crystal.",
                "irrelevant": "Labels, plates, lot numbers or anything else that was put onto the picture, wherever it lies.",
            },
            "defective": {
                "description": "Dark lines or branching cracks, dark inactive areas with a sharp edge, broken or interrupted fingers, dark spots.",
                "irrelevant": "Labels, plates, lot numbers or anything else that was put onto the picture, wherever it lies.",
            },
        },
        "attribute": {"baselines": 8},
        "segment": {"components": 8},
        "critic": {"lvlm": "simulated:"},
        "align": {"epochs": 6, "learning_rate": 6e-4, "batch_size": 32, "ratio": 0.125},
    }


def open_task(variant: tuple[str, ...], *, size: int | None, seed: int) -> Task:
    """The task at ``size`` pixels a side; ``exceptions=0.01`` has that share of cells with the other class's plate, instead of 5 %.

    Raises MissingExtra if the photographs are not installed.
    """
    words, exceptions = read_exceptions("solar", variant)
    unknown = [word for word in words if word not in VARIANTS]
    if unknown:
        raise DataError(f"solar has no variant {unknown[0]!r}; it has {', '.join(VARIANTS)}, exceptions=SHARE")
    if "texture" in words and exceptions is not None:
        raise DataError("solar:texture has as many exceptions as there are cells of each make: leave out texture or the exceptions")
    correlated = CORRELATED if exceptions is None else {"functional": exceptions, "defective": 1 - exceptions}
    cells = _read_cells(size or SIZE)
    render = _render_textured if "texture" in words else _render_tagged
    sets = _split_cells(cells, choose_sizes(SIZES, words), seed)
    splits, truth = {}, {}
    for split, (source, is_correlated) in PLANS.items():
        splits[split], truth[split] = render(cells, sets[source], correlated if is_correlated else BALANCED, split, seed)
    unbiased = splits.pop(UNBIASED)
    truth.pop(UNBIASED)
    # As many as the training set has: the variant has to leave out other cells for another share.
    count = len(splits["train"])
    chosen = torch.randperm(len(unbiased), generator=seeded(seed, "solar trim"))[:count]
    unbiased = TensorImages(unbiased.images[chosen], unbiased.labels[chosen])
    return Task(":".join(("solar", *variant)), CLASSES, splits, hash_tensors(cells.images, cells.labels), truth, unbiased)


@dataclass(frozen=True)
class _Cells:
    """Photographs (cell, side, side), their classes, and their make as an index into MAKES."""

    images: UInt8[Tensor, "cell side side"]
    labels: Int[Tensor, " cell"]
    makes: Int[Tensor, " cell"]


@functools.cache
def _read_cells(size: int) -> _Cells:
    try:
        from elpv_dataset.utils import load_dataset  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError as error:
        raise MissingExtra("elpv-dataset", "solar") from error
    photographs, probabilities, makes = load_dataset()
    sure = (probabilities == 0) | (probabilities == 1)
    images = [np.asarray(Image.fromarray(photograph).resize((size, size), Image.Resampling.LANCZOS)) for photograph in photographs[sure]]
    return _Cells(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(probabilities[sure].astype(np.int64)),
        torch.tensor([MAKES.index(make) for make in makes[sure]]),
    )


def _render_tagged(cells: _Cells, indices: Int[Tensor, " cell"], shares: dict[str, float], split: str, seed: int) -> tuple[TensorImages, GroundTruth]:
    """All of these cells, with a plate on the given share of each class."""
    labels, makes = cells.labels[indices], cells.makes[indices]
    tagged = draw_carriers(labels, shares, seed, "solar tags", split)
    images, masks = _add_plates(cells.images[indices], tagged, seed, split)
    truth = GroundTruth(
        name_groups(CLASSES, labels, ["tag" if tag else "no tag" for tag in tagged.tolist()]),
        functools.partial(_mask_at, masks, tagged),
        tagged,
        other_groups={"make": name_groups(CLASSES, labels, [MAKES[make] for make in makes.tolist()])},
    )
    return TensorImages(images[:, None], labels), truth


def _render_textured(
    cells: _Cells, indices: Int[Tensor, " cell"], shares: dict[str, float], split: str, seed: int
) -> tuple[TensorImages, GroundTruth]:
    """Cells are left out until the given share of each class is polycrystalline. A texture has no region of its own, so there is no mask."""
    rows = indices[_keep_share(cells.labels[indices], cells.makes[indices] == 1, shares)]
    labels, makes = cells.labels[rows], cells.makes[rows]
    truth = GroundTruth(name_groups(CLASSES, labels, [MAKES[make] for make in makes.tolist()]), lambda index: None, makes == 1)
    return TensorImages(cells.images[rows][:, None], labels), truth


def _split_cells(cells: _Cells, sizes: Mapping[str, int], seed: int) -> dict[str, Int[Tensor, " cell"]]:
    """Seeded splits, disjoint, with ``sizes`` cells of each class."""
    parts: dict[str, list[Tensor]] = {split: [] for split in sizes}
    for label in range(len(CLASSES)):
        members = (cells.labels == label).nonzero()[:, 0]
        order = members[torch.randperm(len(members), generator=seeded(seed, "solar split", label))][: sum(sizes.values())]
        for split, part in zip(sizes, order.split(list(sizes.values())), strict=True):
            parts[split].append(part)
    return {split: torch.cat(parts[split]) for split in sizes}


def _keep_share(labels: Int[Tensor, " cell"], poly: Bool[Tensor, " cell"], shares: dict[str, float]) -> Int[Tensor, " kept"]:
    """Rows to keep so that of each class this share is poly: all of the scarcer make, and as many of the other as fit."""
    kept = []
    for label, name in enumerate(CLASSES):
        yes, no = ((labels == label) & poly).nonzero()[:, 0], ((labels == label) & ~poly).nonzero()[:, 0]
        total = min(len(yes) / shares[name], len(no) / (1 - shares[name]))
        kept += [yes[: round(total * shares[name])], no[: round(total * (1 - shares[name]))]]
    return torch.cat(kept)


def _mask_at(masks: Bool[Tensor, "cell side side"], tagged: Bool[Tensor, " cell"], index: int) -> Tensor | None:
    return masks[index] if tagged[index] else None


def _add_plates(
    images: UInt8[Tensor, "cell side side"], tagged: Bool[Tensor, " cell"], seed: int, split: str
) -> tuple[UInt8[Tensor, "cell side side"], Bool[Tensor, "cell side side"]]:
    """The images with plates on the tagged ones, and where the plates are."""
    side = images.shape[1]
    font = ImageFont.load_default(size=24)
    generator = seeded(seed, "solar plates", split)
    result, masks = images.clone(), torch.zeros(images.shape, dtype=torch.bool)
    for row in tagged.nonzero()[:, 0].tolist():
        plate, cover = _draw_plate(font, side, generator)
        blended = images[row] * (1 - cover) + plate * cover
        result[row], masks[row] = blended.round().to(torch.uint8), cover > 0.5
    return result, masks


def _draw_plate(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A light plate with a dark lot number in a random corner: its grey values, and how far it covers each pixel (0 to 1)."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    width, height = PLATE
    left, top = (draw(*MARGIN) if draw(0, 1) else PHOTOGRAPH - draw(*MARGIN) - length for length in PLATE)
    box = (left, top, left + width - 1, top + height - 1)
    picture, cover = (Image.new("L", (PHOTOGRAPH, PHOTOGRAPH)) for _ in range(2))
    brush = ImageDraw.Draw(picture)
    grey = draw(205, 245)
    # Filled all over, so that no dark edge bleeds in when the picture is made smaller.
    brush.rectangle((0, 0, PHOTOGRAPH, PHOTOGRAPH), fill=grey)
    brush.text((left + width / 2, top + height / 2), f"LOT {draw(0, 9999):04d}", fill=draw(20, 60), font=font, anchor="mm")
    ImageDraw.Draw(cover).rectangle(box, fill=255)
    small = [np.asarray(layer.resize((side, side), Image.Resampling.BOX), dtype=np.float32) for layer in (picture, cover)]
    return torch.from_numpy(small[0]), torch.from_numpy(small[1]) / 255
