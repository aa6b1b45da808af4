"""DecoyMNIST (Ross et al. 2017): digits with a grey patch in a corner whose shade gives the class away in training, and not in the test.

The patch is 4x4, its corner is drawn with both axes Bernoulli(0.5); its grey is 255 - 25 * digit in the training and validation
splits, and 255 - 25 * a digit drawn at random in the test split. The variant ``exceptions=SHARE`` has that share of training and validation
digits with the grey of another digit, and the split ``balanced validation``: the validation digits once more, half of them with another
digit's grey, for methods that declare groups.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.data.built_in.digits import SIDE, read_digits
from rightreasons.data.built_in.planted import draw_exceptions, read_exceptions
from rightreasons.data.task import Task, TensorImages, hash_tensors
from rightreasons.errors import DataError
from rightreasons.records import GroundTruth

PATCH = 4
VARIANTS = ("packaged", "without-patch")
CLASSES = tuple(str(digit) for digit in range(10))
_SHAPES = {
    "0": "one closed oval stroke around an empty middle",
    "1": "a single upright or slanted stroke",
    "2": "an arc open to the left at the top that runs down into a flat stroke at the foot",
    "3": "two arcs, one above the other, both open to the left",
    "4": "two strokes that meet an upright one, open or closed at the top",
    "5": "a flat stroke at the top, a short upright one, and an arc open to the left below",
    "6": "a long curve that closes into a loop at the bottom",
    "7": "a flat stroke at the top and a slanted one down from its right end",
    "8": "two closed loops, one above the other",
    "9": "a closed loop at the top with a stroke running down from it",
}


def defaults(variant: tuple[str, ...]) -> dict[str, Any]:
    """The two-layer network, the expert's words and the settings of this task."""
    packaged = "packaged" in variant
    return {
        "model": {
            "source": "packaged:small-mlp",
            "epochs": 60 if packaged else 15,
            "learning_rate": 1e-3,
            "batch_size": 64 if packaged else 256,
        },
        "classes": {
            digit: {
                "description": f"The handwritten strokes of a {digit} near the middle: {shape}; and the empty space that they enclose or border.",
                "irrelevant": "Everything away from the handwriting: the corners, the edge of the picture, and any printed patch there.",
            }
            for digit, shape in _SHAPES.items()
        },
        "sample": {"size": 150 if packaged else 500},
        "critic": {"lvlm": "simulated:"},
        "align": {"epochs": 30 if packaged else 10, "learning_rate": 5e-3, "batch_size": 64 if packaged else 256},
    }


def open_task(variant: tuple[str, ...], *, size: int | None = None, seed: int) -> Task:
    """The task on full MNIST, or on 5,000 digits that a package carries (``packaged``); ``without-patch`` leaves the digits clean.

    ``exceptions=0.05`` gives that share of the training and validation digits the grey of another digit.
    Raises DataError if the digits cannot be had. Never silently fewer of them.
    """
    words, exceptions = read_exceptions("decoy-mnist", variant)
    unknown = [word for word in words if word not in VARIANTS]
    if unknown:
        raise DataError(f"decoy-mnist has no variant {unknown[0]!r}; it has {', '.join(VARIANTS)}, exceptions=SHARE")
    if exceptions and "without-patch" in words:
        raise DataError("decoy-mnist:without-patch has no patch that could contradict a class: leave out without-patch or the exceptions")
    digits = read_digits("decoy-mnist", packaged="packaged" in words, size=size, seed=seed)
    splits, truth, unbiased = {}, {}, None
    shares = dict.fromkeys(digits.splits, exceptions or 0.0) | ({} if exceptions is None else {"balanced validation": 0.5})
    for name, share in shares.items():
        indices = digits.splits[name.removeprefix("balanced ")]
        images, classes = digits.images[indices], digits.labels[indices]
        if "without-patch" in words:
            splits[name] = TensorImages(images[:, None], classes)
            truth[name] = GroundTruth(
                [f"{label}, no patch" for label in classes.tolist()], lambda index: None, torch.zeros(len(classes), dtype=torch.bool)
            )
            continue
        generator = seeded(seed, "decoy-mnist patch", name)
        random_digits = torch.randint(10, classes.shape, generator=generator)
        corners = torch.randint(2, (len(classes), 2), generator=generator)
        odd = draw_exceptions(classes, share, seed, "decoy-mnist exceptions", name)
        others = (classes + torch.randint(1, 10, classes.shape, generator=generator)) % 10
        shown = random_digits if name == "test" else torch.where(odd, others, classes)
        splits[name] = TensorImages(_add_patches(images, corners, shown), classes)
        truth[name] = _ground_truth(corners, shown, classes)
        if name == "train":
            unbiased = TensorImages(_add_patches(images, corners, random_digits), classes)
    full_name = ":".join(("decoy-mnist", *variant))
    return Task(full_name, CLASSES, splits, hash_tensors(digits.images, digits.labels), truth, unbiased)


def _add_patches(images: UInt8[Tensor, "image height width"], corners: Tensor, shown: Tensor) -> UInt8[Tensor, "image channel height width"]:
    masks = torch.stack([_corner_mask(corner) for corner in torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])])
    grey = (255 - 25 * shown).to(torch.uint8)
    return torch.where(masks[corners[:, 0] * 2 + corners[:, 1]], grey[:, None, None], images)[:, None]


def _corner_mask(corner: Tensor) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    top, left = ((SIDE - PATCH) * corner).tolist()
    mask[top : top + PATCH, left : left + PATCH] = True
    return mask


def _ground_truth(corners: Tensor, shown: Tensor, classes: Tensor) -> GroundTruth:
    """Groups: does the patch tell the true class, or another."""
    agrees = shown == classes
    groups = [f"{label}, patch {'agrees' if same else 'misleads'}" for label, same in zip(classes.tolist(), agrees.tolist(), strict=True)]
    return GroundTruth(groups, lambda index: _corner_mask(corners[index]), torch.ones(len(classes), dtype=torch.bool))
