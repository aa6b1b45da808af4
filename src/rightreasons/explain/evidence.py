"""The evidence that the critic is asked about: the stages from the choice of images to their segments, each saved as it finishes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.memory import KEPT_IMAGE_BYTES, release_memory
from rightreasons.common.progress import Advance, Reporter, describe_seconds
from rightreasons.common.seeds import seeded
from rightreasons.config import Config, SegmentConfig
from rightreasons.data.loading import StoredImages, check_labels, count_images, own_size, some_images
from rightreasons.data.names import list_names
from rightreasons.explain.attribute import attribute_images, part_size
from rightreasons.explain.given import GivenHeatmaps, GivenRegions, open_heatmaps, open_regions
from rightreasons.explain.sample import select_images
from rightreasons.explain.segment import segment_heatmaps, segment_regions, smooth_heatmaps
from rightreasons.explain.segmenters import Segmenter, open_segmenter
from rightreasons.networks.answers import TRIED_IMAGES, Answers, check_chance, count_answers, describe_answers, judge_answers
from rightreasons.networks.classifier import as_classifier, check_finite, model_device
from rightreasons.networks.predictions import Predictions, predict_batch
from rightreasons.networks.team import map_batches, map_shared, processes
from rightreasons.records import Attribution, Segmentation, Selection
from rightreasons.runs.folder import RunFolder

# Above this median completeness error a note says so; rounding stays far below it.
WORST_COMPLETENESS_ERROR = 1e-2
# The values of "auto", from the comparison in docs/log.md. A network with convolutions has noisy heatmaps; one without needs no smoothing.
AUTO_SMOOTH = 0.035
# If the heatmaps will take longer than this, a note says so before the work starts.
LONG_SECONDS = 300.0
# The stage that is named where the choice of images fails.
CHOICE = "training images, at the choice of images"


@dataclass(frozen=True)
class Evidence:
    """What the classifier relies on in the inspected images. ``smooth`` is the width of the Gaussian that smoothed heatmaps before they were cut."""

    images: StoredImages
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    smooth: float

    @property
    def examined(self) -> list[int]:
        """The rows of the images with segments."""
        return [row for row in range(len(self.selection)) if self.segmentation.count(row)]

    def shown_effect(self, row: int) -> Float[Tensor, "height width"]:
        """The positive effect of one image's segments, at the pixels that the critic is shown: a verdict is about this effect."""
        return shown_effect(self.attribution, self.segmentation, self.smooth, row)


def gather_evidence(
    config: Config,
    folder: RunFolder,
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    classes: Sequence[str],
    reporter: Reporter,
    *,
    root: Path,
) -> Evidence:
    """Runs the stages up to the segments, or loads those that ``folder`` has. The caller has locked the folder.

    ``root`` is where the configuration lies.
    """
    release_memory()
    # A segmenter that cannot be opened should stop the run before the heatmaps are made.
    cut = folder.load_segmentation() is not None
    segmenter = None if cut else open_segmenter(config.segment, root=root)
    regions = None if cut or config.segment.regions is None else open_regions(config.segment.regions, list_names(train), root=root)
    given = None if config.attribute.path is None or folder.load_attribution() else open_heatmaps(config.attribute.path, root=root)
    selection = folder.load_selection() or _select(model, train, validation, classes, config, folder, reporter)
    _report_answers(folder, classes, reporter)
    images = StoredImages(train, selection.indices)
    attribution = folder.load_attribution() or _attribute(model, train, images, given, config, folder, reporter)
    folder.drop_attribution_parts()
    release_memory()
    segmentation = folder.load_segmentation() or _segment(model, images, attribution, segmenter or regions, config, folder, reporter)
    release_memory()
    _report_outcomes(segmentation, attribution, reporter)
    return Evidence(images, selection, attribution, segmentation, smooth_width(model, config.segment))


def explain_images(
    model: nn.Module, images: StoredImages, train: Dataset, config: Config, *, progress: Advance = lambda done, total: None
) -> Attribution:
    """Heatmaps of images against the run's baselines, on the CPU."""
    return _join(list(explain_parts(model, images, read_baselines(model, train, config), config, progress=progress)))


def read_baselines(model: nn.Module, train: Dataset, config: Config, most: int | None = None) -> Float[Tensor, "baseline channel height width"]:
    """The run's baselines, a seeded choice of training images, or at most ``most`` of them, on the model's device."""
    count = config.attribute.baselines if most is None else min(most, config.attribute.baselines)
    return some_images(train, count, seeded(config.run.seed, "baselines")).images.to(model_device(model))


