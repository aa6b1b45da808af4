"""Spread the verdicts on a hundred inspected images to the whole training set, by a linear probe on the model's own features of places.

A model that leans on a shortcut has features for it. A logistic regression on one cell's features, trained on the pixels that were judged
(spurious against relevant, and against images in which nothing is spurious), finds the same thing in images that nobody inspected
(docs/method.md, eq. 12). Cross-validation over the inspected images says whether it can, and which of a network's maps or token grids tells it best;
if none does, nothing is spread.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.memory import BATCH_BYTES, how_many
from rightreasons.common.progress import Advance
from rightreasons.data.loading import Batch, count_images
from rightreasons.networks.logistic import fit_logistic
from rightreasons.networks.places import NotReached, Places, find_places
from rightreasons.networks.team import map_batches

# Of convolutions, the probe reads the deepest map with at least this many cells a side: fine enough to point, deep enough to recognise. Scores of a
# coarser map or token grid are interpolated to as many, so that the margin around what is marked is as wide on the image.
FEWEST_CELLS = 24
# A grid with fewer cells a side points at nothing.
COARSEST = 7
# How many depths of a transformer are tried. Its grid stays the same, so that depth is all that differs.
DEPTHS = 4
# The cells of a finer map are averaged to at most this many a side, since features and scores of all images are kept.
MOST_CELLS = 64
LARGEST_BATCH = 64
# The share of cells that the probe may mark wrongly in images with nothing spurious; its threshold is set to meet it.
FALSE_SHARE = 0.01
# Cross-validated, the probe must mark at least this share of the spurious cells of images that it was not trained on.
LEAST_RECALL = 0.15
# At least this many inspected images with something spurious, and as many without, are needed to learn and to cross-validate.
FEWEST_IMAGES = 4
# Marks that are smaller than this share of the usual area are chance: a stray cell would count as the whole shortcut.
LEAST_AREA = 1 / 3
WEIGHT_DECAY = 1e-3
# The score of a cell that is not marked in any case.
NOTHING = -1e3
FOLDS = 2
# Where a verdict says what is spurious, the probe's marks count up to this many cells from it: it also marks cells that merely see the shortcut.
NEAR_CELLS = 2


@dataclass(frozen=True)
class Spread:
    """The probe's scores of the cells of every training image, and its cross-validated ``recall`` of spurious cells.

    ``score`` computes the scores of images outside the training set. ``precision`` is the share, of the inspected images in which a probe marks
    something that was not trained on them, of those with something spurious; None if it marks nothing.
    """

    scores: Float[Tensor, "image row column"]
    recall: float
    score: Callable[[Float[Tensor, "image channel height width"]], Float[Tensor, "image row column"]] | None = None
    precision: float | None = None

    @property
    def marked(self) -> Bool[Tensor, " image"]:
        """The training images in which something looks spurious."""
        return (self.scores > 0).flatten(1).any(1)

    def masks(self, indices: Int[Tensor, " chosen"], side: tuple[int, int]) -> Bool[Tensor, "chosen height width"]:
        """The pixels of these images that look like what was judged spurious."""
        return _enlarge(self.scores[indices], side)

    def sharpen(self, masks: Bool[Tensor, "image height width"], indices: Int[Tensor, " image"]) -> Bool[Tensor, "image height width"]:
        """What was judged spurious in these training images, cut out by the probe: its marks beside a verdict, or the mask where there are none.

        Marks further away are left out. A feature sees much more than its cell, so that a probe may mark the object beside the shortcut; pasted
        into other images with the shortcut, the object would be taken for spurious as well.
        """
        grid = self.scores.shape[1:]
        touched = F.adaptive_max_pool2d(masks[:, None].float(), (grid[0], grid[1]))
        near = F.max_pool2d(touched, 2 * NEAR_CELLS + 1, stride=1, padding=NEAR_CELLS)
        side = (masks.shape[1], masks.shape[2])
        marked = self.masks(indices, side) & (F.interpolate(near, size=side)[:, 0] > 0)
        return torch.where(marked.flatten(1).any(1)[:, None, None], marked, masks)

    def find(self, images: Float[Tensor, "image channel height width"]) -> Bool[Tensor, "image height width"]:
        """The pixels of other images that look like what was judged spurious; no pixels if the probe was not kept."""
        side = (images.shape[2], images.shape[3])
        return torch.zeros(len(images), *side, dtype=torch.bool) if self.score is None else _enlarge(self.score(images), side)


def spread_verdicts(
    model: nn.Module,
    dataset: Dataset,
    inspected: Batch,
    spurious: Bool[Tensor, "inspected height width"],
    relevant: Bool[Tensor, "inspected height width"],
    clear: Bool[Tensor, " inspected"],
    *,
    progress: Advance | None = None,
) -> Spread | None:
    """Scores for every image of ``dataset``, in one forward pass; None if the model has no features of places, or not for all images, or they do
    not show the shortcut.

    ``clear`` are the images of which all was judged and nothing is spurious. One number per cell and image is kept.
    """
    with contextlib.suppress(NotReached):
        size = how_many(inspected.images[0].nbytes, BATCH_BYTES, LARGEST_BATCH)
        best = None
        for places in _candidates(find_places(model, inspected.images.shape[1:])):
            features = torch.cat([_read_features(model, places, images) for images in inspected.images.split(size)])
            cells = _label_cells(spurious, relevant, clear, features.shape[-2:])
            quality = _cross_validate(features, cells)
            if quality is not None and quality.recall >= (LEAST_RECALL if best is None else best.quality.recall):
                best = _Found(places, features, cells, quality)
        if best is None:
            return None
        probe = _fit(best.features, best.cells)
        usual = _usual_area(probe(best.features), best.cells)
        factor = math.ceil(FEWEST_CELLS / min(best.features.shape[-2:]))
        score = _Score(model, best.places, probe, LEAST_AREA * usual, factor)
        count, done = count_images(dataset), 0
        grid = [side * factor for side in best.features.shape[-2:]]
        scores = torch.full((count, *grid), NOTHING)
        for indices, found in map_batches(partial(_score_batch, score), dataset, batch_size=size):
            scores[indices] = found
            done += len(indices)
            if progress is not None:
                progress(done, count)
        return Spread(scores, best.quality.recall, score, best.quality.precision)
    return None


def _score_batch(score: _Score, batch: Batch) -> tuple[Int[Tensor, " image"], Float[Tensor, "image row column"]]:
    return batch.indices, score(batch.images)


# Images and several masks of each, to features of the marked pixels.
Pool = Callable[[Float[Tensor, "image channel height width"], Bool[Tensor, "image mask height width"]], Float[Tensor, "image mask feature"]]


def open_features(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> Pool | None:
    """A function of images and several masks of each that gives the model's own features of the marked pixels, less those of the whole image.

    They are means over the cells of the deepest places that the probe may read. None if the model has no such places for ``images``, some of those
    that the function will be given: where one of them does not reach the places, it raises NotReached.
    """
    candidates = _candidates(find_places(model, images.shape[1:]))
    if not candidates:
        return None

    def pool(
        images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image mask height width"]
    ) -> Float[Tensor, "image mask feature"]:
        maps = _read_features(model, candidates[-1], images)
        weights = F.adaptive_avg_pool2d(masks.float(), (maps.shape[2], maps.shape[3])).flatten(2)
        flat = maps.flatten(2)
        return weights @ flat.mT / weights.sum(2, keepdim=True).clamp_min(1e-12) - flat.mean(2)[:, None]

    return pool


def _enlarge(scores: Float[Tensor, "image row column"], side: tuple[int, int]) -> Bool[Tensor, "image height width"]:
    return F.interpolate(scores[:, None], size=side, mode="bilinear", align_corners=False)[:, 0] > 0


@dataclass(frozen=True)
class _Probe:
    """A linear score of each cell's features, above zero where the cell looks spurious."""

    mean: Float[Tensor, " feature"]
    deviation: Float[Tensor, " feature"]
    weight: Float[Tensor, " feature"]
    offset: float

    def __call__(self, maps: Float[Tensor, "image feature row column"]) -> Float[Tensor, "image row column"]:
        return ((maps.movedim(1, -1) - self.mean) / self.deviation) @ self.weight + self.offset


