"""The choice of images to inspect, from generated images through a cheap network: seconds, and memory that does not grow with the set.

The rival keeps the entropies of all images and sorts them at the end; the floor is the passes through the network alone. ``agrees``: both choose the
same images. ``growth_mib`` is by how much the highest memory of ours is above that of the smallest count, which runs first.

    python benchmarks/speed/sampling.py [--counts 10000 1000000] [--size 100] --json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.turns import command_line, in_turns, line, show

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, read_batches
from rightreasons.explain.sample import select_images
from rightreasons.networks.classifier import output_entropy
from rightreasons.networks.predictions import predict_batch

CLASSES, SIDE = 10, 8


class Generated(Dataset):
    """Images that follow from their number, so that none is kept."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pattern = torch.rand(3, SIDE, SIDE, generator=seeded(0, "pattern"))

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Tensor) -> Batch:
        """Stripes of a frequency of their own; the numbers are spread by a multiplier without a common divisor with 2^20."""
        phase = (indices * 514229 % 2**20).float() / 2**20
        images = ((self.pattern * 40 + 60 * phase[:, None, None, None]).sin() + 1) / 2
        return Batch(indices, images, indices % CLASSES)


def measure(count: int, size: int) -> tuple[dict[str, object], float]:
    """The line of a case, and by how many MiB the process grew for ours."""
    torch.manual_seed(0)
    head, images = nn.Linear(3 * SIDE * SIDE, CLASSES), Generated(count)
    head.weight.data *= 20  # answers that differ
    model = nn.Sequential(nn.Flatten(), head).eval()

    def ours() -> Tensor:
        scored = (predict_batch(model, batch) for batch in read_batches(images))
        return select_images(scored, strategy="low-entropy", size=size, quota=None, classes=CLASSES, generator=seeded(0, "sample")).indices

    def rival() -> Tensor:
        with torch.no_grad():
            return torch.cat([output_entropy(model(batch.images)) for batch in read_batches(images)]).argsort(stable=True)[:size]

    def floor() -> None:
        with torch.no_grad():
            for batch in read_batches(images):
                model(batch.images)

    works: dict[str, Callable[[], object]] = {"ours": ours, "rival": rival, "floor": floor}
    turns = in_turns(works, 0)
    first, second = turns["ours"].result, turns["rival"].result
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    found = line("sample", f"{count} images", turns, rival="all entropies, sorted", agrees=torch.equal(first, second))
    return found, turns["ours"].peak_mib


def main() -> None:
    parser = command_line(__doc__, ())
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--size", type=int, default=100, help="images to choose")
    options = parser.parse_args()
    measure(1000, options.size)  # what the libraries take at their first use
    smallest = None
    for count in sorted(options.counts):
        found, peak = measure(count, options.size)
        smallest = peak if smallest is None else smallest
        show(found | {"growth_mib": peak - smallest}, options.json)


if __name__ == "__main__":
    main()
