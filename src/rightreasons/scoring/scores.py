"""Scores of a model and of a run: before and after the repair, the critic's agreement with the truth, and ``metrics.json``.

This room may see groups and ground-truth masks; a metric is None if a label that it needs is missing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.seeds import seeded
from rightreasons.critic.outcome import decide_outcome, explain_outcome
from rightreasons.data.loading import StoredImages, count_images
from rightreasons.data.manifest import find_leaks, hash_manifest
from rightreasons.explain.evidence import explain_parts, read_baselines, shown_effect, smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.networks.answers import Answers
from rightreasons.networks.classifier import Classifier, as_classifier, hash_weights
from rightreasons.networks.predictions import Predictions, predict_dataset
from rightreasons.records import (
    HUMAN,
    VALUES,
    ClassScore,
    GroundTruth,
    GroupScore,
    Scores,
    TunedEpoch,
    Verdict,
    find_disputes,
    find_votes,
    settle_verdicts,
    truly_spurious,
)
from rightreasons.repair.swap import Pasted
from rightreasons.run import Alignment, Run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring import metrics
from rightreasons.scoring.effect import judge_effect
from rightreasons.scoring.findings import find_intervals, judge_fitness, tell_calibration

# mu_align and the lift are measured on at most MU_ALIGN_IMAGES test images, and on at most MU_ALIGN_PIXELS pixels in all of them together.
MU_ALIGN_IMAGES = 1000
MU_ALIGN_PIXELS = 2**21
# A score is a mean over many heatmaps, so that each needs fewer baselines than a heatmap that is cut into segments.
SCORED_BASELINES = 4
# Thin marks are found by segments that are a little wider, and so a segment counts as near where it is mostly within this many pixels of the mask.
NEAR_PIXELS = 2


def score(
    model: nn.Module,
    test_set: Dataset,
    *,
    truth: GroundTruth | None = None,
    train_truth: GroundTruth | None = None,
    run: Run | None = None,
) -> Scores:
    """Accuracy and entropy of ``model`` on ``test_set``; group metrics with ``truth``; the label-free proofs, and mu_align, with a ``run``.

    A model that is not a ``Classifier`` gets the normalisation and the class order of the ``run``.
    ``train_truth`` gives the group sizes for the weighted average. A metric is None if the argument that it needs is not given.
    """
    if run is not None and not isinstance(model, Classifier):
        own = as_classifier(run.model)
        model = Classifier(model, own.preset, own.order)
    model = as_classifier(model)
    predictions = predict_dataset(model, test_set)
    counts = dict(Counter(train_truth.groups)) if train_truth is not None else None
    scores = metrics.score_predictions(predictions, truth, counts)
    if run is None:
        return scores
    inspected = _evidence(model, run)
    proofs = _label_free_proofs(model, run, inspected)
    proofs["classes"] = score_classes(predictions, run, run.paste(model, run.masks), inspected)
    aligned = _shortcut_attribution(model, test_set, truth, run, set(predictions.indices.tolist())) if truth is not None else {}
    return Scores(**{**vars(scores), **proofs, **aligned})


def score_run(model: nn.Module, run: Run) -> Scores:
    """``score`` on the run's test split, or on the validation split if there is none, with whatever truth its task has."""
    task = run.project.task
    return score(
        model, task.splits.get("test", task.splits["validation"]), truth=task.truth.get("test"), train_truth=task.truth.get("train"), run=run
    )


def score_once(model: nn.Module, run: Run, folder: RunFolder, *, again: bool = False) -> Scores:
    """``score_run``, or its stored scores for the same weights, data and verdicts, unless ``again``."""
    key = score_key(run, hash_weights(model))
    stored = None if again else folder.load_scores(key)
    if stored is not None and "classes" in stored:  # older versions did not count by class
        return read_scores(stored)
    scores = score_run(model, run)
    folder.save_scores(key, stored_scores(scores))
    return scores