@dataclass(frozen=True)
class _Score:
    """The probe's scores of the cells of any images, ``factor`` times as fine as the features; fewer marked cells than ``fewest`` are chance."""

    model: nn.Module
    places: Places
    probe: _Probe
    fewest: Float[Tensor, ""]
    factor: int

    def __call__(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image row column"]:
        found = self.probe(_read_features(self.model, self.places, images))
        found[(found > 0).sum((1, 2)) < self.fewest] = NOTHING
        # A cell of which less than half is spurious was not learnt as such: half a cell more on each side, or the shortcut's edge would stay, and no
        # less than the least cell.
        fine = found[:, None] if self.factor == 1 else F.interpolate(found[:, None], scale_factor=self.factor, mode="bilinear", align_corners=False)
        margin = max(1, self.factor // 2)
        return F.max_pool2d(fine, 2 * margin + 1, stride=1, padding=margin)[:, 0]


@dataclass(frozen=True)
class _Cells:
    """The verdicts on each cell of the inspected images; most cells have none."""

    spurious: Bool[Tensor, "image row column"]
    relevant: Bool[Tensor, "image row column"]
    with_some: Bool[Tensor, " image"]
    clear: Bool[Tensor, " image"]

    def __getitem__(self, images: Bool[Tensor, " image"]) -> _Cells:
        return _Cells(self.spurious[images], self.relevant[images], self.with_some[images], self.clear[images])


def _label_cells(
    spurious: Bool[Tensor, "image height width"],
    relevant: Bool[Tensor, "image height width"],
    clear: Bool[Tensor, " image"],
    grid: torch.Size,
) -> _Cells:
    """A cell is spurious if most of it is. It is relevant if most of it is and none of it is spurious, or if its image is clear.

    Where something spurious is smaller than a cell, or lies across several, no cell is mostly spurious: then it is those with at least half as
    much of it as the one with most.
    """
    covered, kept = (F.adaptive_avg_pool2d(part.float(), (grid[0], grid[1])) for part in (spurious, relevant))
    some = spurious.flatten(1).any(1)
    most = covered.amax((1, 2), keepdim=True)
    enough = torch.where(most > 0.5, covered > 0.5, covered >= most / 2) & some[:, None, None]
    return _Cells(enough, (covered == 0) & ((kept > 0.5) | clear[:, None, None]), some, clear)


def _fit(maps: Float[Tensor, "image feature row column"], cells: _Cells) -> _Probe:
    """Logistic regression with both kinds of cells weighted alike; then the offset that lets FALSE_SHARE pass where nothing is spurious."""
    features = maps.movedim(1, -1)
    mean, deviation = features.mean((0, 1, 2)), features.std((0, 1, 2)) + 1e-6
    used = cells.spurious | cells.relevant
    x, y = (features[used] - mean) / deviation, cells.spurious[used].float()
    balance = torch.where(y > 0, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    weight, offset = fit_logistic(x, y, balance, WEIGHT_DECAY)
    probe = _Probe(mean, deviation, weight, 0.0)
    free = probe(maps[cells.clear]).flatten().sort().values
    # The threshold is never below the middle between the two kinds.
    threshold = max(free[min(len(free) - 1, round((1 - FALSE_SHARE) * len(free)))].item(), -offset.item())
    return replace(probe, offset=-threshold)


def _usual_area(scores: Float[Tensor, "image row column"], cells: _Cells) -> Float[Tensor, ""]:
    """How many cells are marked in an image with something spurious, by the median."""
    return (scores > 0).sum((1, 2))[cells.with_some].float().median()


@dataclass(frozen=True)
class _Quality:
    """What cross-validation measures, as ``Spread`` tells it."""

    recall: float
    precision: float | None


def _cross_validate(maps: Float[Tensor, "image feature row column"], cells: _Cells) -> _Quality | None:
    """In images on which the probe was not trained: the share of spurious cells found less the share of relevant cells marked; and the precision."""
    if min(int(cells.with_some.sum()), int(cells.clear.sum())) < FEWEST_IMAGES or not cells.spurious.any():
        return None
    fold = torch.empty(len(maps), dtype=torch.int64)
    for kind in (cells.with_some, cells.clear, ~(cells.with_some | cells.clear)):
        fold[kind] = torch.arange(int(kind.sum())) % FOLDS
    found, wrong, listed = [], [], torch.zeros(len(maps), dtype=torch.bool)
    for held_out in range(FOLDS):
        test = fold == held_out
        if not (cells[test].spurious.any() and cells[~test].spurious.any()):
            return None
        probe = _fit(maps[~test], cells[~test])
        marked = probe(maps[test]) > 0
        found.append(marked[cells[test].spurious].float().mean())
        wrong.append(marked[cells[test].relevant].float().mean())
        # As in ``_Score``, fewer marks than a part of the usual area are none.
        fewest = (LEAST_AREA * _usual_area(probe(maps[~test]), cells[~test])).clamp_min(1)
        listed[test] = marked.sum((1, 2)) >= fewest
    listed &= cells.with_some | cells.clear
    precision = float(cells.with_some[listed].float().mean()) if listed.any() else None
    return _Quality(float(torch.stack(found).mean() - torch.stack(wrong).mean()), precision)


@dataclass(frozen=True)
class _Found:
    """What cross-validation thinks of the probe at some places."""

    places: Places
    features: Float[Tensor, "image feature row column"]
    cells: _Cells
    quality: _Quality


def _candidates(found: list[Places]) -> list[Places]:
    """The places whose features are tried, in the order of their calls.

    Of convolutions the last that reads a map with at least FEWEST_CELLS a side; without one, the last of each coarser size. Of token grids, and of
    maps that only linear layers read, those at ``DEPTHS`` depths.
    """
    pointing = [places for places in found if min(places.grid) >= COARSEST]
    convolutions = [places for places in pointing if places.is_convolution]
    fine = [places for places in convolutions if min(places.grid) >= FEWEST_CELLS]
    chosen = fine[-1:] or list({places.grid: places for places in convolutions}.values())
    others = [places for places in pointing if not places.is_convolution]
    chosen += [others[math.ceil(len(others) * depth / DEPTHS) - 1] for depth in range(1, DEPTHS + 1)] if others else []
    return sorted({id(places): places for places in chosen}.values(), key=pointing.index)


def _read_features(
    model: nn.Module, places: Places, images: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image feature coarse_row coarse_column"]:
    """The features of places in each image, on the CPU and with at most ``MOST_CELLS`` cells a side."""
    return _coarsen(places.read(model, images)).cpu()


def _coarsen(maps: Float[Tensor, "image feature row column"]) -> Float[Tensor, "image feature coarse_row coarse_column"]:
    factor = math.ceil(max(maps.shape[-2:]) / MOST_CELLS)
    return maps if factor == 1 else F.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
