"""What the critic is asked about: the stages that ask nobody, from the choice of images to the pictures of their segments."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.answers import TRIED_IMAGES, Answers, check_chance, count_answers, describe_answers, judge_answers
from rightreasons.attribute import attribute_images, part_size
from rightreasons.budget import KEPT_IMAGE_BYTES, release_memory
from rightreasons.config import Config, SegmentConfig
from rightreasons.controls import control_rows
from rightreasons.data.loading import Batch, StoredImages, check_labels, count_images, own_pixels, read_batches, some_images
from rightreasons.files import write_bytes, write_text
from rightreasons.lettering import has_lettering
from rightreasons.lvlm import LVLM
from rightreasons.models import as_classifier, check_finite, model_device
from rightreasons.progress import Advance, Reporter, describe_seconds
from rightreasons.records import Attribution, Pictures, Segmentation, Selection, Subject
from rightreasons.render import FIRST_STYLE, LONGEST, STYLE, render_pictures, to_bytes
from rightreasons.runs import RunFolder
from rightreasons.sample import select_images
from rightreasons.seeds import seeded
from rightreasons.segment import segment_heatmaps, smooth_heatmaps

# Past this median completeness error a note says so; rounding stays far below it.
WORST_COMPLETENESS_ERROR = 1e-2
# "auto": what won in docs/log.md. A network with convolutions has noisy heatmaps, and one without has none to smooth.
AUTO_SMOOTH = 0.035
AUTO_PEAK_SHARE = 0.15
# Heatmaps that take longer than this are told of before the work starts.
LONG_SECONDS = 300.0


@dataclass(frozen=True)
class Inspection:
    """What the critic is asked about: the stages before it, finished. ``smooth`` is the heatmaps' width as they were cut into segments."""

    folder: RunFolder
    images: StoredImages
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    smooth: float
    train: Dataset | None = None

    @property
    def judged(self) -> list[int]:
        """The rows of the images with segments."""
        return [row for row in range(len(self.selection)) if self.segmentation.count(row)]

    def subject(self, row: int) -> Subject:
        """One image as a simulated critic knows it."""
        effect = shown_effect(self.attribution, self.segmentation, self.smooth, row)
        return Subject(int(self.selection.indices[row]), self.segmentation.segments[row], effect)

    def image(self, row: int) -> Float[Tensor, "channel image_height image_width"]:
        """One image as it is shown to the critic: the file's own pixels, where the data set has files, or else the network's; one at a time."""
        if self.train is None or _picture_style(self.folder) == FIRST_STYLE:
            return self.images[row]
        own = own_pixels(self.train, int(self.images.indices[row]), LONGEST)
        return self.images[row] if own is None else own.float() / 255

    def shown(self, row: int) -> Int[Tensor, "height width"]:
        """Of each segment of one image the pixels that carry its effect, -1 elsewhere."""
        return torch.where(self.segmentation.effect[row], self.segmentation.segments[row], -1)

    def pictures(self, row: int) -> Pictures:
        """What the critic is shown of one image, drawn where it has not been."""
        return _draw(self, row)

    def rows(self, critic: LVLM) -> list[int]:
        """Whom ``consult`` is to be called with: the images with segments, and the controls, which have numbers below 0."""
        return [*self.judged, *control_rows(critic)]


def inspect_images(
    config: Config, folder: RunFolder, model: nn.Module, train: Dataset, validation: Dataset, classes: Sequence[str], reporter: Reporter
) -> Inspection:
    """The stages that ask nobody, up to the segments. In a folder in which they have finished they are read; ``folder`` is locked by the caller."""
    release_memory()
    selection = folder.load_selection() or _select(model, train, validation, classes, config, folder, reporter)
    _report_answers(folder, classes, reporter)
    images = StoredImages(train, selection.indices)
    attribution = folder.load_attribution() or _attribute(model, train, images, config, folder, reporter)
    folder.drop_attribution_parts()
    release_memory()
    segmentation = folder.load_segmentation() or _segment(model, attribution, config, folder, reporter)
    release_memory()
    _report_outcomes(segmentation, attribution, reporter)
    return Inspection(folder, images, selection, attribution, segmentation, segment_settings(model, config.segment)[0], train)


