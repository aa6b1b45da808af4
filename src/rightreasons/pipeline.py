"""The method, stage by stage. Read this page first.

    select_images -> attribute_images -> segment_heatmaps -> render_pictures -> consult_case (critique_image -> judge_critique, or
    judge_image in one call; as many times as there are votes) -> build_masks -> align_model

``find_shortcuts`` runs all of it up to the verdicts (``inspection`` has the stages that ask nobody), ``fix_shortcuts`` the rest; ``measure``
scores before and after. Each stage's result is saved in the run folder when it is whole, and read from there the next time: the same
call on the same folder goes on where it stopped. Nothing here sees groups or ground-truth masks: those are for ``measure`` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from rightreasons.align import AlignmentSet, align_model
from rightreasons.answers import describe_input
from rightreasons.budget import release_memory
from rightreasons.case import Case, Cases, warn_of_lettering
from rightreasons.class_order import order_outputs
from rightreasons.config import Config, merge_tables, parse_config
from rightreasons.consult import Panel, consult_case
from rightreasons.controls import controls_for, read_controls
from rightreasons.data.loading import check_labels, count_images, read_all, read_batches, some_images
from rightreasons.data.manifest import describe_leaks, find_leaks, list_hashes
from rightreasons.descriptions import check_descriptions
from rightreasons.dispatch import map_in_order
from rightreasons.errors import ConfigError
from rightreasons.files import write_atomically
from rightreasons.guard import find_harm, measure_held_out
from rightreasons.inspection import gather_evidence
from rightreasons.judge import read_examples
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.ledger import Ledger
from rightreasons.lvlm.prices import Price, required_price
from rightreasons.lvlm.throttle import count_workers
from rightreasons.mask import build_masks
from rightreasons.models import (
    Classifier,
    as_classifier,
    copy_model,
    hash_weights,
    load_checkpoint,
    place_model,
    save_checkpoint,
    unwrap,
)
from rightreasons.outcome import explain_outcome
from rightreasons.predictions import Predictions, predict_labels
from rightreasons.presets import Preset
from rightreasons.progress import Logged, Reporter
from rightreasons.records import ClassDescription, Control, Critique, HeldOut, Verdict
from rightreasons.rehearsal import rehearse
from rightreasons.run import Alignment, Run
from rightreasons.runs import RunFolder
from rightreasons.seeds import seeded
from rightreasons.spread import spread_verdicts

# Held-out images that tell the best epoch of fine-tuning.
EPOCH_HOSTS = 1000


def find_shortcuts(
    model: nn.Module,
    train_set: Dataset,
    descriptions: Mapping[str, str | ClassDescription],
    *,
    lvlm: LVLM,
    out: str | Path,
    judge: LVLM | None = None,
    validation_set: Dataset | None = None,
    preset: Preset | None = None,
    settings: Mapping[str, object] | None = None,
    retry_unknown: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Finds what ``model`` leans on in ``train_set``, and has every piece of it judged.

    Args:
        model: maps (batch, channel, height, width) to (batch, class) logits; it is moved to the best device, and not changed.
        train_set: any map-style dataset of (image, label): bytes of 0 to 255, floats in 0 to 1 or PIL pictures; labels count from 0.
        descriptions: an expert's words for each class, in the order of the labels.
        lvlm: the critic and judge, from ``open_lvlm``.
        judge: another model for the judge; default: the one that the settings name, or ``lvlm``.
        out: the run folder; the same call on it continues where it stopped.
        validation_set: held-out images for the harm guard; by default a tenth of ``train_set`` is kept back from fine-tuning.
        preset: the mean and deviation that ``model`` wants its images normalised with, unless it does that itself; images are given in 0 to 1.
        settings: tables of the configuration, such as ``{"sample": {"size": 50}, "critic": {"max_usd": 5}}``; paths start from the current folder.
        retry_unknown: ask again what a crash left unanswered; it may have been paid for.
        reporter: told of progress; by default notes are warnings of the logger "rightreasons".

    Raises RightReasonsError before any long work where an input cannot be used.

    """
    reporter = reporter or Logged()
    words = {name: text if isinstance(text, ClassDescription) else ClassDescription(name, text) for name, text in descriptions.items()}
    tables = {
        "data": {"path": type(train_set).__name__},
        "model": {"source": type(model).__name__},
        "classes": {name: {"description": item.description, "irrelevant": item.irrelevant} for name, item in words.items()},
        "critic": {"lvlm": lvlm.name},
    }
    config = parse_config(merge_tables(tables, dict(settings or {})), source="settings")
    if config.critic.lvlm != lvlm.name:
        raise ConfigError(f"settings: critic.lvlm = {config.critic.lvlm!r}, and lvlm is {lvlm.name!r}: give the one that is to be asked as lvlm")
    ordered = tuple(words.values())
    judge = judge or _open_judge(config, lvlm)
    own = Path(config.critic.prices) if config.critic.prices else None
    prices = {model.name: required_price(model, own) for model in (lvlm, judge)}
    examples = Path(config.critic.examples) if config.critic.examples else None
    read_examples(examples, seeded(config.run.seed, "few-shot"))
    if validation_set is None:
        train_set, validation_set = _hold_out(train_set, config.run.seed)
    given = as_classifier(model) if preset is None else Classifier(as_classifier(model).network, preset, as_classifier(model).order)
    model = order_outputs(given, tuple(words), config.model.classes)
    rehearse(model, {"train": train_set, "validation": validation_set}, tuple(words), config)
    for asked in {id(backend): backend for backend in (lvlm, judge)}.values():
        asked.check()
    for note in check_descriptions(ordered):
        reporter.note(note)
    folder, splits = RunFolder(Path(out)), {"train": train_set, "validation": validation_set}
    manifest = f"{type(train_set).__name__} of {count_images(train_set)}, model {hash_weights(model)}" + (f", {preset}" if preset else "")
    folder.start(config, manifest=manifest, root=Path.cwd(), splits=splits)
    record_manifest(folder, splits, len(words), reporter)
    return find(
        config,
        folder,
        model,
        train_set,
        validation_set,
        ordered,
        lvlm,
        judge=judge,
        examples=examples,
        retry_unknown=retry_unknown,
        prices=prices,
        max_usd=config.critic.max_usd,
        reporter=reporter,
    )