def explain_parts(
    model: nn.Module,
    images: StoredImages,
    baselines: Float[Tensor, "baseline channel height width"],
    config: Config,
    *,
    first: int = 0,
    progress: Advance = lambda done, total: None,
) -> Iterator[Attribution]:
    """Yields the heatmaps of a few images at a time, in order, from row ``first`` on. Each part is large enough to be worth saving.

    Raises ModelError if a heatmap is not finite.
    """
    chunk = None if config.attribute.chunk == "auto" else config.attribute.chunk
    # No larger than a process's share, so that none is without work.
    size = chunk or min(part_size(model, baselines[:1], config.attribute.computing), math.ceil((len(images) - first) / processes()))
    explain = partial(_explain_each, model, images, baselines, config, size)
    yield from map_shared(explain, range(first, len(images), size), here=partial(explain, progress=progress))


def _explain_each(
    model: nn.Module,
    images: StoredImages,
    baselines: Float[Tensor, "baseline channel height width"],
    config: Config,
    size: int,
    starts: Iterable[int],
    progress: Advance = lambda done, total: None,
) -> Iterator[Attribution]:
    """The heatmaps of ``size`` images from each of the rows ``starts`` on."""
    chunk = None if config.attribute.chunk == "auto" else config.attribute.chunk
    for start in starts:
        part = images[start : start + size]
        found = attribute_images(
            model,
            part.to(baselines.device),
            baselines,
            method=config.attribute.computing,
            chunk=chunk,
            progress=lambda done, _, start=start: progress(start + done, len(images)),
        )
        check_finite(found.heatmaps.cpu(), part, images.indices[start : start + size], "effects of the pixels (the heatmap)")
        yield Attribution(found.heatmaps.cpu(), found.targets.cpu(), found.completeness_error.cpu())


def _join(parts: list[Attribution]) -> Attribution:
    """Joins the parts into one attribution, and empties the list as it goes to save memory."""
    heatmaps = torch.empty(sum(len(part.targets) for part in parts), *parts[0].heatmaps.shape[1:])
    targets, errors, row = [], [], 0
    while parts:
        part = parts.pop(0)
        heatmaps[row : row + len(part.targets)] = part.heatmaps
        targets.append(part.targets)
        errors.append(part.completeness_error)
        row += len(part.targets)
    return Attribution(heatmaps, torch.cat(targets), torch.cat(errors))


def _tell_long_work(model: nn.Module, image: Tensor, baselines: Tensor, config: Config, count: int, reporter: Reporter) -> None:
    """Notes how long the heatmaps of ``count`` images will take, if long, by timing one image on one baseline and on two."""

    def seconds(some: Tensor) -> float:
        start = time.perf_counter()
        attribute_images(model, image.to(some.device), some, method=config.attribute.computing)
        return time.perf_counter() - start

    one = seconds(baselines[:1])
    if one * count * len(baselines) < LONG_SECONDS:
        return
    # In the difference, the cost of an image without its baselines and that of the first pass cancel out.
    each = max(seconds(torch.cat([baselines[:1]] * 2)) - seconds(baselines[:1]), one / 10)
    whole = each * count * len(baselines)
    if whole >= LONG_SECONDS:
        reporter.note(
            f"the heatmaps will take about {describe_seconds(whole)} on {baselines.device.type} ({count} images, {len(baselines)} baselines each): "
            "fewer [attribute] baselines, a smaller [sample] size or a GPU make it shorter. What is done is saved as it goes: it can be stopped"
        )


def smooth_width(model: nn.Module, config: SegmentConfig) -> float:
    """The width that heatmaps are smoothed by; "auto" depends on whether the network has convolutions."""
    noisy = any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in model.modules())
    return (AUTO_SMOOTH if noisy else 0.0) if config.smooth == "auto" else config.smooth


def shown_effect(attribution: Attribution, segmentation: Segmentation, smooth: float, row: int) -> Float[Tensor, "height width"]:
    """The positive effect of one image's segments, at the pixels that the critic is shown: a verdict is about this effect."""
    return smooth_heatmaps(attribution.heatmaps[row : row + 1], smooth)[0].clamp_min(0) * segmentation.effect[row]


