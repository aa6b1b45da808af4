"""The suspects' list: every training image, and where the shortcut lies in it, how likely, and how strongly the model's answer depends on it.

In an inspected image the verdicts say where; in the others the probe of ``repair.propagate`` does, if it can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rightreasons.common.progress import Reporter
from rightreasons.critic.critique import describe_positions
from rightreasons.data.loading import Batch, read_all, read_batches
from rightreasons.data.names import list_names
from rightreasons.errors import ConfigError
from rightreasons.explain.evidence import read_baselines
from rightreasons.networks.classifier import model_device
from rightreasons.records import Value, settle_verdicts
from rightreasons.repair.propagate import Spread, spread_verdicts
from rightreasons.run import Run

# The shortcut is replaced by what these many training images have at its place, and the answers are averaged.
REPLACEMENTS = 4


@dataclass(frozen=True)
class Segment:
    """A judged segment of an inspected image, with its pixels; ``name`` is "S1", "S2", ..., or None for what a person has painted."""

    name: str | None
    value: Value
    mask: Bool[Tensor, "height width"]


@dataclass(frozen=True)
class Suspect:
    """One training image. The box is in shares of the image's width and height, and None where nothing is marked.

    ``probability`` is the probe's, of its most suspicious cell: 0.5 is where a mark begins; None where nothing could be spread.
    ``strength`` is by how much the probability of the model's answer falls, 0 to 1 or below 0 where it rises, if the marked pixels are replaced.
    ``found_by`` is "verdict" for an inspected image with something spurious, "spread" for another image in which the probe marks something.
    """

    image: int
    filepath: str
    label: str | None
    found_by: str | None = None
    probability: float | None = None
    strength: float | None = None
    predicted: str | None = None
    place: str | None = None
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    area: float | None = None


@dataclass(frozen=True)
class Marked:
    """A suspect with its pixels, and with its segments if it was inspected."""

    suspect: Suspect
    mask: Bool[Tensor, "height width"]
    segments: Sequence[Segment] = field(default_factory=tuple)


@dataclass(frozen=True)
class SuspectList:
    """The suspects of a run, read image by image, and the cross-validated ``recall`` of the probe, None if nothing could be spread."""

    run: Run
    spread: Spread | None
    names: list[str]
    labels: Mapping[int, int]

    @property
    def recall(self) -> float | None:
        """The share of spurious cells that the probe finds in images that it was not trained on, less the share that it marks wrongly."""
        return None if self.spread is None else self.spread.recall

    @property
    def precision(self) -> float | None:
        """Of the inspected images in which a probe marks something that was not trained on them, the share with something spurious."""
        return None if self.spread is None else self.spread.precision

    @property
    def judged(self) -> int:
        """How many inspected images have something that was judged spurious."""
        return int(self.run.masks.flatten(1).any(1).sum())

    @property
    def chosen(self) -> Int[Tensor, " suspect"]:
        """The images in which something is marked, in order; of inspected images those with something spurious."""
        marked = torch.zeros(len(self.names), dtype=torch.bool)
        if self.spread is not None:
            marked = (self.spread.scores > 0).flatten(1).any(1)
        marked[self.run.selection.indices] = self.run.masks.flatten(1).any(1)
        return marked.nonzero()[:, 0]

    def marked(self) -> Iterator[Marked]:
        """Every image in which something is marked. Few of them are in memory at a time."""
        run, classes = self.run, [item.name for item in self.run.descriptions]
        baselines = read_baselines(run.model, run.train, run.config, REPLACEMENTS)
        inspected = {index: row for row, index in enumerate(run.selection.indices.tolist())}
        masks = run.masks
        for batch in read_batches(run.train, indices=self.chosen):
            pixels = self._pixels(batch, inspected, masks)
            strength = measure_strength(run.model, batch.images, pixels, baselines)
            for place, (index, label) in enumerate(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True)):
                suspect = Suspect(
                    index,
                    self.names[index],
                    classes[label],
                    found_by="verdict" if index in inspected else "spread",
                    probability=self._probability(index),
                    strength=float(strength.fall[place]),
                    predicted=classes[int(strength.answers[place])],
                    **_describe_box(pixels[place]),
                )
                segments = tuple(_list_segments(run, inspected[index], masks[inspected[index]])) if index in inspected else ()
                yield Marked(suspect, pixels[place], segments)

    def unmarked(self, chosen: set[int]) -> Iterator[Suspect]:
        """Every other image; those that cannot be read are among them."""
        classes = [item.name for item in self.run.descriptions]
        for index, name in enumerate(self.names):
            if index not in chosen:
                label = self.labels.get(index)
                yield Suspect(index, name, None if label is None else classes[label], probability=self._probability(index))

    def _pixels(
        self, batch: Batch, inspected: Mapping[int, int], masks: Bool[Tensor, "inspected height width"]
    ) -> Bool[Tensor, "image height width"]:
        side = (batch.images.shape[2], batch.images.shape[3])
        pixels = torch.zeros(len(batch), *side, dtype=torch.bool) if self.spread is None else self.spread.masks(batch.indices, side)
        for place, index in enumerate(batch.indices.tolist()):
            if index in inspected:
                pixels[place] = masks[inspected[index]]
        return pixels

    def _probability(self, index: int) -> float | None:
        if self.spread is None:
            return None
        return round(1 / (1 + math.exp(-max(-500.0, float(self.spread.scores[index].max())))), 6)


def find_suspects(run: Run, reporter: Reporter) -> SuspectList:
    """Spreads the verdicts over the training set. Raises ConfigError if nothing is judged spurious, so that nobody is suspected of anything."""
    if not run.found:
        raise ConfigError(f"nothing is judged spurious in {run.folder.path}, so that there is nothing to look for in other images")
    with reporter.stage("spread") as advance:
        inspected = read_all(run.train, run.selection.indices)
        spread = spread_verdicts(run.model, run.train, inspected, run.masks, run.protected, run.clear, progress=advance)
    if spread is None:
        reporter.note(
            "the model's feature maps do not show the shortcut in images that were not inspected: the list has a place for the inspected images alone"
        )
    listed = run.folder.load_manifest() or []
    return SuspectList(run, spread, list_names(run.train), {line.index: line.label for line in listed if line.split == "train"})


@dataclass(frozen=True)
class Strength:
    """The model's answers, and by how much their probability falls if the marked pixels are replaced."""

    answers: Int[Tensor, " image"]
    fall: Float[Tensor, " image"]