def _open_judge(config: Config, lvlm: LVLM) -> LVLM:
    """The judge that the settings name, which is the critic where they name none."""
    if config.critic.judge is None:
        return lvlm
    spec, base_url = config.critic.server("judge")
    return open_lvlm(spec, base_url=base_url, timeout=config.critic.timeout, seed=config.run.seed)


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
        folder.load_verdicts()  # what a person wrote there is read before anything is paid for
        evidence = gather_evidence(config, folder, model, train, validation, [item.name for item in descriptions], reporter)
        cases = Cases(evidence, descriptions, folder)
        if lvlm.address is not None:
            warn_of_lettering(cases, reporter)
        cases.draw(reporter)
        ledger = Ledger(folder.ledger, retry_unknown=retry_unknown, price=prices or None, max_usd=max_usd)
        try:

            def consult(case: Case) -> tuple[list[Critique], list[Verdict]]:
                return consult_case(case, panel, ledger.ask)

            workers = count_workers(lvlm, judge or lvlm)
            with reporter.stage("controls") as advance:
                tried = map_in_order(consult, controls_for(lvlm), workers=workers, advance=advance, stop=ledger.stop)
            controls = read_controls(verdict for _, part in tried for verdict in part)
            _report_controls(controls, lvlm, reporter)
            with reporter.stage("judge") as advance:
                results = map_in_order(lambda row: consult(cases[row]), cases.rows, workers=workers, advance=advance, stop=ledger.stop)
            calls, cached, cost = ledger.count("answered"), ledger.cached, ledger.cost_usd()
        except KeyboardInterrupt:
            ledger.leave()
            raise
        finally:
            for note in ledger.notes:
                reporter.note(note)
            ledger.close()
        critiques = [critique for part, _ in results for critique in part]
        folder.save_controls(controls)
        folder.save_critiques(critiques)
        folder.save_criticism(
            {
                "lvlm": lvlm.name,
                "simulated": lvlm.simulated,
                "prompts": panel.prompts,
                "calls": calls,
                "cached": cached,
                "cost_usd": cost,
                "weights": hash_weights(model),
            }
        )
        folder.save_verdicts([verdict for _, part in results for verdict in part])
        verdicts = folder.load_verdicts() or []
        # Mapped anew: what was read of the file does not stay resident.
        attribution, segmentation, selection = folder.load_attribution() or evidence.attribution, evidence.segmentation, evidence.selection
        del evidence, cases
        release_memory()
    run = Run(
        folder, config, model, descriptions, train, validation, lvlm.name, lvlm.simulated,
        selection, attribution, segmentation, critiques, verdicts, controls, panel.prompts,
        calls=calls, cached=cached, cost_usd=cost,
    )  # fmt: skip
    if run.queue:
        reporter.note(
            f"{len(run.queue)} of {segmentation.shares.gt(0).sum()} segments wait for a person: report.html lists them, most worth a look first"
        )
    reporter.note(f"{run.outcome}: {explain_outcome(run.coverage, run.flip_rate(model))}")
    return run