def _select(
    model: nn.Module, train: Dataset, validation: Dataset, names: Sequence[str], config: Config, folder: RunFolder, reporter: Reporter
) -> Selection:
    count, classes, wanted = count_images(train), len(names), config.sample
    if wanted.size > count:
        reporter.note(f"[sample] size = {wanted.size} is more than the {count} training images: all of them are inspected")
    size = min(wanted.size, count)
    quota = wanted.per_class if isinstance(wanted.per_class, int) else math.ceil(size / classes) if wanted.per_class == "auto" else None
    answers = Answers.none(classes)
    with reporter.stage("sample") as advance:
        selection = select_images(
            _checked(map_batches(partial(predict_batch, model, stage=CHOICE), train), count, classes, advance),
            strategy=wanted.strategy,
            size=size,
            quota=quota,
            classes=classes,
            generator=seeded(config.run.seed, "sample"),
            answers=answers,
        )
    with reporter.stage("validate") as advance:
        held_out = count_answers(model, validation, classes, advance)
    if folder.trained_model.exists():
        # The run itself trained this model on these classes and this input, so only the training can be at fault.
        problems = [words] if (words := check_chance(answers)) else []
    else:
        tried = some_images(train, TRIED_IMAGES, seeded(config.run.seed, "other inputs"), KEPT_IMAGE_BYTES)
        problems = judge_answers(model, answers, held_out, names, tried, order_is_stated=as_classifier(model).order is not None)
    folder.save_answers({"train": answers.counts, "validation": held_out.counts}, problems)
    folder.save_selection(selection)
    return selection


def _attribute(
    model: nn.Module, train: Dataset, images: StoredImages, given: GivenHeatmaps | None, config: Config, folder: RunFolder, reporter: Reporter
) -> Attribution:
    with reporter.stage("attribute") as advance:
        if given is not None:
            attribution = given.read(model, images, list_names(train), reporter.note)
            folder.save_attribution(attribution)
            return attribution
        first = sum(len(part.targets) for part in folder.load_attribution_parts())
        advance(first, len(images))
        baselines = read_baselines(model, train, config)
        release_memory()
        if first < len(images):
            _tell_long_work(model, images[first : first + 1], baselines, config, math.ceil((len(images) - first) / processes()), reporter)
        for part in explain_parts(model, images, baselines, config, first=first, progress=advance):
            folder.save_attribution_part(part, first)
            first += len(part.targets)
        del baselines
        release_memory()
        attribution = _join(folder.load_attribution_parts())
    folder.save_attribution(attribution)
    return attribution


def _segment(
    model: nn.Module,
    images: StoredImages,
    attribution: Attribution,
    segmenter: Segmenter | GivenRegions | None,
    config: Config,
    folder: RunFolder,
    reporter: Reporter,
) -> Segmentation:
    smooth, peak_share = smooth_width(model, config.segment), config.segment.peak_share
    with reporter.stage("segment") as advance:
        advance(0, len(attribution.heatmaps))
        if segmenter is not None:
            assert config.segment.components != "auto"  # the configuration is refused
            if isinstance(segmenter, GivenRegions):
                size = (int(attribution.heatmaps.shape[1]), int(attribution.heatmaps.shape[2]))
                regions = (segmenter.cut(index, size, own_size(images.dataset, index)) for index in images.indices.tolist())
            else:
                regions = (segmenter(images[row : row + 1][0]) for row in range(len(images)))
            segmentation = segment_regions(
                attribution.heatmaps, regions, components=config.segment.components, smooth=smooth, peak_share=peak_share, progress=advance
            )
        else:
            segmentation = segment_heatmaps(
                attribution.heatmaps,
                images=images if config.segment.points == "place+colour" else None,
                components=config.segment.components,
                smooth=smooth,
                peak_share=peak_share,
                generator=seeded(config.run.seed, "segment"),
                progress=advance,
            )
    folder.save_segmentation(segmentation)
    return segmentation


def _report_answers(folder: RunFolder, names: Sequence[str], reporter: Reporter) -> None:
    """Notes how often the classifier is right and any problems of its answers; nothing for a run from before they were counted."""
    counts, problems = folder.load_answers()
    for split, table in counts.items():
        reporter.note(describe_answers(split, Answers(table), names))
    for problem in problems:
        reporter.note(problem)


def _report_outcomes(segmentation: Segmentation, attribution: Attribution, reporter: Reporter) -> None:
    for outcome in sorted(set(segmentation.outcomes) - {"segmented"}):
        reporter.note(f"{segmentation.outcomes.count(outcome)} of {len(segmentation.outcomes)} heatmaps have no segments ({outcome}): left out")
    worst = attribution.completeness_error.nanmedian().item()
    if worst > WORST_COMPLETENESS_ERROR:
        reporter.note(f"the heatmaps' completeness error is {worst:.1%} in the median: they explain the model only in part")


def _checked(batches: Iterable[Predictions], count: int, classes: int, advance: Advance) -> Iterator[Predictions]:
    """The batches, with progress reported. Raises DataError for a label that no class has."""
    done = 0
    advance(0, count)
    for batch in batches:
        check_labels(batch.labels, batch.indices, classes)
        yield batch
        done += len(batch)
        advance(done, count)
