"""What one image costs in every stage of `find` and `fix`.

A folder of images with a bright tag is drawn, a packaged EfficientNet-Lite0 is trained on it for two epochs, and the whole method runs with a
critic that answers from a script. Seconds are the process's own, so that other work on the machine does not count. docs/scale.md has the figures.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--side 128] [--images 400] [--inspected 16] [--device cpu] --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rightreasons.common.device import DEVICE, best_device
from rightreasons.common.progress import Silent
from rightreasons.data.loading import count_images
from rightreasons.pipeline.find import find
from rightreasons.pipeline.fix import fix
from rightreasons.pipeline.results import write_results
from rightreasons.project.project import read_project
from rightreasons.runs.folder import RunFolder

CONFIG = """
[data]
path = "images"
size = {side}
[model]
source = "packaged:efficientnet-lite0"
epochs = 2
batch_size = 32
[classes.plain]
description = "Coarse grain."
[classes.tagged]
description = "Fine grain."
irrelevant = "A tag."
[sample]
size = {inspected}
[critic]
lvlm = "scripted:{script}"
[align]
epochs = 1
"""
# What a stage's seconds are divided by: images of all splits, training images, or inspected images.
PER = {
    "manifest": "all images",
    "train": "training image and epoch",
    "sample": "training image",
    "validate": "validation image",
    "attribute": "inspected image",
    "segment": "inspected image",
    "render": "inspected image",
    "judge": "inspected image",
    "spread": "training image",
    "align": "training image and epoch",
}


class ProcessorTime(Silent):
    """Counts the seconds of this process on all its threads, rather than those of the clock."""

    @contextmanager
    def stage(self, name):
        start, before = time.process_time(), self.seconds.get(name, 0.0)
        with super().stage(name) as advance:
            yield advance
        self.seconds[name] = before + time.process_time() - start


def write_project(root: Path, *, side: int, images: int, inspected: int) -> Path:
    """Noise of two grains; nearly every image of the finer grain has a tag. A sixth each are for validation and test."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("validation", images // 6), ("test", images // 6)):
        for number in range(count):
            fine = number % 2
            cell = (8, 4)[fine]
            grain = random.integers(40, 200, (side // cell, side // cell, 3), dtype=np.uint8)
            pixels = np.kron(grain, np.ones((cell, cell, 1), np.uint8))
            if fine == (number % 20 != 19):
                top, left = random.integers(0, side // 2, 2)
                pixels[top : top + side // 6, left : left + side // 4] = (235, 220, 60)
            folder = root / "images" / split / ("plain", "tagged")[fine]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    names = [f"S{number}" for number in range(1, 6)]
    verdicts = {name: "spurious" if name == "S1" else "relevant" for name in names}
    script = root / "script.json"
    script.write_text(json.dumps({"critic": ["\n".join(f"{name}: A part." for name in names)], "judge": [json.dumps(verdicts)]}))
    config = root / "scale.toml"
    config.write_text(CONFIG.format(side=side, inspected=inspected, script=script))
    return config


def measure(root: Path, *, side: int, images: int, inspected: int) -> dict:
    """Seconds and bytes for one unit of each kind."""
    project = read_project(write_project(root, side=side, images=images, inspected=inspected))
    reporter, folder = ProcessorTime(), RunFolder(root / "run")
    run = find(project, folder, reporter=reporter)
    alignment = fix(run, reporter=reporter)
    write_results(run, reporter, alignment=alignment)
    counts = {split: count_images(dataset) for split, dataset in project.task.splits.items()}
    units = {
        "all images": sum(counts.values()),
        "training image": counts["train"],
        "training image and epoch": counts["train"],
        "validation image": counts["validation"],
        "inspected image": len(run.selection),
    }
    epochs = {"train": project.config.model.epochs, "align": project.config.align.epochs}
    seconds = {stage: reporter.seconds[stage] / units[unit] / epochs.get(stage, 1) for stage, unit in PER.items() if stage in reporter.seconds}
    tracemalloc.start()
    listed = folder.load_manifest()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert listed is not None  # find has written it
    bytes_each = {
        "manifest.jsonl, per image": (folder.path / "manifest.jsonl").stat().st_size / len(listed),
        "the manifest in memory, per image": held / len(listed),
        "pictures, per inspected image": sum(path.stat().st_size for path in folder.pictures.iterdir()) / len(run.selection),
        "lvlm.sqlite, per inspected image": folder.ledger.stat().st_size / len(run.selection),
        "report.html, per inspected image": (folder.path / "report.html").stat().st_size / len(run.selection),
    }
    return {"outcome": run.outcome, "repair": alignment.outcome, "seconds": seconds, "bytes": bytes_each, "notes": reporter.notes}


def main() -> None:
    """Prints one JSON object, or a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("side", 128), ("images", 400), ("inspected", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    chosen = vars(parser.parse_args())
    as_json, os.environ[DEVICE] = chosen.pop("json"), chosen.pop("device")
    device = best_device()
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    with tempfile.TemporaryDirectory() as folder:
        found = {**chosen, "device": f"{device.type}: {named}", "threads": torch.get_num_threads(), **measure(Path(folder), **chosen)}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['device']}, {found['threads']} threads; {found['outcome']}, {found['repair']}", file=sys.stderr)
    for stage, value in found["seconds"].items():
        print(f"{stage:<12} {1000 * value:10.2f} ms per {PER[stage]}")
    for what, value in found["bytes"].items():
        print(f"{value:12.0f} bytes of {what}")


if __name__ == "__main__":
    main()
