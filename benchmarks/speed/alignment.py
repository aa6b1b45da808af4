"""One step of right-reasons fine-tuning, beside a plain step (cross-entropy and Adam) on as many images, which is its floor.

EfficientNet-Lite0 (timm) at 128 pixels, random weights, fixed statistics; every image has a spurious rectangle. ``default`` is the default term, of
which nothing else is known to have the same; ``published`` is the squared gradient of the log-probabilities inside the mask, on one image for four
ordinary ones. Its rival is the same loss in torch's own convolutions, without the product's gradient for grouped ones. ``agrees``: the gradients of
all weights are the rival's to 1e-3 of the largest; by default, that the step without a term has the plain step's.

    python benchmarks/speed/alignment.py [--cases default published] [--images 32] [--rounds 5] --json
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.attribution import CASES as NETWORKS
from benchmarks.speed.attribution import draw, prepare
from benchmarks.speed.turns import command_line, in_turns, line, show

from rightreasons.common.seeds import seeded
from rightreasons.config import AlignConfig
from rightreasons.data.loading import Batch
from rightreasons.repair.align import AlignLoss, AlignmentSet, split_batch

SIDE = 128
# The published loss has one alignment image for four ordinary ones.
CASES = {"default": {}, "published": {"term": "penalty", "penalty": "log_prob_sum", "ratio": 0.2, "lambda": 1.0}}


def inspected(count: int) -> AlignmentSet:
    images = draw(count, SIDE, 1)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for row in range(count):
        masks[row, 4 * (row % 8) : 4 * (row % 8) + 32, 8:48] = True
    return AlignmentSet(Batch(torch.arange(count), images, torch.arange(count) % 2), masks, torch.zeros_like(masks))


def published(model: nn.Module, batch: Batch, masks: Tensor, part: int) -> Tensor:
    """The published loss, written down with torch alone."""
    leaf = batch.images[-part:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).log_softmax(1).sum(), leaf, create_graph=True)
    penalty = (gradient * masks[-part:, None]).square().sum((1, 2, 3)).mean()
    return F.cross_entropy(model(batch.images), batch.labels) + penalty


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss(), list(model.parameters()))])


def measure(name: str, count: int, rounds: int) -> dict[str, object]:
    model = prepare(NETWORKS["efficientnet-lite0"]).requires_grad_(True)
    alignment = inspected(count)
    batch, config = alignment.batch, AlignConfig(batch_size=count, **CASES[name])
    part = split_batch(config)[0]
    term, none = (AlignLoss(model, alignment, wanted, part=part) for wanted in (config, config.model_copy(update={"term": "none"})))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    ours = lambda: term(batch, seeded(0, "benchmark"))  # noqa: E731
    plain = lambda: F.cross_entropy(model(batch.images), batch.labels)  # noqa: E731
    rival = lambda: published(model, batch, alignment.masks, part)  # noqa: E731
    pair = (ours, rival) if name == "published" else (lambda: none(batch, seeded(0, "benchmark")), plain)
    first, second = (gradients(model, loss) for loss in pair)
    agrees = bool((first - second).abs().max() < 1e-3 * second.abs().max())
    works: dict[str, Callable[[], object]] = {"ours": lambda: step(ours), "floor": lambda: step(plain)}
    if name == "published":
        works["rival"] = lambda: step(rival)
    words = "the same loss by torch alone" if name == "published" else "none has this term"
    return line("align", f"{name} loss, {count} images at {SIDE}", in_turns(works, rounds), rival=words, agrees=agrees)


def main() -> None:
    parser = command_line(__doc__, CASES)
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.cases:
        show(measure(name, options.images, options.rounds), options.json)


if __name__ == "__main__":
    main()
