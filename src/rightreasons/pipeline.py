"""The method, stage by stage. Read this page first.

    select_images -> attribute_images -> segment_heatmaps -> render_pictures -> consult_case (critique_image -> judge_critique, or
    judge_image in one call; as many times as there are votes) -> build_masks -> align_model

``find_shortcuts`` runs the first row, ``fix_shortcuts`` the second; ``measure`` scores before and after. Each stage's result
is saved in the run folder when it is whole, and read from there the next time: the same call on the same folder goes on where it
stopped. Nothing here sees groups or ground-truth masks: those are for ``measure`` alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from rightreasons import evaluate
from rightreasons.align import AlignmentSet, align_model
from rightreasons.attribute import attribute_images, check_attribution
from rightreasons.config import Config, SegmentConfig, match_descriptions, parse_config
from rightreasons.consult import AskLVLM, Case, Panel, consult_case
from rightreasons.controls import consult_control, control_rows, read_controls
from rightreasons.data.loading import Batch, count_images, read_all, read_batches, some_images
from rightreasons.descriptions import check_descriptions
from rightreasons.errors import DataError, LVLMError, LVLMUnavailable
from rightreasons.judge import read_examples
from rightreasons.lettering import has_lettering
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger import Ledger
from rightreasons.lvlm.prices import Price, dearest
from rightreasons.mask import build_masks
from rightreasons.models import as_classifier, check_model, hash_weights, load_checkpoint, model_device, place_model, save_checkpoint, unwrap
from rightreasons.progress import Advance, Reporter, Silent
from rightreasons.records import Attribution, ClassDescription, Control, Critique, Pictures, Segmentation, Selection, Subject, Verdict
from rightreasons.render import STYLE, render_pictures, to_bytes
from rightreasons.runs import RunFolder, write_atomically, write_bytes
from rightreasons.sample import select_images
from rightreasons.seeds import seeded
from rightreasons.segment import segment_heatmaps, smooth_heatmaps
from rightreasons.spread import spread_verdicts
from rightreasons.votes import Waiting, queue_verdicts

T = TypeVar("T")
# Past this median completeness error a note says so; rounding stays far below it.
WORST_COMPLETENESS_ERROR = 1e-2
# "auto": what won in docs/log.md. A network with convolutions has noisy heatmaps, and one without has none to smooth.
AUTO_SMOOTH = 0.035
AUTO_PEAK_SHARE = 0.15
# Held-out images that tell the best epoch of fine-tuning.
EPOCH_HOSTS = 1000


@dataclass
class Run:
    """A run in memory: what it works on, and what ``find_shortcuts`` found."""

    folder: RunFolder
    config: Config
    model: nn.Module
    descriptions: tuple[ClassDescription, ...]
    train: Dataset
    validation: Dataset
    lvlm_name: str
    simulated: bool
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    critiques: list[Critique]
    verdicts: list[Verdict]
    controls: list[Control] = field(default_factory=list)
    prompts: Mapping[str, str] = field(default_factory=dict)
    aligned: nn.Module | None = None
    calls: int = 0
    cached: int = 0

    @property
    def masks(self) -> Tensor:
        """The corrective masks, (image, height, width), with a person's verdicts first."""
        return build_masks(self.segmentation, self.selection, self.verdicts, kind=self.config.align.mask)

    @property
    def queue(self) -> list[Waiting]:
        """The segments that wait for a person, most worth a look first."""
        return queue_verdicts(self.verdicts, self.selection, self.segmentation)

    @property
    def found(self) -> bool:
        """Whether any segment was judged spurious."""
        return bool(self.masks.any())


@dataclass(frozen=True)
class Alignment:
    """What ``fix_shortcuts`` did: "aligned", "nothing to change" or "original kept", and validation accuracy before and after."""

    outcome: str
    validation_before: float
    validation_after: float