def score_key(run: Run, what: str) -> str:
    """A hash of all that scores depend on: ``what`` is scored, the data, and the verdicts."""
    digest = hashlib.sha256(f"{what} {run.project.task.manifest}".encode())
    digest.update(run.masks.numpy().data)
    if not run.found and not run.coverage.mostly_judged:  # too few verdicts, or none that is spurious: the same masks, but other scores
        digest.update(b"not judged")
    return digest.hexdigest()


def read_scores(stored: dict[str, Any]) -> Scores:
    """Scores from metrics.json."""

    def read(groups: dict[str, Any]) -> dict[str, GroupScore]:
        return {name: GroupScore(**group) for name, group in groups.items()}

    others = {attribute: read(groups) for attribute, groups in stored.get("other_groups", {}).items()}
    intervals = {name: (low, high) for name, (low, high) in stored.get("intervals", {}).items()}
    classes = {name: _read_class(counts) for name, counts in stored.get("classes", {}).items()}
    share = _read_pair(stored.get("spurious_share_interval"))
    read_back = {"groups": read(stored["groups"]), "other_groups": others, "intervals": intervals, "classes": classes}
    return Scores(**{**stored, **read_back, "spurious_share_interval": share})


def _read_class(counts: dict[str, Any]) -> ClassScore:
    return ClassScore(**{**counts, "evidence_interval": _read_pair(counts["evidence_interval"])})


def _read_pair(ends: list[float] | None) -> metrics.Interval | None:
    return None if ends is None else (ends[0], ends[1])


def critic_scores(run: Run) -> dict[str, Any]:
    """Who judged, at what cost, and how often the verdicts were right, if there are ground-truth masks."""
    agreement, truth = None, run.project.task.truth.get("train")
    # A verdict that a person overruled, or that others contradict, still counts as the critic's.
    critics = list(settle_verdicts(verdict for verdict in run.verdicts if verdict.source != HUMAN).values())
    if truth is not None:
        spurious = _truly_spurious(run, truth)
        row_of = {index: row for row, index in enumerate(run.selection.indices.tolist())}
        truths = [bool(spurious[row_of[verdict.index]][verdict.segment]) for verdict in critics]
        agreement = metrics.verdict_agreement([verdict.answer for verdict in critics], truths)
    backend, _, model = run.criticism.lvlm.partition(":")
    rates = ("accuracy", "spurious_recall", "core_recall")
    told = {f"{part}{what}": getattr(agreement, f"{part}{what}", None) for what in ("", "_interval") for part in rates}
    settled = settle_verdicts(run.verdicts).values()
    return {
        "backend": backend,
        "model": model,
        "answered_by": {asked: list(models) for asked, models in run.criticism.answered_by.items()},
        "simulated": run.criticism.simulated,
        "calls": run.criticism.calls,
        "cached": run.criticism.cached,
        "cost_usd": 0.0 if run.criticism.simulated else run.criticism.cost_usd,
        **{f"verdict_{name}" if name.startswith("accuracy") else name: value for name, value in told.items()},
        "spurious_precision": getattr(agreement, "spurious_precision", None),
        "unsure": sum(verdict.value == "unsure" for verdict in settled),
        "spurious": sum(verdict.value == "spurious" for verdict in settled),
        "segments": len(settled),
        "overruled": sum(verdict.source == HUMAN for verdict in settled),
        "voted": len(find_votes(run.verdicts)),
        "disputed": len(find_disputes(run.verdicts)),
        "waiting": len(run.queue),
        "mode": run.config.critic.mode,
        "votes": run.config.critic.votes,
        "agreement": None if run.criticism.agreement is None else dict(run.criticism.agreement),
        "close_ups": _count_close_ups(critics),
        "prompts": dict(run.criticism.prompts),
        "controls": [asdict(control) for control in run.controls],
    }