def record_manifest(folder: RunFolder, splits: Mapping[str, Dataset], classes: int, reporter: Reporter) -> None:
    """Every image by its hash in manifest.jsonl, where that is not there yet; and a note where one image is in two splits.

    Raises DataError for a label that no class has.
    """
    listed = folder.load_manifest()
    if listed is None:
        with folder.locked(), reporter.stage("manifest") as advance:
            listed = list_hashes(splits, advance)
            for split in splits:
                lines = [line for line in listed if line.split == split]
                check_labels(torch.tensor([line.label for line in lines]), torch.tensor([line.index for line in lines]), classes, split)
            folder.save_manifest(listed)
    leaks = find_leaks(listed)
    if leaks:
        reporter.note(describe_leaks(leaks, splits))


def fix_shortcuts(run: Run, *, reporter: Reporter | None = None) -> nn.Module:
    """A copy of the run's model, fine-tuned until it no longer uses what was judged spurious. With a preset it takes images in 0 to 1.

    The original comes back where no shortcut was found, or where the repair would do harm (``guard``): ``run.alignment`` says which and why, a
    warning is logged, and ``run.rejected`` has what was rejected.
    """
    fix(run, reporter=reporter or Logged())
    assert run.aligned is not None  # fix sets it
    return unwrap(run.aligned)


def fix(run: Run, *, reporter: Reporter, out: Path | None = None, accept: bool = False) -> Alignment:
    """Fine-tunes into ``run.aligned``, and saves it as aligned.safetensors with the outcome in alignment.json.

    A repair that does harm is kept as rejected.safetensors, and the original is the result; ``accept`` takes it all the same.
    The same verdicts and settings are not worked on twice, and another ``max_accuracy_drop`` only judges again; others start afresh.
    Raises ConfigError where the model's weights are not the ones that ``find`` explained.
    """
    _check_weights(run)
    folder = RunFolder(out or run.folder.path)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    config, job = run.config.align, alignment_job(run)
    aligned = copy_model(run.model)
    with folder.locked():
        finished = folder.load_alignment(job)
        if finished is None:
            folder.save_masks(run.masks)
            checkpoint = folder.path / f"aligning-{job}.pt"
            result, held_out = _repair(run, aligned, checkpoint, reporter)
            name = "rejected" if result.outcome == "original kept" else "aligned"
            (folder.path / "rejected.safetensors").unlink(missing_ok=True)
            _save_weights(folder, name, aligned)
        else:
            checkpoint, held_out = None, folder.load_held_out()
            result = _judge_again(Alignment(**finished), held_out, config.max_accuracy_drop)
        rejected = folder.path / "rejected.safetensors"
        run.rejected = None
        # Under another bound than before, the repair is in the other of the two files.
        if result.outcome == "original kept" and not rejected.exists():
            load_checkpoint(aligned, folder.path / "aligned.safetensors")
            _save_weights(folder, "rejected", aligned)
        if result.outcome == "aligned" and rejected.exists():
            load_checkpoint(aligned, rejected)
            _save_weights(folder, "aligned", aligned)
        if result.outcome == "original kept":
            repaired = copy_model(run.model)
            load_checkpoint(repaired, rejected)
            _save_weights(folder, "aligned", repaired if accept else run.model)
            result, run.rejected = (replace(result, outcome="accepted"), None) if accept else (result, repaired)
        folder.save_alignment(job, vars(result), config.model_dump(by_alias=True), held_out)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        if result.outcome != "original kept":
            rejected.unlink(missing_ok=True)
        load_checkpoint(aligned, folder.path / "aligned.safetensors")
    run.aligned, run.alignment = aligned, result
    if result.outcome == "original kept":
        reporter.note(
            f"the original model is kept: {result.reason}, beyond [align] max_accuracy_drop = {config.max_accuracy_drop}. Look at the verdicts in "
            f"report.html. What was rejected is in rejected.safetensors, and its scores in the column rejected; "
            f"`rightreasons fix {folder.path} --accept` takes it"
        )
    return result


def alignment_job(run: Run) -> str:
    """What fine-tuning depends on, as a hash: settings but the guard's bound, seed, weights, and what was judged spurious and relevant."""
    settings = run.config.align.model_dump(exclude={"max_accuracy_drop"})
    described = f"{settings} {run.config.data.flips} {run.config.run.seed} {hash_weights(run.model)} {count_images(run.train)}".encode()
    digest = hashlib.sha256(described)
    digest.update(run.masks.numpy().data)
    digest.update(_relevant(run).numpy().data)
    return digest.hexdigest()[:16]


