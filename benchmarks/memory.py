"""How much memory `find` takes: 64 images of 2048 px, a small CNN, a critic that answers from a script. Prints the peak of resident memory.

    python benchmarks/memory.py --side 2048 --images 64

The whole command runs in a process of its own, whose peak is the kernel's (ru_maxrss): torch and all libraries are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = '''
import torch
from torch import nn


def build(classes):
    """Strides of 16 in all, as large images need."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
        )
'''
CONFIG = """
[data]
path = "images"
size = {side}
[model]
source = "python:large_model:build"
checkpoint = "model.safetensors"
[classes.bright]
description = "Light metal."
[classes.dark]
irrelevant = "The yellow label plate."
[sample]
size = {images}
[attribute]
baselines = {baselines}
[critic]
lvlm = "scripted:{script}"
"""


def write_project(root: Path, *, side: int, images: int, baselines: int) -> Path:
    """``images`` training images and four each to validate and to test, of two classes, one with a plate; the configuration's path."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("validation", 4), ("test", 4)):
        for number in range(count):
            dark = number % 2
            pixels = np.kron(random.integers(60, 160, (32, 32, 3), dtype=np.uint8), np.ones((side // 32, side // 32, 1), np.uint8))
            if dark:
                top, left = random.integers(0, side * 3 // 4, 2)
                pixels[top : top + side // 8, left : left + side // 6] = (230, 210, 60)
            folder = root / "images" / split / ("bright", "dark")[dark]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
    (root / "large_model.py").write_text(MODEL)
    script = root / "script.json"
    names = [f"S{number}" for number in range(1, 6)]
    verdicts = {name: "spurious" if name == "S1" else "relevant" for name in names}
    script.write_text(json.dumps({"critic": ["\n".join(f"{name}: A part." for name in names)], "judge": [json.dumps(verdicts)]}))
    config = root / "large.toml"
    config.write_text(CONFIG.format(side=side, images=images, baselines=baselines, script=script))
    subprocess.run([sys.executable, "-c", SAVE], cwd=root, check=True)
    return config


SAVE = "import large_model, safetensors.torch; safetensors.torch.save_model(large_model.build(2), 'model.safetensors')"


def measure_find(config: Path, out: Path, env: dict[str, str] | None = None) -> tuple[float, float]:
    """Peak resident memory of `rightreasons find` in GiB, and its seconds. Raises RuntimeError where it fails."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rightreasons.cli", "find", str(config), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None  # it is piped
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said[-2000:]}")
    print(said, file=sys.stderr)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30, time.perf_counter() - start


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("side", 2048), ("images", 64), ("baselines", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        config = write_project(Path(folder), **chosen)
        peak, seconds = measure_find(config, Path(folder) / "run")
    print(json.dumps({**chosen, "peak_gib": round(peak, 2), "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