def find_shortcuts(
    model: nn.Module,
    train_set: Dataset,
    descriptions: Mapping[str, str | ClassDescription],
    *,
    lvlm: LVLM,
    out: str | Path,
    validation_set: Dataset | None = None,
    settings: Mapping[str, object] | None = None,
    retry_unknown: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Finds what ``model`` leans on in ``train_set``, and has every piece of it judged.

    Args:
        model: maps (batch, channel, height, width) to (batch, class) logits; it is moved to the best device, and not changed.
        train_set: any map-style dataset of (image, label); labels count from 0.
        descriptions: an expert's words for each class, in the order of the labels.
        lvlm: the critic and judge, from ``open_lvlm``.
        out: the run folder; the same call on it continues where it stopped.
        validation_set: held-out images for the harm guard; by default a tenth of ``train_set`` is kept back from fine-tuning.
        settings: tables of the configuration, such as ``{"sample": {"size": 50}}``.
        retry_unknown: ask again what a crash left unanswered; it may have been paid for.
        reporter: told of progress; silent by default.

    Raises RightReasonsError before any long work where an input cannot be used.

    """
    words = {name: text if isinstance(text, ClassDescription) else ClassDescription(name, text) for name, text in descriptions.items()}
    tables = {
        "data": {"path": type(train_set).__name__},
        "model": {"source": type(model).__name__},
        "classes": {name: {"description": item.description, "irrelevant": item.irrelevant} for name, item in words.items()},
        "critic": {"lvlm": lvlm.name},
    }
    config = parse_config({**tables, **(settings or {})}, source="settings")
    ordered = match_descriptions(words, tuple(words))
    if validation_set is None:
        train_set, validation_set = _hold_out(train_set, config.run.seed)
    model = as_classifier(model)
    check_classifier(model, train_set, tuple(words), config)
    lvlm.check()
    for note in check_descriptions(ordered):
        (reporter or Silent()).note(note)
    folder = RunFolder(Path(out))
    manifest = f"{type(train_set).__name__} of {count_images(train_set)}, model {hash_weights(model)}"
    folder.start(config, manifest=manifest, root=Path.cwd())
    return find(config, folder, model, train_set, validation_set, ordered, lvlm, retry_unknown=retry_unknown, reporter=reporter or Silent())


def find(
    config: Config,
    folder: RunFolder,
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    descriptions: tuple[ClassDescription, ...],
    lvlm: LVLM,
    *,
    judge: LVLM | None = None,
    examples: Path | None = None,
    retry_unknown: bool = False,
    prices: Mapping[str, Price] | None = None,
    max_usd: float | None = None,
    reporter: Reporter,
) -> Run:
    """The stages of ``find_shortcuts``, on inputs that were checked and in a run folder that was started."""
    few_shot = read_examples(examples, seeded(config.run.seed, "few-shot"))
    panel = Panel(lvlm, judge or lvlm, few_shot, config.critic.mode, config.critic.votes, config.run.seed)
    model = place_model(model, next(read_batches(train, batch_size=2)).images)
    with folder.locked():
        found = inspect_images(config, folder, model, train, len(descriptions), reporter)
        if lvlm.address is not None:
            warn_of_lettering(found, reporter)
        _render(found, reporter)
        price = dearest(prices.values()) if prices else None
        ledger = Ledger(folder.ledger, retry_unknown=retry_unknown, price=price, max_usd=max_usd)
        try:

            def criticise(row: int) -> tuple[list[Critique], list[Verdict]]:
                return consult(found, row, descriptions, panel, ledger.ask)

            with reporter.stage("judge") as advance:
                results = _map_in_order(criticise, found.rows(lvlm), workers=_workers(lvlm, judge or lvlm), advance=advance, stop=ledger.stop)
            calls, cached = ledger.count("answered"), ledger.cached
        finally:
            ledger.close()
        critiques = [critique for part, _ in results for critique in part if critique.index >= 0]
        controls = read_controls(verdict for _, part in results for verdict in part if verdict.index < 0)
        _report_controls(controls, lvlm, reporter)
        folder.save_controls(controls)
        folder.save_critiques(critiques)
        folder.save_verdicts([verdict for _, part in results for verdict in part if verdict.index >= 0])
        verdicts = folder.load_verdicts() or []
    run = Run(
        folder, config, model, descriptions, train, validation, lvlm.name, lvlm.simulated,
        found.selection, found.attribution, found.segmentation, critiques, verdicts, controls, panel.prompts,
        calls=calls, cached=cached,
    )  # fmt: skip
    if run.queue:
        reporter.note(
            f"{len(run.queue)} of {found.segmentation.shares.gt(0).sum()} segments wait for a person: report.html lists them, most worth a look first"
        )
    if not run.found:
        reporter.note("no shortcut found: no segment was judged spurious")
    return run


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

    def shown(self, row: int) -> Int[Tensor, "height width"]:
        """Of each segment of one image the pixels that carry its effect, -1 elsewhere."""
        return torch.where(self.segmentation.effect[row], self.segmentation.segments[row], -1)

    def pictures(self, row: int) -> Pictures:
        """What the critic is shown of one image, drawn where it has not been."""
        return _draw(self.images, self.shown(row), row, self.folder)

    def rows(self, critic: LVLM) -> list[int]:
        """Whom ``consult`` is to be called with: the images with segments, and the controls, which have numbers below 0."""
        return [*self.judged, *control_rows(critic)]


def inspect_images(config: Config, folder: RunFolder, model: nn.Module, train: Dataset, classes: int, reporter: Reporter) -> Inspection:
    """The stages that ask nobody, up to the segments. In a folder in which they have finished they are read; ``folder`` is locked by the caller."""
    selection = folder.load_selection() or _select(model, train, classes, config, folder, reporter)
    images = read_all(train, selection.indices)
    attribution = folder.load_attribution() or _attribute(model, train, images, config, folder, reporter)
    segmentation = folder.load_segmentation() or _segment(model, attribution, config, folder, reporter)
    _report_outcomes(segmentation, attribution, reporter)
    effect = shown_effect(model, attribution, segmentation, config.segment)
    subjects = [Subject(int(index), where, weight) for index, where, weight in zip(selection.indices, segmentation.segments, effect, strict=True)]
    judged = [row for row in range(len(selection)) if segmentation.count(row)]
    return Inspection(folder, images, selection, attribution, segmentation, subjects, judged)


def consult(
    found: Inspection, row: int, descriptions: Sequence[ClassDescription], panel: Panel, ask: AskLVLM
) -> tuple[list[Critique], list[Verdict]]:
    """The critic's words on one image, one critique a vote, and a verdict per segment; ``ask`` gives a model's answer to a request."""
    if row < 0:
        return consult_control(row, panel, ask)
    return consult_case(case_of(found, row, descriptions), panel, ask)


def case_of(found: Inspection, row: int, descriptions: Sequence[ClassDescription]) -> Case:
    """One inspected image as it is put to the critic."""
    shares = found.segmentation.shares[row, : found.segmentation.count(row)].tolist()
    label = int(found.selection.labels[row])
    return Case(found.images.images[row], found.shown(row), found.pictures(row), found.subjects[row], label, descriptions, shares)


def warn_of_lettering(found: Inspection, reporter: Reporter) -> None:
    """A note where inspected images seem to carry printed text, which may name a patient, before any of them is sent."""
    with reporter.stage("lettering") as advance:
        marked = []
        for done, row in enumerate(found.judged, start=1):
            if has_lettering(to_bytes(found.images.images[row])):
                marked.append(int(found.images.indices[row]))
            advance(done, len(found.judged))
    if marked:
        shown = ", ".join(map(str, marked[:5])) + (", ..." if len(marked) > 5 else "")
        reporter.note(
            f"{len(marked)} of {len(found.judged)} inspected images seem to have text burned into them (training images {shown}): see whether "
            f"it names a person before they are sent anywhere. It is a light look, which can be wrong both ways (docs/critic.md)"
        )


def fix_shortcuts(run: Run, *, reporter: Reporter | None = None) -> nn.Module:
    """A copy of the run's model, fine-tuned until it no longer uses what was judged spurious.

    The original comes back where nothing was judged spurious, or where validation accuracy would fall by more than
    ``align.max_accuracy_drop``; ``fix`` says which.
    """
    fix(run, reporter=reporter or Silent())
    assert run.aligned is not None  # fix sets it
    return unwrap(run.aligned)


def fix(run: Run, *, reporter: Reporter, out: Path | None = None) -> Alignment:
    """Fine-tunes into ``run.aligned``, and saves it as aligned.safetensors with the outcome in alignment.json.

    The same verdicts and settings are not worked on twice; other ones start afresh.
    """
    folder = RunFolder(out or run.folder.path)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    config, seed = run.config.align, run.config.run.seed
    described = f"{config!r} {seed} {hash_weights(run.model)} {count_images(run.train)}".encode()
    job = hashlib.sha256(described + run.masks.numpy().tobytes()).hexdigest()[:16]
    aligned = copy.deepcopy(run.model)
    with folder.locked():
        finished = folder.load_alignment(job)
        if finished is not None:
            load_checkpoint(aligned, folder.path / "aligned.safetensors")
            run.aligned = aligned
            return Alignment(**finished)
        folder.save_masks(run.masks)
        before = _accuracy(run.model, run.validation)
        result = Alignment("nothing to change", before, before)
        checkpoint = folder.path / f"aligning-{job}.pt"
        if run.found:
            align(aligned, run, judged_alignment(run, reporter), checkpoint=checkpoint, reporter=reporter)
            result = Alignment("aligned", before, _accuracy(aligned, run.validation))
            if before - result.validation_after > config.max_accuracy_drop:
                aligned, result = copy.deepcopy(run.model), replace(result, outcome="original kept")
                reporter.note(
                    f"the original model is kept: validation accuracy would fall from {before:.3f} to {result.validation_after:.3f}, more than "
                    f"[align] max_accuracy_drop = {config.max_accuracy_drop}. Look at the verdicts in report.html"
                )
        write_atomically(folder.path / "aligned.safetensors", lambda part: save_checkpoint(aligned, part))
        folder.save_alignment(job, vars(result))
        checkpoint.unlink(missing_ok=True)
    run.aligned = aligned
    return result


def align(model: nn.Module, run: Run, alignment: AlignmentSet, *, checkpoint: Path | None = None, reporter: Reporter) -> None:
    """Fine-tunes ``model`` in place with the run's settings, and chooses the epoch by held-out images with segments pasted in."""
    seed = run.config.run.seed
    hosts = some_images(run.validation, EPOCH_HOSTS, seeded(seed, "epoch hosts"))
    with reporter.stage("align") as advance:
        align_model(
            model,
            run.train,
            alignment,
            config=run.config.align,
            seed=seed,
            flips=run.config.data.flips,
            hosts=hosts,
            checkpoint=checkpoint,
            progress=advance,
        )


def judged_alignment(run: Run, reporter: Reporter) -> AlignmentSet:
    """The inspected images with what was judged spurious and relevant in them, spread to the other training images where that can be done."""
    relevant = build_masks(run.segmentation, run.selection, run.verdicts, kind="effect", value="relevant")
    return build_alignment(run, run.masks, relevant, reporter)


def build_alignment(
    run: Run, masks: Bool[Tensor, "image height width"], protected: Bool[Tensor, "image height width"], reporter: Reporter
) -> AlignmentSet:
    """The alignment set of the run's inspected images; for a term that swaps, the masks are spread to the other training images."""
    inspected, config = read_all(run.train, run.selection.indices), run.config.align
    spread = None
    if config.spread and (config.term == "auto" or "swap" in config.term):
        with reporter.stage("spread"):
            spread = spread_verdicts(run.model, run.train, inspected, masks, protected)
        if spread is None:
            reporter.note("the verdicts cannot be told from the model's features in other images: only the inspected images' masks are used")
        else:
            marked = int((spread.scores > 0).flatten(1).any(1).sum())
            reporter.note(f"the verdicts were spread: of {len(spread.scores)} training images {marked} have something that looks spurious")
    return AlignmentSet(inspected, masks, protected, spread)


def check_classifier(model: nn.Module, train: Dataset, classes: tuple[str, ...], config: Config) -> None:
    """Two images through the model. Raises ModelError unless its logits fit the classes, UnsupportedLayer where the attribution cannot explain it."""
    images = next(read_batches(train, batch_size=2)).images
    check_model(model, images, classes)
    if config.attribute.method == "deeplift-shap":
        check_attribution(model, images.to(model_device(model)))


def explain_images(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    train: Dataset,
    config: Config,
    *,
    most: int | None = None,
    progress: Advance | None = None,
) -> Attribution:
    """Heatmaps against the run's baselines, which are seeded training images, or ``most`` of them. The result is on the CPU."""
    device = model_device(model)
    baselines = some_images(train, config.attribute.baselines, seeded(config.run.seed, "baselines")).images[:most]
    chunk = None if config.attribute.chunk == "auto" else config.attribute.chunk
    found = attribute_images(model, images.to(device), baselines.to(device), method=config.attribute.method, chunk=chunk, progress=progress)
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


def _select(model: nn.Module, train: Dataset, classes: int, config: Config, folder: RunFolder, reporter: Reporter) -> Selection:
    count, wanted = count_images(train), config.sample
    if wanted.size > count:
        reporter.note(f"[sample] size = {wanted.size} is more than the {count} training images: all of them are inspected")
    size = min(wanted.size, count)
    quota = wanted.per_class if isinstance(wanted.per_class, int) else math.ceil(size / classes) if wanted.per_class == "auto" else None
    with reporter.stage("sample") as advance:
        selection = select_images(
            model,
            _checked(read_batches(train), count, classes, advance),
            strategy=wanted.strategy,
            size=size,
            quota=quota,
            classes=classes,
            generator=seeded(config.run.seed, "sample"),
        )
    folder.save_selection(selection)
    return selection


def _attribute(model: nn.Module, train: Dataset, images: Batch, config: Config, folder: RunFolder, reporter: Reporter) -> Attribution:
    with reporter.stage("attribute") as advance:
        attribution = explain_images(model, images.images, train, config, progress=advance)
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


def _report_outcomes(segmentation: Segmentation, attribution: Attribution, reporter: Reporter) -> None:
    for outcome in sorted(set(segmentation.outcomes) - {"segmented"}):
        reporter.note(f"{segmentation.outcomes.count(outcome)} of {len(segmentation.outcomes)} heatmaps have no segments ({outcome}): left out")
    worst = attribution.completeness_error.nanmedian().item()
    if worst > WORST_COMPLETENESS_ERROR:
        reporter.note(f"the heatmaps' completeness error is {worst:.1%} in the median: they explain the model only in part")


def _render(found: Inspection, reporter: Reporter) -> None:
    """The pictures of each image that has segments, drawn where they have not been."""
    with reporter.stage("render") as advance:
        for done, row in enumerate(found.judged, start=1):
            found.pictures(row)
            advance(done, len(found.judged))


def _draw(images: Batch, shown: Int[Tensor, "height width"], row: int, folder: RunFolder) -> Pictures:
    """The pictures of one image, from the run folder where they were drawn before."""
    folder.pictures.mkdir(exist_ok=True, mode=0o700)
    paths = {kind: folder.pictures / f"{int(images.indices[row]):06d}-{kind}.png" for kind in ("clean", "contours", "map")}
    if all(path.exists() for path in paths.values()):
        return Pictures(**{kind: path.read_bytes() for kind, path in paths.items()}, style=STYLE)
    drawn = render_pictures(images.images[row], shown)
    for kind, path in paths.items():
        write_bytes(path, getattr(drawn, kind))
    return drawn


def _report_controls(controls: Sequence[Control], critic: LVLM, reporter: Reporter) -> None:
    """A note for each control that was failed, before any verdict is used."""
    for control in controls:
        if control.passed is False:
            reporter.note(f"{critic.name} fails the control {control.name!r}: it says {control.said}. Do not trust its verdicts unseen")


def _map_in_order(
    function: Callable[[int], T], rows: Sequence[int], *, workers: int, advance: Advance, stop: Callable[[LVLMError], None] | None = None
) -> list[T]:
    """The results in the order of ``rows``, whatever order they finish in. The first error, in time, keeps what has not started from starting.

    ``stop`` is told of it, so that what has started asks for nothing new; its last requests are waited for.
    """
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, row) for row in rows]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                advance(done, len(rows))
        except BaseException:
            if stop is not None:
                stop(LVLMUnavailable("the run is stopping"))
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _workers(*lvlms: LVLM) -> int:
    """Threads for images: more than requests may be under way, since one that waits for another try has no request under way."""
    most = max(lvlm.concurrency[1] for lvlm in lvlms)
    return most if most == 1 else 2 * most


def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    return evaluate.predict_labels(model, read_batches(dataset)).correct.double().mean().item()


def _hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    order = torch.randperm(count_images(dataset), generator=seeded(seed, "hold out")).tolist()
    cut = max(1, len(order) // 10)
    return Subset(dataset, sorted(order[cut:])), Subset(dataset, sorted(order[:cut]))


def _checked(batches: Iterable[Batch], count: int, classes: int, advance: Advance) -> Iterator[Batch]:
    """The batches, with word of progress. Raises DataError for a label that no class has."""
    done = 0
    for batch in batches:
        wrong = ((batch.labels < 0) | (batch.labels >= classes)).nonzero()[:, 0]
        if len(wrong):
            index, label = int(batch.indices[wrong[0]]), int(batch.labels[wrong[0]])
            raise DataError(f"image {index} has the label {label}, and {classes} classes are described: labels count from 0 to {classes - 1}")
        yield batch
        done += len(batch)
        advance(done, count)
