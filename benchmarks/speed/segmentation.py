"""Fitting the segments' mixtures: our accelerated EM and pomegranate's weighted Gaussian mixture, in turns in one process, per image.

Heatmaps are drawn: bumps of all widths and directions, and noise of either sign; at 224 pixels under the Gaussian of ``smooth = "auto"`` for
convolutions. ``--heatmaps RUN/heatmaps.safetensors`` takes real ones, scaled to the case's size. The rival is given the weights M p_i that
docs/method.md has, the same means, and our first covariances. Two rows compare with pomegranate as it comes, whose rule of stopping looks at the sum
of log densities without the weights, so that it mostly stops after 2 to 20 steps and far from the optimum: once from one start, once with all that
segmenting takes in the product (its restarts, drawing them, assigning the pixels), where the rival has one fit. One row has the rival go on until its
objective is within 0.001 of ours from the same start, 100 steps at most.

Seconds are of processor time, on one thread. ``ratio`` is our time over the rival's, ``floor_ratio`` over one pass of EM over all pixels by torch.
``agrees``: our objective, sum_i p_i log sum_j pi_j N(z_i) at full resolution, is at least the rival's, less 0.001 for the row of equal objectives, in
the mean over the images; ``behind`` is the share of images where it is not. scikit-learn's mixtures take no weights.

    pip install pomegranate==1.1.2
    python benchmarks/speed/segmentation.py [--rounds 3] [--heatmaps FILE] --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.soak import resident_mib

from rightreasons.common.peak import measure_peak
from rightreasons.explain.em import expand_points
from rightreasons.explain.mixture import Mixture, coefficients, fit_mixture
from rightreasons.explain.segment import SMALLEST_VARIANCE, STILL, _fit, _pool, _pooled_grid, segment_heatmaps, smooth_heatmaps

COMPONENTS = 5
CASES = ((224, 16, 0.035), (28, 64, 0.0))
WITHIN = 0.001
MOST_STEPS = 100


@dataclass(frozen=True)
class Case:
    """Smoothed heatmaps, their positive effect's shares by pixel, pixel centres, and one start for each image."""

    name: str
    heatmaps: Tensor
    weights: Tensor
    points: Tensor
    means: Tensor


def draw_heatmaps(side: int, count: int) -> Tensor:
    """Five to nine bumps each, of a deviation of 2 to 15 % of the side in any direction, two of them negative, and noise."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid((torch.arange(side) + 0.5) / side, (torch.arange(side) + 0.5) / side, indexing="ij")
    heatmaps = 0.3 * torch.randn(count, side, side, generator=random)
    for heatmap in heatmaps:
        for number in range(int(torch.randint(5, 10, (1,), generator=random))):
            across, down, turn, wide, long, height = torch.rand(6, generator=random).tolist()
            cos, sin = math.cos(3 * turn), math.sin(3 * turn)
            a, b = (x - across) * cos + (y - down) * sin, (y - down) * cos - (x - across) * sin
            bump = (-((a / (0.02 + 0.13 * wide)) ** 2 + (b / (0.02 + 0.13 * long)) ** 2) / 2).exp()
            heatmap += (0.5 + height) * (-bump if number < 2 else bump)
    return heatmaps


def open_case(side: int, count: int, smooth: float, heatmaps: Path | None) -> Case:
    if heatmaps is None:
        raw, named = draw_heatmaps(side, count), "drawn heatmaps"
    else:
        from safetensors.torch import load_file

        stored, named = load_file(heatmaps)["heatmaps"].float(), f"heatmaps of {heatmaps.parent.name}"
        usable = stored[(stored.amax((1, 2)) > 0) & stored.isfinite().all(2).all(1)][:count]
        raw = F.interpolate(usable[:, None], size=(side, side), mode="bilinear")[:, 0]
    smoothed = smooth_heatmaps(raw, smooth)
    positive = smoothed.clamp_min(0).flatten(1)
    weights = positive / positive.sum(1, keepdim=True)
    middle = (torch.arange(side) + 0.5) / side
    points = torch.stack([part.flatten() for part in torch.meshgrid(middle, middle, indexing="xy")], 1)
    drawn = torch.multinomial(weights, COMPONENTS, generator=torch.Generator().manual_seed(1))
    return Case(f"{side} px, J = {COMPONENTS}, {len(raw)} {named}", smoothed, weights, points, points[drawn])


def measure_objective(mixture: Mixture, case: Case) -> Tensor:
    """Of each image, at full resolution."""
    return ((coefficients(mixture) @ expand_points(case.points).mT).logsumexp(1) * case.weights).sum(1)


def from_one_start(case: Case) -> Mixture:
    """As the product fits, pooled to its side, but from the case's start."""
    pooled = _pool(case.heatmaps).clamp_min(0).flatten(1)
    points = _pooled_grid(case.heatmaps.shape[1:])
    weights = pooled / pooled.sum(1, keepdim=True)
    return fit_mixture(weights, points, case.means, smallest_variance=SMALLEST_VARIANCE / len(points), tolerance=STILL)


def as_in_the_product(case: Case) -> Mixture:
    """The mixtures of ``segment``, with its restarts."""
    return _fit(case.heatmaps, None, COMPONENTS, 3, torch.Generator().manual_seed(0))


def open_rival(case: Case, row: int) -> Any:
    """pomegranate's mixture at the case's start for one image, and our first covariance."""
    from pomegranate.distributions import Normal  # pyright: ignore[reportMissingImports]
    from pomegranate.gmm import GeneralMixtureModel  # pyright: ignore[reportMissingImports]

    weights, points = case.weights[row], case.points
    variance = (weights @ points.square() - (weights @ points).square()).mean() / COMPONENTS + SMALLEST_VARIANCE / len(points)
    normals = [Normal(mean.clone(), variance * torch.eye(2)) for mean in case.means[row]]
    return GeneralMixtureModel(normals, priors=torch.full((COMPONENTS,), 1 / COMPONENTS))