def measure_strength(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    masks: Bool[Tensor, "image height width"],
    replacements: Float[Tensor, "replacement channel height width"],
) -> Strength:
    """p(answer | image) less its mean with the masked pixels of each replacement put in."""
    device = model_device(model)
    model.eval()
    with torch.no_grad():
        before = model(images.to(device)).softmax(1).cpu()
        answers = before.argmax(1)
        after = torch.zeros(len(images))
        for other in replacements.cpu():
            swapped = torch.where(masks[:, None], other, images)
            after += model(swapped.to(device)).softmax(1).cpu().gather(1, answers[:, None])[:, 0]
    return Strength(answers, before.gather(1, answers[:, None])[:, 0] - after / len(replacements))


def _describe_box(mask: Bool[Tensor, "height width"]) -> dict[str, Any]:
    """The place of a mask: its box in shares of the sides, its share of the area, and where its middle lies in words."""
    height, width = mask.shape
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    (place,) = describe_positions(torch.where(mask, 0, -1))
    box = {"x": left / width, "y": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
    return {**box, "area": float(mask.float().mean()), "place": place}


def _list_segments(run: Run, row: int, mask: Bool[Tensor, "height width"]) -> Iterator[Segment]:
    """The judged segments of an inspected image, and what a person has painted beside them. Those that are spurious make up its ``mask``."""
    index, segments = int(run.selection.indices[row]), run.segmentation.segments[row]
    rest = mask.clone()
    for (image, segment), verdict in settle_verdicts(run.verdicts).items():
        if image != index:
            continue
        pixels = segments == segment
        if run.config.align.mask == "effect":
            pixels = pixels & run.segmentation.effect[row]
        if verdict.value == "spurious":
            pixels = pixels & mask
            rest &= ~pixels
        if pixels.any():
            yield Segment(f"S{segment + 1}", verdict.value, pixels)
    if rest.any():
        yield Segment(None, "spurious", rest)