def explain_images(
    model: nn.Module, images: StoredImages, train: Dataset, config: Config, *, progress: Advance = lambda done, total: None
) -> Attribution:
    """Heatmaps against the run's baselines. The result is on the CPU."""
    return _join(list(explain_parts(model, images, read_baselines(model, train, config), config, progress=progress)))


def read_baselines(model: nn.Module, train: Dataset, config: Config, most: int | None = None) -> Float[Tensor, "baseline channel height width"]:
    """The run's baselines, which are seeded training images, or the first ``most`` of them, on the model's device."""
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
    """The heatmaps of a few images at a time, in order, from row ``first`` on: as many as are worth saving before the next are begun.

    Raises ModelError where one is not finite.
    """
    chunk = None if config.attribute.chunk == "auto" else config.attribute.chunk
    size = chunk or part_size(model, baselines[:1], config.attribute.method)
    for start in range(first, len(images), size):
        part = images[start : start + size]
        found = attribute_images(
            model,
            part.to(baselines.device),
            baselines,
            method=config.attribute.method,
            chunk=chunk,
            progress=lambda done, _, start=start: progress(start + done, len(images)),
        )
        check_finite(found.heatmaps.cpu(), part, images.indices[start : start + size], "effects of the pixels (the heatmap)")
        yield Attribution(found.heatmaps.cpu(), found.targets.cpu(), found.completeness_error.cpu())


def _join(parts: list[Attribution]) -> Attribution:
    """One attribution of all parts, which are let go of one by one."""
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
    """A note of how long the heatmaps of ``count`` images will take, if it is long: one image is explained on one baseline, and on two."""

    def seconds(some: Tensor) -> float:
        start = time.perf_counter()
        attribute_images(model, image.to(some.device), some, method=config.attribute.method)
        return time.perf_counter() - start

    one = seconds(baselines[:1])
    if one * count * len(baselines) < LONG_SECONDS:
        return
    # What comes once for an image, and the first pass's own cost, cancel out.
    each = max(seconds(torch.cat([baselines[:1]] * 2)) - seconds(baselines[:1]), one / 10)
    whole = each * count * len(baselines)
    if whole >= LONG_SECONDS:
        reporter.note(
            f"the heatmaps will take about {describe_seconds(whole)} on {baselines.device.type} ({count} images, {len(baselines)} baselines each): "
            "fewer [attribute] baselines, a smaller [sample] size or a GPU make it shorter. What is done is saved as it goes: it can be stopped"
        )


def segment_settings(model: nn.Module, config: SegmentConfig) -> tuple[float, float]:
    """``smooth`` and ``peak_share``, with "auto" resolved by whether the network has convolutions."""
    noisy = any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in model.modules())
    smooth = (AUTO_SMOOTH if noisy else 0.0) if config.smooth == "auto" else config.smooth
    return smooth, AUTO_PEAK_SHARE if config.peak_share == "auto" else config.peak_share


def shown_effect(attribution: Attribution, segmentation: Segmentation, smooth: float, row: int) -> Float[Tensor, "height width"]:
    """The positive effect that one image's segments were cut from, where the critic is shown it: what a verdict is about."""
    return smooth_heatmaps(attribution.heatmaps[row : row + 1], smooth)[0].clamp_min(0) * segmentation.effect[row]


def warn_of_lettering(found: Inspection, reporter: Reporter) -> None:
    """A note where inspected images seem to carry printed text, which may name a patient, before any of them is sent."""
    with reporter.stage("lettering") as advance:
        marked = []
        advance(0, len(found.judged))
        for done, row in enumerate(found.judged, start=1):
            if has_lettering(to_bytes(found.image(row))):
                marked.append(int(found.images.indices[row]))
            advance(done, len(found.judged))
    if marked:
        shown = ", ".join(map(str, marked[:5])) + (", ..." if len(marked) > 5 else "")
        reporter.note(
            f"{len(marked)} of {len(found.judged)} inspected images seem to have text burned into them (training images {shown}): see whether "
            f"it names a person before they are sent anywhere. It is a light look, which can be wrong both ways (docs/critic.md)"
        )


