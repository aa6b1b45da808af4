"""Fine-tunes the model of a run until it no longer uses what was judged spurious, and keeps the original if that does harm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rightreasons.common.files import write_atomically
from rightreasons.common.progress import Reporter
from rightreasons.common.seeds import seeded
from rightreasons.data.loading import count_images, read_all, some_images
from rightreasons.errors import ConfigError
from rightreasons.networks.classifier import copy_model, hash_weights, load_checkpoint, save_checkpoint
from rightreasons.networks.predictions import predict_dataset
from rightreasons.pipeline.tracking import check_trackers
from rightreasons.records import HeldOut, TunedEpoch
from rightreasons.repair.align import AGAIN, AlignmentSet, align_model
from rightreasons.repair.collapse import Collapse
from rightreasons.repair.guard import find_harm, measure_held_out
from rightreasons.repair.propagate import Spread, spread_verdicts
from rightreasons.run import Alignment, Run
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import Recorded
from rightreasons.runs.tuning import add_epoch

# At most this many held-out images choose the best epoch of fine-tuning.
EPOCH_HOSTS = 1000


def fix(run: Run, *, reporter: Reporter, out: Path | None = None, accept: bool = False) -> Alignment:
    """Fine-tunes into ``run.aligned``, and saves it as aligned.safetensors with the outcome in alignment.json.

    A repair that does harm is saved as rejected.safetensors, and the original model is kept; with ``accept`` the repair is used anyway.
    The same verdicts and settings are not trained on twice, and another ``max_accuracy_drop`` only judges again; any other change starts afresh.
    Raises ConfigError if the model's weights are not the ones that ``find`` explained.
    """
    check_trackers(run.config)
    _check_weights(run)
    folder = RunFolder(out or run.folder.path)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    reporter = Recorded(reporter, folder)
    config, job = run.config.align, alignment_job(run)
    aligned = copy_model(run.model)
    with folder.locked():
        finished = folder.load_alignment(job)
        if finished is None:
            folder.save_masks(run.masks)
            checkpoint = folder.path / f"aligning-{job}.pt"
            result, held_out = _repair(run, aligned, checkpoint, lambda epoch: add_epoch(folder, job, epoch), reporter)
            name = "rejected" if result.outcome == "original kept" else "aligned"
            (folder.path / "rejected.safetensors").unlink(missing_ok=True)
            _save_weights(run, folder, name, aligned)
        else:
            checkpoint, held_out = None, folder.load_held_out()
            result = _judge_again(Alignment(**finished), held_out, config.max_accuracy_drop)
        rejected = folder.path / "rejected.safetensors"
        run.rejected = None
        # Another bound than before may move the repair to the other of the two files.
        if result.outcome == "original kept" and not rejected.exists():
            load_checkpoint(aligned, folder.path / "aligned.safetensors")
            _save_weights(run, folder, "rejected", aligned)
        if result.outcome == "aligned" and rejected.exists():
            load_checkpoint(aligned, rejected)
            _save_weights(run, folder, "aligned", aligned)
        if result.outcome == "original kept":
            repaired = copy_model(run.model)
            load_checkpoint(repaired, rejected)
            _save_weights(run, folder, "aligned", repaired if accept else run.model)
            result, run.rejected = (replace(result, outcome="accepted"), None) if accept else (result, repaired)
        folder.save_alignment(job, vars(result), config.model_dump(by_alias=True), held_out)
        if checkpoint is not None:
            for file in (checkpoint, checkpoint.with_suffix(AGAIN)):
                file.unlink(missing_ok=True)
        if result.outcome != "original kept":
            rejected.unlink(missing_ok=True)
        load_checkpoint(aligned, folder.path / "aligned.safetensors")
    run.aligned, run.alignment = aligned, result
    if result.outcome == "original kept":
        reporter.note(
            f"the original model is kept: {result.reason}, beyond [align] max_accuracy_drop = {config.max_accuracy_drop}. Look at the verdicts in "
            f"report.html. The rejected repair is in rejected.safetensors, and its scores are in the column rejected; "
            f"`rightreasons fix {folder.path} --accept` uses it anyway"
        )
    return result


def alignment_job(run: Run) -> str:
    """A hash of all that fine-tuning depends on: settings except the guard's bound, seed, weights, and what was judged spurious and relevant."""
    settings = run.config.align.model_dump(exclude={"max_accuracy_drop"})
    if settings["term"] == "swap+penalty":
        settings["term"] = "auto"  # the spelling of the first saved repairs, which must not be done again
    described = f"{settings} {run.config.data.flips} {run.config.run.seed} {hash_weights(run.model)} {count_images(run.train)}".encode()
    digest = hashlib.sha256(described)
    digest.update(run.masks.numpy().data)
    digest.update(run.protected.numpy().data)
    if run.config.align.spread and "swap" in run.config.align.term:
        digest.update(run.clear.numpy().data)
    return digest.hexdigest()[:16]


def _judge_again(result: Alignment, held_out: tuple[HeldOut, HeldOut] | None, max_drop: float) -> Alignment:
    """Judges a finished repair by the present bound; a repair that a person accepted stays accepted."""
    if held_out is None or result.outcome not in ("aligned", "original kept"):
        return result
    harm = find_harm(*held_out, max_drop)
    return replace(result, outcome="aligned" if harm is None else "original kept", reason=harm)


