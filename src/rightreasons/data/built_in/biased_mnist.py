"""Biased MNIST: low and high digits with a coloured square in the top left corner, whose colour gives the class away in training alone.

The test that MaskTune (Asgari et al. 2022) set itself: digits 0 to 4 against 5 to 9, and a 4x4 square of one colour for each class. The colour is
that of the image's class in 99 % of the training and validation images of each class, and that of the other class in every test image.
In the ``balanced validation`` split (the validation digits once more, for methods that declare groups) and in the training set without correlation
it is drawn evenly.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from rightreasons.data.built_in.digits import SIDE, read_digits
from rightreasons.data.built_in.planted import UNBIASED, draw_exceptions, name_groups, read_exceptions
from rightreasons.data.task import Task, TensorImages, hash_tensors
from rightreasons.errors import DataError
from rightreasons.records import GroundTruth

VARIANTS = ("packaged",)
CLASSES = ("0-4", "5-9")
SQUARE = 4
# Red, green and blue of each class's square.
COLOURS = ((0, 0, 255), (0, 255, 0))
# Of each class, the share of training and validation images with the other class's colour.
EXCEPTIONS = 0.01


def defaults(variant: tuple[str, ...]) -> dict[str, Any]:
    """The small network with convolutions, the expert's words and the settings of this task."""
    packaged = "packaged" in variant
    irrelevant = "Everything away from the handwriting: the corners, the edge of the picture, and any coloured mark there."
    return {
        "model": {
            "source": "packaged:small-cnn",
            "epochs": 20 if packaged else 5,
            "learning_rate": 1e-3,
            "batch_size": 64 if packaged else 128,
        },
        "classes": {
            name: {
                "description": f"The handwritten strokes of a digit from {name[0]} to {name[-1]} near the middle, and the space that they enclose.",
                "irrelevant": irrelevant,
            }
            for name in CLASSES
        },
        "sample": {"size": 100 if packaged else 200},
        "critic": {"lvlm": "simulated:"},
        "align": {"epochs": 10 if packaged else 3, "learning_rate": 1e-3, "batch_size": 64 if packaged else 128},
    }


def open_task(variant: tuple[str, ...], *, size: int | None = None, seed: int) -> Task:
    """The task on full MNIST, or on 5,000 digits that a package carries (``packaged``).

    ``exceptions=0.05`` gives that share of the training and validation images the other class's colour, instead of 1 %.
    Raises DataError if the digits cannot be had. Never silently fewer of them.
    """
    words, stated = read_exceptions("biased-mnist", variant)
    unknown = [word for word in words if word not in VARIANTS]
    if unknown:
        raise DataError(f"biased-mnist has no variant {unknown[0]!r}; it has {', '.join(VARIANTS)}, exceptions=SHARE")
    exceptions = EXCEPTIONS if stated is None else stated
    digits = read_digits("biased-mnist", packaged="packaged" in words, size=size, seed=seed)
    # For each rendering, the split of the digits that it shows, and the share of them with the other class's colour.
    plans = {
        "train": ("train", exceptions),
        "validation": ("validation", exceptions),
        "balanced validation": ("validation", 0.5),
        "test": ("test", 1.0),
        UNBIASED: ("train", 0.5),
    }
    splits, truth = {}, {}
    for name, (source, share) in plans.items():
        images, classes = digits.images[digits.splits[source]], (digits.labels[digits.splits[source]] >= 5).long()
        misleads = draw_exceptions(classes, share, seed, "biased-mnist squares", name)
        splits[name] = TensorImages(_add_squares(images, torch.where(misleads, 1 - classes, classes)), classes)
        truth[name] = _ground_truth(classes, misleads)
    unbiased = splits.pop(UNBIASED)
    truth.pop(UNBIASED)
    full_name = ":".join(("biased-mnist", *variant))
    return Task(full_name, CLASSES, splits, hash_tensors(digits.images, digits.labels), truth, unbiased)


def _add_squares(images: UInt8[Tensor, "image height width"], shown: Int[Tensor, " image"]) -> UInt8[Tensor, "image 3 height width"]:
    coloured = images[:, None].repeat(1, 3, 1, 1)
    coloured[:, :, :SQUARE, :SQUARE] = torch.tensor(COLOURS, dtype=torch.uint8)[shown][:, :, None, None]
    return coloured


def _ground_truth(classes: Int[Tensor, " image"], misleads: Bool[Tensor, " image"]) -> GroundTruth:
    """Groups: does the square tell the true class, or the other one."""
    square = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    square[:SQUARE, :SQUARE] = True
    attributes = [f"square {'misleads' if odd else 'agrees'}" for odd in misleads.tolist()]
    return GroundTruth(name_groups(CLASSES, classes, attributes), lambda index: square, torch.ones(len(classes), dtype=torch.bool))