def read_rival(mixture: Any) -> Mixture:
    means, covariances = (torch.stack([getattr(normal, name).detach() for normal in mixture.distributions])[None] for name in ("means", "covs"))
    return Mixture(mixture.priors.detach()[None], means, covariances, torch.zeros(1))


def objective_of(case: Case, row: int, mixture: Any) -> float:
    alone = replace(case, weights=case.weights[row : row + 1])
    return measure_objective(read_rival(mixture), alone).item()


def fit_rival(case: Case) -> tuple[float, Tensor]:
    """Seconds for all images, and the objectives reached, as pomegranate comes."""
    seconds, reached = 0.0, []
    for row in range(len(case.weights)):
        mixture = open_rival(case, row)
        seconds += timed(lambda: mixture.fit(case.points, sample_weight=(len(case.points) * case.weights[row])[:, None]))  # noqa: B023
        reached.append(objective_of(case, row, mixture))
    return seconds, torch.tensor(reached)


def fit_rival_up_to(case: Case, wanted: Tensor) -> tuple[float, Tensor]:
    """Seconds until the rival has the objectives wanted, or has made its most steps, and the objectives. Measuring them is not counted."""
    seconds, reached = 0.0, []
    for row, goal in enumerate(wanted.tolist()):
        mixture, weights = open_rival(case, row), (len(case.points) * case.weights[row])[:, None]
        found = -math.inf
        for _ in range(MOST_STEPS):
            seconds += timed(lambda: (mixture.summarize(case.points, sample_weight=weights), mixture.from_summaries()))  # noqa: B023
            found = objective_of(case, row, mixture)
            if found >= goal - WITHIN:
                break
        reached.append(found)
    return seconds, torch.tensor(reached)


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def one_pass(case: Case) -> None:
    """A step of EM over all pixels: densities, responsibilities and moments."""
    basis = expand_points(case.points).mT
    densities = torch.zeros(len(case.weights), COMPONENTS, len(basis))
    for row, weights in enumerate(case.weights):
        densities[row] = (densities[row] @ basis).softmax(0).mul_(weights) @ basis.mT


def measure(case: Case, rounds: int, few: int) -> Iterator[dict[str, object]]:
    """Ours and the rival in turns; medians over the rounds, seconds an image."""
    has_rival = importlib.util.find_spec("pomegranate") is not None
    count = len(case.weights)
    alone, whole, theirs, passes = [], [], [], []
    segment = lambda: segment_heatmaps(case.heatmaps, components=COMPONENTS, generator=torch.Generator().manual_seed(0))  # noqa: E731
    first, best = measure_objective(from_one_start(case), case), measure_objective(as_in_the_product(case), case)
    rival = None
    for _ in range(rounds):
        alone.append(timed(lambda: from_one_start(case)) / count)
        whole.append(timed(segment) / count)
        passes.append(timed(lambda: one_pass(case)) / count)
        if has_rival:
            seconds, rival = fit_rival(case)
            theirs.append(seconds / count)
    floor, rival_s = statistics.median(passes), statistics.median(theirs) if theirs else None
    mib = {"ours": growth(segment), "rival": growth(lambda: fit_rival(replace(case, weights=case.weights[:1]))) if has_rival else None}
    named = "pomegranate as it comes, one start"
    yield line(f"one start, {case.name}", statistics.median(alone), rival_s, named, floor, mib, first, rival)
    yield line(f"segment with 3 restarts, {case.name}", statistics.median(whole), rival_s, named, floor, mib, best, rival)
    if has_rival:
        part = replace(case, weights=case.weights[:few], means=case.means[:few])
        seconds, reached = fit_rival_up_to(part, first[:few])
        yield line(
            f"one start, equal objectives, {case.name}, the rival's first {few}", statistics.median(alone), seconds / few,
            f"pomegranate until within {WITHIN} of ours, {MOST_STEPS} steps at most", floor, mib, first[:few] + WITHIN, reached,
        )  # fmt: skip


def growth(work: Callable[[], object]) -> float | None:
    """MiB by which the process's memory grows at most."""
    before = resident_mib()
    with measure_peak() as peak:
        work()
    return None if peak.resident is None else max(0.0, peak.resident / 2**20 - before)


def line(
    case: str, ours: float, rival_s: float | None, rival: str, floor: float, mib: dict[str, float | None], reached: Tensor, theirs: Tensor | None
) -> dict[str, object]:
    return {
        "stage": "segment", "case": case, "ours_s": ours, "rival_s": rival_s, "rival": rival, "ratio": rival_s and ours / rival_s, "floor_s": floor,
        "floor_ratio": ours / floor, "ours_mib": mib["ours"], "rival_mib": mib["rival"],
        "agrees": theirs is None or bool(reached.mean() >= theirs.mean()), "objective": reached.mean().item(),
        "rival_objective": None if theirs is None else theirs.mean().item(),
        "behind": None if theirs is None else (reached < theirs).float().mean().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few", type=int, default=4, help="images on which the rival goes on until its objective equals ours")
    parser.add_argument("--side", type=int, choices=[side for side, _, _ in CASES], help="one of the cases alone")
    parser.add_argument("--heatmaps", type=Path, help="a run's heatmaps.safetensors in place of drawn ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for side, count, smooth in CASES:
        if options.side in (None, side):
            for result in measure(open_case(side, count, smooth, options.heatmaps), options.rounds, options.few):
                print(json.dumps(result) if options.json else "\n".join(f"{key:16} {value}" for key, value in result.items()) + "\n", flush=True)


if __name__ == "__main__":
    main()
