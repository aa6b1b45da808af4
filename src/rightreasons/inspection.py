"""What the critic is asked about: the stages that ask nobody, from the choice of images to the pictures of their segments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.answers import TRIED_IMAGES, Answers, check_chance, count_answers, describe_answers, judge_answers
from rightreasons.attribute import attribute_images
from rightreasons.config import Config, SegmentConfig
from rightreasons.controls import control_rows
from rightreasons.data.loading import Batch, check_labels, count_images, own_pixels, read_all, read_batches, some_images
from rightreasons.lettering import has_lettering
from rightreasons.lvlm import LVLM
from rightreasons.models import as_classifier, check_finite, model_device
from rightreasons.progress import Advance, Reporter
from rightreasons.records import Attribution, Pictures, Segmentation, Selection, Subject
from rightreasons.render import FIRST_STYLE, LONGEST, STYLE, render_pictures, to_bytes
from rightreasons.runs import RunFolder, write_bytes, write_text
from rightreasons.sample import select_images
from rightreasons.seeds import seeded
from rightreasons.segment import segment_heatmaps, smooth_heatmaps

# Past this median completeness error a note says so; rounding stays far below it.
WORST_COMPLETENESS_ERROR = 1e-2
# "auto": what won in docs/log.md. A network with convolutions has noisy heatmaps, and one without has none to smooth.
AUTO_SMOOTH = 0.035
AUTO_PEAK_SHARE = 0.15


@dataclass(frozen=True)
class Inspection:
    """What the critic is asked about: the stages before it, finished. ``judged`` has the rows of the images with segments."""

    folder: RunFolder
    images: Batch
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    subjects: list[Subject]
    judged: list[int]
    train: Dataset | None = None

    def image(self, row: int) -> Float[Tensor, "channel image_height image_width"]:
        """One image as it is shown to the critic: the file's own pixels, where the data set has files, or else the network's; one at a time."""
        if self.train is None or _picture_style(self.folder) == FIRST_STYLE:
            return self.images.images[row]
        own = own_pixels(self.train, int(self.images.indices[row]), LONGEST)
        return self.images.images[row] if own is None else own.float() / 255

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
    selection = folder.load_selection() or _select(model, train, validation, classes, config, folder, reporter)
    _report_answers(folder, classes, reporter)
    images = read_all(train, selection.indices)
    attribution = folder.load_attribution() or _attribute(model, train, images, config, folder, reporter)
    segmentation = folder.load_segmentation() or _segment(model, attribution, config, folder, reporter)
    _report_outcomes(segmentation, attribution, reporter)
    effect = shown_effect(model, attribution, segmentation, config.segment)
    subjects = [Subject(int(index), where, weight) for index, where, weight in zip(selection.indices, segmentation.segments, effect, strict=True)]
    judged = [row for row in range(len(selection)) if segmentation.count(row)]
    return Inspection(folder, images, selection, attribution, segmentation, subjects, judged, train)


def explain_images(
    model: nn.Module,
    images: Batch,
    train: Dataset,
    config: Config,
    *,
    most: int | None = None,
    progress: Advance | None = None,
) -> Attribution:
    """Heatmaps against the run's baselines, which are seeded training images, or ``most`` of them. The result is on the CPU.

    Raises ModelError where one is not finite.
    """
    device = model_device(model)
    baselines = some_images(train, config.attribute.baselines, seeded(config.run.seed, "baselines")).images[:most]
    chunk = None if config.attribute.chunk == "auto" else config.attribute.chunk
    found = attribute_images(model, images.images.to(device), baselines.to(device), method=config.attribute.method, chunk=chunk, progress=progress)
    check_finite(found.heatmaps.cpu(), images.images, images.indices, "effects of the pixels (the heatmap)")
    return Attribution(found.heatmaps.cpu(), found.targets.cpu(), found.completeness_error.cpu())


def segment_settings(model: nn.Module, config: SegmentConfig) -> tuple[float, float]:
    """``smooth`` and ``peak_share``, with "auto" resolved by whether the network has convolutions."""
    noisy = any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in model.modules())
    smooth = (AUTO_SMOOTH if noisy else 0.0) if config.smooth == "auto" else config.smooth
    return smooth, AUTO_PEAK_SHARE if config.peak_share == "auto" else config.peak_share


def shown_effect(
    model: nn.Module, attribution: Attribution, segmentation: Segmentation, config: SegmentConfig
) -> Float[Tensor, "image height width"]:
    """The positive effect that the segments were cut from, where the critic is shown it: what a verdict is about."""
    smooth, _ = segment_settings(model, config)
    return smooth_heatmaps(attribution.heatmaps, smooth).clamp_min(0) * segmentation.effect


def warn_of_lettering(found: Inspection, reporter: Reporter) -> None:
    """A note where inspected images seem to carry printed text, which may name a patient, before any of them is sent."""
    with reporter.stage("lettering") as advance:
        marked = []
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
        tried = some_images(train, TRIED_IMAGES, seeded(config.run.seed, "other inputs"))
        problems = judge_answers(model, answers, held_out, names, tried, order_is_stated=as_classifier(model).order is not None)
    folder.save_answers({"train": answers.counts, "validation": held_out.counts}, problems)
    folder.save_selection(selection)
    return selection


def _attribute(model: nn.Module, train: Dataset, images: Batch, config: Config, folder: RunFolder, reporter: Reporter) -> Attribution:
    with reporter.stage("attribute") as advance:
        attribution = explain_images(model, images, train, config, progress=advance)
    folder.save_attribution(attribution)
    return attribution


def _segment(model: nn.Module, attribution: Attribution, config: Config, folder: RunFolder, reporter: Reporter) -> Segmentation:
    smooth, peak_share = segment_settings(model, config.segment)
    with reporter.stage("segment") as advance:
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
    for batch in batches:
        check_labels(batch.labels, batch.indices, classes)
        yield batch
        done += len(batch)
        advance(done, count)
