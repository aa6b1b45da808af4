"""Reading images: camera-size JPEGs at the size of a network, epoch by epoch; and listing and checking a folder of 100,000 files.

The rival is torchvision, as its tutorials have it: ImageFolder, Resize, ToTensor and a DataLoader of two workers. The floor of an epoch is one
draft decoding after the other by Pillow alone, that of the second epoch a copy of the pixels from memory, and that of a listing a bare walk with
os.scandir. ``ratio`` is our time over the rival's, ``floor_ratio`` over the floor's: smaller is better. ``agrees``: no image's mean difference from
the rival's pixels is above 4 of 255 (Pillow's draft decoding against a whole one), or the same files were listed.
Memory is what the process, workers included, has grown by at most.

    python benchmarks/speed/reading.py [--images 400] [--files 100000] --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.soak import resident_mib

from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.data.loading import read_batches

SIZE = 224
CLASSES = ("bolt", "nut")


def write_photographs(root: Path, count: int) -> None:
    """JPEGs of 3000 x 2000, twelve different ones: smooth colours and some grain, about a megabyte each."""
    random = np.random.default_rng(0)
    contents = []
    for number in range(12):
        coarse = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((3000, 2000), Image.Resampling.BICUBIC)
        grain = random.normal(0, 6, (2000, 3000, 1)).repeat(3, 2)
        path = root / f"{number}.jpg"
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=85)
        contents.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        folder = root / CLASSES[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number:05d}.jpg").write_bytes(contents[number % 12])


def write_many(root: Path, count: int) -> None:
    """Small PNGs in two classes and a hundred folders each, ten different ones."""
    contents = []
    for number in range(10):
        Image.fromarray(np.full((16, 16, 3), number * 20, np.uint8)).save(root / "one.png")
        contents.append((root / "one.png").read_bytes())
    (root / "one.png").unlink()
    for number in range(count):
        folder = root / CLASSES[number % 2] / f"{number // 2 % 100:02d}"
        if number < 200:
            folder.mkdir(parents=True)
        (folder / f"{number:06d}.png").write_bytes(contents[number % 10])


@contextlib.contextmanager
def growth() -> Iterator[list[float]]:
    """How much this process and its children take at most, in MiB, above what it took before; in a list that is filled at the end."""
    before, most, stop = resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            total = resident_mib() + sum(_resident(pid) for pid in _children())
            most[0] = max(most[0], total - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _resident(pid: int) -> float:
    """Of what a child has for itself: what it shares with this process is counted once."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(work: Callable[[], object]) -> tuple[float, object, float]:
    """Seconds, what came of it, and MiB."""
    with growth() as most:
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
    return seconds, found, most[0]


def line(case: str, ours: tuple[float, float], rival: tuple[float, float], rival_name: str, floor: float, *, agrees: bool) -> dict[str, object]:
    return {
        "stage": "data", "case": case, "ours_s": ours[0], "rival_s": rival[0], "rival": rival_name, "ratio": ours[0] / rival[0], "floor_s": floor,
        "floor_ratio": ours[0] / floor, "ours_mib": ours[1], "rival_mib": rival[1], "agrees": agrees,
    }  # fmt: skip


def epochs(root: Path, count: int) -> Iterator[dict[str, object]]:
    """First and second epoch, in the same order for all."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    write_photographs(root, count)
    config = DataConfig(path=str(root), size=SIZE)
    names = sorted(root.rglob("*.jpg"))

    def draft_alone() -> list[np.ndarray]:
        found = []
        for name in names:
            with Image.open(name) as image:
                image.draft(None, (2 * SIZE, 2 * SIZE))
                found.append(np.array(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
        return found

    floor_s, kept, _ = timed(draft_alone)
    pixels = torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)  # pyright: ignore[reportArgumentType, reportCallIssue]
    copy_s, _, _ = timed(lambda: sum(float((part.float() / 255)[0, 0, 0, 0]) for part in pixels.split(64)))
    task = open_data(config, root=root, seed=0)
    parts = [task.splits[split] for split in ("train", "validation", "test")]

    def read() -> int:
        return sum(len(batch) for part in parts for batch in read_batches(part, batch_size=64))

    folder = ImageFolder(str(root), transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()]))
    loader = torch.utils.data.DataLoader(folder, batch_size=64, num_workers=2)
    for epoch, floor in (("first", floor_s), ("second", copy_s)):
        ours_s, ours, ours_mib = timed(read)
        rival_s, _, rival_mib = timed(lambda: [len(labels) for _, labels in loader])
        yield line(
            f"{epoch} epoch of {count} JPEGs of 3000x2000 at {SIZE}", (ours_s, ours_mib), (rival_s, rival_mib),
            "torchvision ImageFolder, Resize, DataLoader(num_workers=2)", floor, agrees=_agree(parts, folder, root) and ours == count,  # pyright: ignore
        )  # fmt: skip


def _agree(parts: list, folder: object, root: Path) -> bool:
    """The twelve different images, pixel by pixel."""
    place = {Path(path).relative_to(root).as_posix(): number for number, (path, _) in enumerate(folder.samples)}  # pyright: ignore
    seen = [(part, row) for part in parts for row, entry in enumerate(part.entries) if int(Path(entry.name).stem) < 12]
    return all((part[row][0] - folder[place[part.entries[row].name]][0]).abs().mean() * 255 < 4 for part, row in seen)  # pyright: ignore


def listing(root: Path, count: int) -> Iterator[dict[str, object]]:
    """What a run does before it reads the first image; the rival lists names and checks nothing."""
    from torchvision.datasets import ImageFolder

    write_many(root, count)

    def walk() -> int:
        found, waiting = 0, [str(root)]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(entry.path)
                    else:
                        found += 1
        return found

    walk()
    floor_s, walked, _ = timed(walk)
    rival_s, folder, rival_mib = timed(lambda: ImageFolder(str(root)))
    ours_s, task, ours_mib = timed(lambda: open_data(DataConfig(path=str(root)), root=root, seed=0))
    names = {entry.name for part in task.splits.values() for entry in part.entries}  # pyright: ignore
    agrees = names == {Path(path).relative_to(root).as_posix() for path, _ in folder.samples} and walked == count == len(names)  # pyright: ignore
    yield line(f"{count} files listed and validated", (ours_s, ours_mib), (rival_s, rival_mib), "torchvision ImageFolder", floor_s, agrees=agrees)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for work, count in ((listing, options.files), (epochs, options.images)):
        with tempfile.TemporaryDirectory() as folder:
            for result in work(Path(folder), count):
                print(json.dumps(result) if options.json else "\n".join(f"{key:12} {value}" for key, value in result.items()) + "\n", flush=True)


if __name__ == "__main__":
    main()