def _count_close_ups(critics: Sequence[Verdict]) -> dict[str, int] | None:
    """Of how many segments a close-up was asked about, and what became of that; None where of none.

    An answer that contradicts its own words counts as unsure.
    """
    near = [verdict for verdict in critics if verdict.close_up is not None]
    if not near:
        return None
    usable = [verdict.answer for verdict in near if verdict.close_up in VALUES]
    return {"asked": len(near), **{value: usable.count(value) for value in VALUES}, "unusable": len(near) - len(usable)}


def segment_scores(run: Run) -> dict[str, float | None]:
    """How well the segments cut the shortcut out, whoever judges them.

    It is measured over the inspected images that have a ground-truth mask. ``found`` is the share of images in which a segment is mostly
    shortcut, ``found_near`` the same for a mask that is ``NEAR_PIXELS`` wider all around, ``recall`` the share of the mask that the segments
    of ``found`` cover, and ``precision`` the share of their pixels that lies in the mask, if there are any.
    """
    truth = run.project.task.truth.get("train")
    shares: dict[str, list[float]] = {"found": [], "found_near": [], "recall": [], "precision": []}
    if truth is not None:
        nearly = _truly_spurious(run, truth, widened=NEAR_PIXELS)
        for row, spurious in enumerate(_truly_spurious(run, truth)):
            mask = truth.mask(int(run.selection.indices[row]))
            if mask is None:
                continue
            segments = run.segmentation.segments[row]
            cut = torch.isin(segments, spurious.nonzero()[:, 0].to(segments)) & run.segmentation.effect[row]
            inside = float((cut & mask).sum())
            shares["found"].append(float(spurious.any()))
            shares["found_near"].append(float(nearly[row].any()))
            shares["recall"].append(inside / float(mask.sum()))
            if cut.any():
                shares["precision"].append(inside / float(cut.sum()))
    return {name: sum(values) / len(values) if values else None for name, values in shares.items()}


def spurious_fraction(run: Run) -> float | None:
    """The share of the inspected images that carry the shortcut, if the task knows which do."""
    truth = run.project.task.truth.get("train")
    if truth is None:
        return None
    if truth.spurious is not None:
        return truth.spurious[run.selection.indices].double().mean().item()
    masked = [truth.mask(index) is not None for index in run.selection.indices.tolist()]
    return sum(masked) / len(masked) if any(masked) else None


def classifier_facts(run: Run) -> dict[str, Any]:
    """The network's input, its accuracy by split and class, and what is wrong with its answers; an older run has no splits here."""
    preset, names = as_classifier(run.model).preset, [item.name for item in run.descriptions]
    counts, problems = run.folder.load_answers()
    splits = {}
    for split, table in counts.items():
        answers = Answers(table)
        classes = {name: asdict(score) for name, score in answers.by_class(names).items()}
        splits[split] = {"accuracy": answers.accuracy if answers.total else None, "count": answers.total, "classes": classes}
    height, width = run.attribution.heatmaps.shape[1:]
    fed = {"height": height, "width": width, "mean": preset.mean, "std": preset.std, "channels": preset.channels or None}
    return {"input": fed, **splits, "problems": problems}


def data_facts(run: Run) -> dict[str, Any]:
    """The format as which the data were read, the number of images in each split, and how many images are in two splits by their hash."""
    listed, task = run.folder.load_manifest(), run.project.task
    return {
        "read_as": task.told,
        "images": {split: count_images(dataset) for split, dataset in task.splits.items()},
        "manifest": None if listed is None else hash_manifest(listed),
        "images_in_two_splits": None if listed is None else len(find_leaks(listed)),
    }