def _judge_again(result: Alignment, held_out: tuple[HeldOut, HeldOut] | None, max_drop: float) -> Alignment:
    """A finished repair under the bound of now; what a person accepted stays accepted."""
    if held_out is None or result.outcome not in ("aligned", "original kept"):
        return result
    harm = find_harm(*held_out, max_drop)
    return replace(result, outcome="aligned" if harm is None else "original kept", reason=harm)


def _repair(run: Run, model: nn.Module, checkpoint: Path, reporter: Reporter) -> tuple[Alignment, tuple[HeldOut, HeldOut] | None]:
    """Fine-tunes ``model`` in place where a shortcut was found, and holds it against the original; with what the guard measured."""
    plain = _predict(run.model, run.validation)
    accuracy = plain.correct.double().mean().item()
    if run.outcome != "shortcut found":
        return Alignment("nothing to change", accuracy, accuracy), None
    alignment, seed = judged_alignment(run, reporter), run.config.run.seed
    hosts = some_images(run.validation, EPOCH_HOSTS, seeded(seed, "guard hosts"))
    before = measure_held_out(run.model, plain, hosts, alignment, seed)
    align(model, run, alignment, checkpoint=checkpoint, reporter=reporter)
    after = measure_held_out(model, _predict(model, run.validation), hosts, alignment, seed)
    harm = find_harm(before, after, run.config.align.max_accuracy_drop)
    outcome = "aligned" if harm is None else "original kept"
    return Alignment(outcome, before.accuracy, after.accuracy, before.neutral, after.neutral, harm), (before, after)


def _save_weights(folder: RunFolder, name: str, model: nn.Module) -> None:
    write_atomically(folder.path / f"{name}.safetensors", lambda part: save_checkpoint(model, part))


def _check_weights(run: Run) -> None:
    """Raises ConfigError where the model is not the one that was explained."""
    explained = (run.folder.load_criticism() or {}).get("weights")
    if explained not in (None, hash_weights(run.model)):
        raise ConfigError(
            f"the model's weights are not those that {run.folder.path} explains: its verdicts say nothing of them. Put the old weights back, or "
            "run find with another --out"
        )


def align(model: nn.Module, run: Run, alignment: AlignmentSet, *, checkpoint: Path | None = None, reporter: Reporter) -> None:
    """Fine-tunes ``model`` in place with the run's settings, and chooses the epoch by held-out images with segments pasted in."""
    seed = run.config.run.seed
    hosts = some_images(run.validation, EPOCH_HOSTS, seeded(seed, "epoch hosts"))
    with reporter.stage("align") as advance:
        advance(0, run.config.align.epochs)
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
    return build_alignment(run, run.masks, _relevant(run), reporter)


def _relevant(run: Run) -> Tensor:
    """What was judged relevant in the inspected images, (image, height, width)."""
    return build_masks(run.segmentation, run.selection, run.verdicts, kind="effect", value="relevant")


def build_alignment(
    run: Run, masks: Bool[Tensor, "image height width"], protected: Bool[Tensor, "image height width"], reporter: Reporter
) -> AlignmentSet:
    """The alignment set of the run's inspected images; for a term that swaps, the masks are spread to the other training images."""
    inspected, config = read_all(run.train, run.selection.indices), run.config.align
    spread = None
    if config.spread and (config.term == "auto" or "swap" in config.term):
        with reporter.stage("spread") as advance:
            spread = spread_verdicts(run.model, run.train, inspected, masks, protected, progress=advance)
        if spread is None:
            reporter.note(
                "the repair rests on the inspected images alone, since the model's feature maps do not tell the shortcut in others. That is usual "
                "for networks without fine feature maps and no fault; where the repair falls short, inspect more images ([sample] size)"
            )
        else:
            marked = int((spread.scores > 0).flatten(1).any(1).sum())
            reporter.note(f"the verdicts were spread: of {len(spread.scores)} training images {marked} have something that looks spurious")
    return AlignmentSet(inspected, masks, protected, spread)


def _report_controls(controls: Sequence[Control], critic: LVLM, reporter: Reporter) -> None:
    """A note for each control that was failed, before any verdict is used."""
    for control in controls:
        if control.passed is False:
            reporter.note(f"{critic.name} fails the control {control.name!r}: it says {control.said}. Do not trust its verdicts unseen")


def _predict(model: nn.Module, dataset: Dataset) -> Predictions:
    return predict_labels(model, read_batches(dataset))


def _hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    order = torch.randperm(count_images(dataset), generator=seeded(seed, "hold out")).tolist()
    cut = max(1, len(order) // 10)
    return Subset(dataset, sorted(order[cut:])), Subset(dataset, sorted(order[:cut]))
