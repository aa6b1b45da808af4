"""The method, stage by stage. Read this page first.

    select_images -> attribute_images -> segment_heatmaps -> render_pictures -> consult_case (critique_image -> judge_critique, or
    judge_image in one call; as many times as there are votes) -> build_masks -> align_model

``find_shortcuts`` runs all of it up to the verdicts (``inspection`` has the stages that ask nobody), ``fix_shortcuts`` the rest; ``measure``
scores before and after. Each stage's result is saved in the run folder when it is whole, and read from there the next time: the same
call on the same folder goes on where it stopped. Nothing here sees groups or ground-truth masks: those are for ``measure`` alone.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from rightreasons import evaluate
from rightreasons.align import AlignmentSet, align_model
from rightreasons.answers import describe_input
from rightreasons.attribute import check_attribution
from rightreasons.class_order import order_outputs
from rightreasons.config import Config, match_descriptions, parse_config
from rightreasons.consult import AskLVLM, Case, Panel, consult_case
from rightreasons.controls import consult_control, control_rows, read_controls
from rightreasons.data.loading import count_images, read_all, read_batches, some_images
from rightreasons.data.manifest import describe_leaks, find_leaks, list_hashes
from rightreasons.descriptions import check_descriptions
from rightreasons.dispatch import count_workers, map_in_order
from rightreasons.inspection import Inspection, inspect_images, render_inspected, warn_of_lettering
from rightreasons.judge import read_examples
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger import Ledger
from rightreasons.lvlm.prices import Price
from rightreasons.mask import build_masks
from rightreasons.models import as_classifier, check_model, hash_weights, load_checkpoint, model_device, place_model, save_checkpoint, unwrap
from rightreasons.outcome import Coverage, RunOutcome, count_coverage, decide_outcome, explain_outcome
from rightreasons.progress import Reporter, Silent
from rightreasons.records import Attribution, ClassDescription, Control, Critique, Segmentation, Selection, Verdict
from rightreasons.runs import RunFolder, write_atomically
from rightreasons.seeds import seeded
from rightreasons.spread import spread_verdicts
from rightreasons.votes import Waiting, queue_verdicts

# Held-out images that tell the best epoch of fine-tuning.
EPOCH_HOSTS = 1000
# Held-out images into which judged-spurious segments are pasted, to see what that does to the answers.
SWAP_HOSTS = 1000


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
    cost_usd: float | None = None
    _flip_rates: dict[str, float | None] = field(default_factory=dict, repr=False)

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
        """Whether any segment was judged spurious; ``outcome`` tells whether that has an effect too."""
        return bool(self.masks.any())

    @property
    def coverage(self) -> Coverage:
        """How much of what was inspected was judged."""
        return count_coverage(self.segmentation, self.verdicts)

    @property
    def outcome(self) -> RunOutcome:
        """What the run came to."""
        return decide_outcome(self.coverage, self.flip_rate(self.model))

    def flip_rate(self, model: nn.Module) -> float | None:
        """How often pasting what was judged spurious changes an answer of ``model``; worked out once for the same weights and verdicts."""
        masks = self.masks
        marked = masks.flatten(1).any(1)
        if not marked.any():
            return None
        key = hashlib.sha256(hash_weights(model).encode() + masks.numpy().tobytes()).hexdigest()
        if key not in self._flip_rates:
            donors, seed = read_all(self.train, self.selection.indices[marked]), self.config.run.seed
            hosts = some_images(self.validation, SWAP_HOSTS, seeded(seed, "swap hosts"))
            self._flip_rates[key] = evaluate.swap_flip_rate(model, hosts, donors, masks[marked], seeded(seed, "swap donors"))
        return self._flip_rates[key]


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
    model = order_outputs(as_classifier(model), tuple(words), config.model.classes)
    check_classifier(model, train_set, tuple(words), config)
    lvlm.check()
    for note in check_descriptions(ordered):
        (reporter or Silent()).note(note)
    folder = RunFolder(Path(out))
    manifest = f"{type(train_set).__name__} of {count_images(train_set)}, model {hash_weights(model)}"
    folder.start(config, manifest=manifest, root=Path.cwd())
    record_manifest(folder, {"train": train_set, "validation": validation_set}, reporter or Silent())
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
    panel = Panel.of(config, lvlm, judge or lvlm, few_shot)
    first = next(read_batches(train, batch_size=2))
    model = place_model(model, first.images)
    reporter.note(describe_input(model, first.images))
    with folder.locked():
        found = inspect_images(config, folder, model, train, validation, [item.name for item in descriptions], reporter)
        if lvlm.address is not None:
            warn_of_lettering(found, reporter)
        render_inspected(found, reporter)
        ledger = Ledger(folder.ledger, retry_unknown=retry_unknown, price=prices or None, max_usd=max_usd)
        try:

            def criticise(row: int) -> tuple[list[Critique], list[Verdict]]:
                return consult(found, row, descriptions, panel, ledger.ask)

            workers = count_workers(lvlm, judge or lvlm)
            with reporter.stage("controls") as advance:
                tried = map_in_order(criticise, control_rows(lvlm), workers=workers, advance=advance, stop=ledger.stop)
            controls = read_controls(verdict for _, part in tried for verdict in part)
            _report_controls(controls, lvlm, reporter)
            with reporter.stage("judge") as advance:
                results = map_in_order(criticise, found.judged, workers=workers, advance=advance, stop=ledger.stop)
            calls, cached, cost = ledger.count("answered"), ledger.cached, ledger.cost_usd()
        finally:
            ledger.close()
        critiques = [critique for part, _ in results for critique in part]
        folder.save_controls(controls)
        folder.save_critiques(critiques)
        folder.save_verdicts([verdict for _, part in results for verdict in part])
        verdicts = folder.load_verdicts() or []
    run = Run(
        folder, config, model, descriptions, train, validation, lvlm.name, lvlm.simulated,
        found.selection, found.attribution, found.segmentation, critiques, verdicts, controls, panel.prompts,
        calls=calls, cached=cached, cost_usd=cost,
    )  # fmt: skip
    if run.queue:
        reporter.note(
            f"{len(run.queue)} of {found.segmentation.shares.gt(0).sum()} segments wait for a person: report.html lists them, most worth a look first"
        )
    reporter.note(f"{run.outcome}: {explain_outcome(run.coverage, run.flip_rate(model))}")
    return run


def record_manifest(folder: RunFolder, splits: Mapping[str, Dataset], reporter: Reporter) -> None:
    """Every image by its hash in manifest.jsonl, where that is not there yet; and a note where one image is in two splits."""
    listed = folder.load_manifest()
    if listed is None:
        with folder.locked(), reporter.stage("manifest") as advance:
            listed = list_hashes(splits, advance)
            folder.save_manifest(listed)
    leaks = find_leaks(listed)
    if leaks:
        reporter.note(describe_leaks(leaks, splits))


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
        if run.outcome == "shortcut found":
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


def _report_controls(controls: Sequence[Control], critic: LVLM, reporter: Reporter) -> None:
    """A note for each control that was failed, before any verdict is used."""
    for control in controls:
        if control.passed is False:
            reporter.note(f"{critic.name} fails the control {control.name!r}: it says {control.said}. Do not trust its verdicts unseen")


def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    return evaluate.predict_labels(model, read_batches(dataset)).correct.double().mean().item()


def _hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    order = torch.randperm(count_images(dataset), generator=seeded(seed, "hold out")).tolist()
    cut = max(1, len(order) // 10)
    return Subset(dataset, sorted(order[cut:])), Subset(dataset, sorted(order[:cut]))
