"""A folder of small pictures with a label plate as shortcut, and a network for it. ``helpers`` has the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.fault_server import PLATE

MODEL = """
from torch import nn


def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, classes),
    )
"""
CONFIG = """
[data]
path = "images"
[model]
source = "python:plate_model:build"
epochs = 8
learning_rate = 3e-3
batch_size = 32
[classes.bright]
description = "Light metal."
[classes.dark]
irrelevant = "The yellow label plate."
[sample]
size = 12
[attribute]
baselines = 4
[critic]
lvlm = "openai:stub"
base_url = "{base_url}"
[align]
epochs = 3
batch_size = 32
"""


def draw(random, *, bright: bool, plate: bool) -> Image.Image:
    pixels = np.full((24, 24, 3), 135 if bright else 115, dtype=float) + random.normal(0, 25, (24, 24, 1))
    if plate:
        row, column = random.choice([0, 18], 2)
        pixels[row : row + 6, column : column + 6] = PLATE
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_folder(root: Path, base_url: str = "http://127.0.0.1:9/v1", count: int = 60) -> Path:
    """Images, model and configuration; the path of the configuration. The plate is on nearly every dark part, and on half in the test."""
    random = np.random.default_rng(0)
    for split, number, chances in (("train", count, (0.05, 0.95)), ("validation", 20, (0.05, 0.95)), ("test", 30, (0.5, 0.5))):
        for name, chance in zip(("bright", "dark"), chances, strict=True):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                draw(random, bright=name == "bright", plate=random.random() < chance).save(folder / f"{i}.png")
    (root / "plate_model.py").write_text(MODEL)
    config = root / "plates.toml"
    config.write_text(CONFIG.format(base_url=base_url))
    return config