def build_metrics(
    run: Run,
    *,
    before: Scores,
    after: Scores | None = None,
    alignment: Alignment | None = None,
    rejected: Scores | None = None,
    reference: Mapping[str, Scores] | None = None,
    shortcuts: Sequence[Mapping[str, Any]] = (),
    epochs: Sequence[TunedEpoch] = (),
    seconds: dict[str, float],
) -> dict[str, Any]:
    """``metrics.json``: the contract for scripts."""
    task, classifier = run.project.task, classifier_facts(run)
    outcome = decide_outcome(run.coverage, before.swap_flip_rate, run.chance)
    repaired = asdict(alignment) | asdict(judge_effect(alignment.outcome, before, after, run.config.align)) if alignment is not None else None
    models = {"before": before, "after": after, "rejected": rejected, **(reference or {})}
    fitness = judge_fitness(run, before, after, outcome=outcome, problems=classifier["problems"], alignment=repaired)
    return {
        # Only the folder's own name: the report is forwarded, and the rest of the path names people and machines.
        "task": Path(task.name).resolve().name if "/" in task.name else task.name,
        "seed": run.config.run.seed,
        "outcome": outcome,
        "explanation": explain_outcome(run.coverage, before.swap_flip_rate, run.chance),
        "coverage": {key: value for key, value in asdict(run.coverage).items() if key != "failures"},
        "classifier": classifier,
        "critic": critic_scores(run),
        "selection": {
            "strategy": run.selection.strategy,
            "size": len(run.selection),
            "spurious_fraction": spurious_fraction(run),
        },
        "segments": segment_scores(run),
        "completeness_error": _number(run.attribution.completeness_error.nanmedian()),
        "data": data_facts(run),
        "skipped_images": len(task.skipped),
        "before": stored_scores(before),
        "after": stored_scores(after) if after is not None else None,
        "rejected": stored_scores(rejected) if rejected is not None else None,
        "alignment": repaired,
        "reference": {name: stored_scores(scores) for name, scores in (reference or {}).items()},
        "shortcuts": list(shortcuts),
        "fitness": fitness,
        "intervals": {name: find_intervals(scores) for name, scores in models.items() if scores is not None},
        "calibration": tell_calibration(run),
        "epochs": [asdict(epoch) for epoch in epochs],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def _number(value: Tensor) -> float | None:
    """A number for metrics.json; one that is not finite becomes null."""
    return value.item() if value.isfinite() else None


def stored_scores(scores: Scores) -> dict[str, Any]:
    """Scores as metrics.json has them, with intervals if there are any."""
    return {key: value for key, value in asdict(scores).items() if key != "intervals" or value}


def _truly_spurious(run: Run, truth: GroundTruth, *, widened: int = 0) -> list[Tensor]:
    """For each inspected image, whether each of its segments is truly spurious, by a mask that is so many pixels ``widened`` all around."""
    smooth = smooth_width(run.model, run.config.segment)

    def widen(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else F.max_pool2d(mask[None].float(), 2 * widened + 1, stride=1, padding=widened)[0] > 0

    return [
        truly_spurious(run.segmentation.segments[row], shown_effect(run.attribution, run.segmentation, smooth, row), widen(truth.mask(index)))
        for row, index in enumerate(run.selection.indices.tolist())
    ]


@dataclass(frozen=True)
class _Evidence:
    """By inspected image: the share of the positive effect on judged-spurious segments, and its lift; NaN where there is no effect or no segment."""

    shares: Tensor
    lifts: Tensor


def _evidence(model: nn.Module, run: Run) -> _Evidence:
    """Explains ``model`` on the inspected images with something spurious. The others have a share of 0 for any heatmap."""
    masks = run.masks
    rows = masks.flatten(1).any(1).nonzero()[:, 0].tolist()
    shares, lifts = torch.zeros(len(masks), dtype=torch.float64), torch.full((len(masks),), torch.nan, dtype=torch.float64)
    found = effect_in_masks(model, StoredImages(run.train, run.selection.indices[rows]), masks[rows], run)
    for row, share, lift in zip(rows, found.shares, found.lifts, strict=True):
        shares[row], lifts[row] = (torch.nan if value is None else value for value in (share, lift))
    return _Evidence(shares, lifts)


def _label_free_proofs(model: nn.Module, run: Run, inspected: _Evidence) -> dict[str, Any]:
    if not run.found:
        return {"spurious_share": 0.0 if run.coverage.mostly_judged else None}
    marked = run.masks.flatten(1).any(1)
    known = inspected.shares[marked & inspected.shares.isfinite()]
    lifts = inspected.lifts[inspected.lifts.isfinite()]
    # An image without any positive effect tells nothing, and counts as the mean of the others.
    whole = known.mean().item() * int(marked.sum()) / len(run.selection) if len(known) else None
    return {
        "spurious_share": whole,
        "spurious_share_interval": metrics.mean_interval(inspected.shares[inspected.shares.isfinite()]) if len(known) else None,
        "spurious_lift": lifts.mean().item() if len(lifts) else None,
        "swap_flip_rate": run.flip_rate(model),
    }


def score_classes(predictions: Predictions, run: Run, pasted: Pasted | None, inspected: _Evidence) -> dict[str, ClassScore]:
    """Counts by class, which need no label but the class: what is right, what pasting changes, and the evidence on what was judged spurious."""
    told = {}
    for label, item in enumerate(run.descriptions):
        own, chosen = predictions.labels == label, run.selection.labels == label
        shares = inspected.shares[chosen & inspected.shares.isfinite()]
        counts: dict[str, Any] = {}
        if pasted is not None:
            hosts = pasted.labels == label
            counts = {
                "pasted": int(hosts.sum()),
                "changed": int(pasted.changed[hosts].sum()),
                "right_before": int((pasted.clean[hosts] == label).sum()),
                "right_pasted": int((pasted.swapped[hosts] == label).sum()),
            }
        judged = len(shares) and (run.found or run.coverage.mostly_judged)
        told[item.name] = ClassScore(
            int(own.sum()),
            int(predictions.correct[own].sum()),
            **counts,
            inspected=int(chosen.sum()),
            evidence=shares.mean().item() if judged else None,
            evidence_interval=metrics.mean_interval(shares) if judged else None,
        )
    return told


@dataclass(frozen=True)
class EffectInMasks:
    """For each image the share of its positive effect that lies in its mask, and the lift of that share; None without positive effect."""

    shares: list[float | None]
    lifts: list[float | None]


def effect_in_masks(model: nn.Module, images: StoredImages, masks: Bool[Tensor, "image height width"], run: Run) -> EffectInMasks:
    """Explains the images as ``run`` explains its own, by ``SCORED_BASELINES`` baselines, and looks how much of the effect its mask has."""
    smooth, found = smooth_width(model, run.config.segment), EffectInMasks([], [])
    for part in explain_parts(model, images, read_baselines(model, run.train, run.config, SCORED_BASELINES), run.config) if len(images) else ():
        for heatmap in part.heatmaps:
            row = len(found.shares)
            smoothed = smooth_heatmaps(heatmap[None], smooth)
            found.shares.append(metrics.spurious_share(smoothed, masks[row : row + 1]))
            found.lifts.append(metrics.spurious_lift(smoothed, masks[row : row + 1]))
    return found


def _shortcut_attribution(model: nn.Module, test_set: Dataset, truth: GroundTruth, run: Run, readable: Container[int]) -> dict[str, float | None]:
    """mu_align with its floor, and the lift; none of them without a mask."""
    masked = truth.masked if truth.masked is not None else [index for index in range(len(truth.groups)) if truth.mask(index) is not None]
    most = min(MU_ALIGN_IMAGES, MU_ALIGN_PIXELS // run.attribution.heatmaps[0].numel())
    chosen = torch.randperm(len(masked), generator=seeded(run.config.run.seed, "mu_align"))[:most].tolist()
    masks = {masked[i]: mask for i in chosen if masked[i] in readable and (mask := truth.mask(masked[i])) is not None}
    if not masks:
        return {}
    baselines = read_baselines(model, run.train, run.config, SCORED_BASELINES)
    found = explain_parts(model, StoredImages(test_set, list(masks)), baselines, run.config)
    told = metrics.measure_shortcut(torch.cat([part.heatmaps for part in found]), torch.stack(list(masks.values())))
    return {"mu_align": told.mu_align, "mu_align_floor": told.floor, "shortcut_lift": told.lift}