def _repair(
    run: Run, model: nn.Module, checkpoint: Path, record: Callable[[TunedEpoch], None], reporter: Reporter
) -> tuple[Alignment, tuple[HeldOut, HeldOut] | None]:
    """Fine-tunes ``model`` in place if a shortcut was found, and compares it with the original; returns the guard's measurements too."""
    plain = predict_dataset(run.model, run.validation)
    accuracy = plain.correct.double().mean().item()
    if run.outcome != "shortcut found":
        return Alignment("nothing to change", accuracy, accuracy), None
    alignment, seed = judged_alignment(run, reporter), run.config.run.seed
    hosts = some_images(run.validation, EPOCH_HOSTS, seeded(seed, "guard hosts"))
    before = measure_held_out(run.model, plain, hosts, alignment, seed)
    align(model, run, alignment, checkpoint=checkpoint, record=record, reporter=reporter)
    after = measure_held_out(model, predict_dataset(model, run.validation), hosts, alignment, seed)
    harm = find_harm(before, after, run.config.align.max_accuracy_drop)
    outcome = "aligned" if harm is None else "original kept"
    told = None if alignment.spread is None else _count_spread(alignment.spread, run)
    return Alignment(outcome, before.accuracy, after.accuracy, before.neutral, after.neutral, harm, told), (before, after)


def _save_weights(run: Run, folder: RunFolder, name: str, model: nn.Module) -> None:
    write_atomically(folder.path / f"{name}.safetensors", lambda part: save_checkpoint(model, part, run.project.task.classes))


def _check_weights(run: Run) -> None:
    """Raises ConfigError if the model is not the one that was explained."""
    explained = run.criticism.weights
    if explained not in (None, hash_weights(run.model)):
        raise ConfigError(
            f"the model's weights are not those that {run.folder.path} explains: its verdicts do not apply to them. Put the old weights back, or "
            "run find with another --out"
        )


def align(
    model: nn.Module,
    run: Run,
    alignment: AlignmentSet,
    *,
    checkpoint: Path | None = None,
    record: Callable[[TunedEpoch], None] | None = None,
    reporter: Reporter,
) -> None:
    """Fine-tunes ``model`` in place with the run's settings; the epoch is chosen on held-out images with spurious segments pasted in."""
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
            record=record,
            warn=lambda collapse: reporter.note(_tell_collapse(collapse, run.project.task.classes)),
        )


def _tell_collapse(collapse: Collapse, classes: Sequence[str]) -> str:
    """What was measured, what is done about it and what a person can do."""
    before, after, name = collapse.before, collapse.after, classes[collapse.label]
    measured = (
        f"fine-tuning has collapsed in epoch {collapse.epoch}, at a learning rate of {collapse.learning_rate:g}: of {after.count} held-out images "
        f"{after.shares[collapse.label]:.1%} are called {name} ({before.shares[collapse.label]:.1%} before), and {after.accuracy:.1%} are right "
        f"({before.accuracy:.1%} before)"
    )
    if collapse.next_rate is not None:
        return f"{measured}. It begins again from the original model, at a learning rate of {collapse.next_rate:g}"
    advice = "look in report.html whether a verdict calls a part of the object spurious, or lower [align] learning_rate"
    if collapse.epoch > 1:
        return f"{measured}. Such an epoch is not chosen; if the repair falls short, {advice}"
    return f"{measured}. It ends here: {advice}"


def judged_alignment(run: Run, reporter: Reporter) -> AlignmentSet:
    """The inspected images with what was judged spurious and relevant in them, and the verdicts spread to other training images if possible."""
    return build_alignment(run, run.masks, run.protected, run.clear, reporter)


def build_alignment(
    run: Run,
    masks: Bool[Tensor, "image height width"],
    protected: Bool[Tensor, "image height width"],
    clear: Bool[Tensor, " image"],
    reporter: Reporter,
) -> AlignmentSet:
    """The alignment set of the run's inspected images; for a term that swaps, the masks are spread to the other training images.

    ``clear`` are the images that are known to have nothing spurious.
    """
    inspected, config = read_all(run.train, run.selection.indices), run.config.align
    spread = None
    if config.spread and "swap" in config.term:
        with reporter.stage("spread") as advance:
            spread = spread_verdicts(run.model, run.train, inspected, masks, protected, clear, progress=advance)
        if spread is None:
            reporter.note(
                "the repair rests on the inspected images alone, since the model's feature maps do not show the shortcut in others. That is usual "
                "for networks without fine feature maps, and not an error; if the repair falls short, inspect more images ([sample] size)"
            )
        else:
            reporter.note(
                f"the verdicts were spread: of {len(spread.scores)} training images {int(spread.marked.sum())} have something that looks spurious"
            )
    return AlignmentSet(inspected, masks, protected, spread)


def _count_spread(spread: Spread, run: Run) -> dict[str, Any]:
    """In how many training images the probe finds what was judged spurious: of all and of each class, as [found, images]."""
    marked, classes = spread.marked, {}
    labels = torch.tensor([line.label for line in run.folder.load_manifest() or () if line.split == "train"])
    if len(labels) == len(marked):  # a run from before there was a manifest has no list of labels
        classes = {name: [int(marked[labels == row].sum()), int((labels == row).sum())] for row, name in enumerate(run.project.task.classes)}
    return {"found": int(marked.sum()), "images": len(marked), "recall": spread.recall, "precision": spread.precision, "classes": classes}