def render_inspected(found: Inspection, reporter: Reporter) -> None:
    """The pictures of each image that has segments, drawn where they have not been."""
    with reporter.stage("render") as advance:
        advance(0, len(found.judged))
        for done, row in enumerate(found.judged, start=1):
            found.pictures(row)
            advance(done, len(found.judged))


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
            model,
            _checked(read_batches(train), count, classes, advance),
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
        # Trained on these classes and on this input: nothing but the training itself can be at fault.
        problems = [words] if (words := check_chance(answers)) else []
    else:
        tried = some_images(train, TRIED_IMAGES, seeded(config.run.seed, "other inputs"), KEPT_IMAGE_BYTES)
        problems = judge_answers(model, answers, held_out, names, tried, order_is_stated=as_classifier(model).order is not None)
    folder.save_answers({"train": answers.counts, "validation": held_out.counts}, problems)
    folder.save_selection(selection)
    return selection


def _attribute(model: nn.Module, train: Dataset, images: StoredImages, config: Config, folder: RunFolder, reporter: Reporter) -> Attribution:
    with reporter.stage("attribute") as advance:
        first = sum(len(part.targets) for part in folder.load_attribution_parts())
        advance(first, len(images))
        baselines = read_baselines(model, train, config)
        release_memory()
        if first < len(images):
            _tell_long_work(model, images[first : first + 1], baselines, config, len(images) - first, reporter)
        for part in explain_parts(model, images, baselines, config, first=first, progress=advance):
            folder.save_attribution_part(part, first)
            first += len(part.targets)
        del baselines
        release_memory()
        attribution = _join(folder.load_attribution_parts())
    folder.save_attribution(attribution)
    return attribution


def _segment(model: nn.Module, attribution: Attribution, config: Config, folder: RunFolder, reporter: Reporter) -> Segmentation:
    smooth, peak_share = segment_settings(model, config.segment)
    with reporter.stage("segment") as advance:
        advance(0, len(attribution.heatmaps))
        segmentation = segment_heatmaps(
            attribution.heatmaps,
            components=config.segment.components,
            smooth=smooth,
            peak_share=peak_share,
            generator=seeded(config.run.seed, "segment"),
            progress=advance,
        )
    folder.save_segmentation(segmentation)
    return segmentation


def _report_answers(folder: RunFolder, names: Sequence[str], reporter: Reporter) -> None:
    """How often the classifier is right, and what is wrong with its answers; nothing of a run from before they were counted."""
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


def _draw(found: Inspection, row: int) -> Pictures:
    """The pictures of one image, from the run folder where they were drawn before."""
    folder = found.folder
    style = _picture_style(folder)
    paths = {kind: folder.pictures / f"{int(found.images.indices[row]):06d}-{kind}.png" for kind in ("clean", "contours", "map")}
    if all(path.exists() for path in paths.values()):
        return Pictures(**{kind: path.read_bytes() for kind, path in paths.items()}, style=style)
    drawn = render_pictures(found.image(row), found.shown(row), style)
    for kind, path in paths.items():
        write_bytes(path, getattr(drawn, kind))
    return drawn


def _picture_style(folder: RunFolder) -> str:
    """In which style a run's pictures are drawn, as it is kept beside them; those from before it was kept are of the first one."""
    path = folder.pictures / "style.txt"
    if path.exists():
        return path.read_text(encoding="utf-8")
    if any(folder.pictures.glob("*.png")):
        return FIRST_STYLE
    folder.pictures.mkdir(exist_ok=True, mode=0o700)
    write_text(path, STYLE)
    return STYLE


def _checked(batches: Iterable[Batch], count: int, classes: int, advance: Advance) -> Iterator[Batch]:
    """The batches, with word of progress. Raises DataError for a label that no class has."""
    done = 0
    advance(0, count)
    for batch in batches:
        check_labels(batch.labels, batch.indices, classes)
        yield batch
        done += len(batch)
        advance(done, count)
