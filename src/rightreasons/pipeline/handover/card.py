"""The model card: what was found and changed, who judged it, the scores with their intervals, how to use the model, and what it cannot tell."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import jinja2

from rightreasons.common.text import clean_text, drop_folders
from rightreasons.pipeline.handover.formats import Written
from rightreasons.run import Run
from rightreasons.scoring.metrics import wilson_interval

# Markdown reads these as marks, and HTML in it is HTML.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_ROWS = (
    ("accuracy", "Accuracy"),
    ("worst_group_accuracy", "Accuracy of the worst group"),
    ("average_group_accuracy", "Mean accuracy over groups"),
    ("spurious_share", "Share of the evidence on what was judged spurious (0 is best)"),
    ("swap_flip_rate", "Answers changed by pasting it in (0 is best)"),
    ("mu_align", "Share of the attribution outside the shortcut (1 is best)"),
    ("mu_align_floor", "The same of a map that looks at everything alike"),
)
# The names by which Hugging Face's tables know a metric.
_HUB = {"accuracy": "accuracy"}


@dataclass(frozen=True)
class Fit:
    """A verdict on the exported model, as far as shortcuts go, and on each of its classes: (class, verdict, reasons).

    ``verdict`` is None where none was given of this very model. ``remark`` says what is missing, and is "" where nothing is.
    """

    verdict: str | None
    classes: tuple[tuple[str, str, str], ...]
    remark: str


@dataclass(frozen=True)
class Row:
    """One metric of the card's table, with the model before and the exported one."""

    key: str
    words: str
    values: tuple[str, ...]


def write_card(
    path: Path, run: Run, metrics: Mapping[str, Any], *, which: str, scores: str, written: Sequence[Written], remarks: Sequence[str]
) -> None:
    """Writes README.md in the form of a Hugging Face model card. ``scores`` is the key of the exported model's scores in metrics.json."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rightreasons.pipeline.handover", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    split = "test" if "test" in metrics["data"]["images"] else "validation"
    columns = ["before"] if scores == "before" else ["before", scores]
    exported = metrics[scores]
    text = environment.get_template("card.md.jinja").render(
        which=which,
        metrics=metrics,
        exported=exported,
        columns=columns,
        rows=[
            Row(key, words, tuple(tell_score(metrics, column, key, split) for column in columns))
            for key, words in _ROWS
            if exported.get(key) is not None
        ],
        groups=[(name, tuple(tell_group(metrics[column]["groups"].get(name)) for column in columns)) for name in exported["groups"]],
        results=[(_HUB.get(key, key), words, exported[key]) for key, words in _ROWS if exported.get(key) is not None],
        split=split,
        verdict=tell_verdict(metrics, scores),
        judges=tell_judges(metrics["critic"]),
        descriptions=run.descriptions,
        written=[format_ for format_ in written if not format_.problem],
        failed=[format_ for format_ in written if format_.problem],
        formats={format_.name for format_ in written if not format_.problem},
        remarks=remarks,
        limits=list_limits(metrics, split),
        deep=bool(run.config.data.window or run.project.task.windows),
        align=run.config.align,
        versions=list_versions(),
        made_with=run.folder.environment(),
    )
    path.write_text(text, encoding="utf-8")


def escape_words(text: object) -> str:
    """Text from a configuration, a folder or a model as words in Markdown: on one line, and neither marks nor HTML."""
    return _MARKS.sub(r"\\\1", " ".join(clean_text(str(text)).split()))


def to_yaml(value: object) -> str:
    """A value of the card's front matter. JSON's strings and numbers are YAML's."""
    return json.dumps(clean_text(value) if isinstance(value, str) else value, ensure_ascii=False)


def tell_score(metrics: Mapping[str, Any], column: str, key: str, split: str) -> str:
    """A score in words, with its 95 % interval if the images or the groups tell one."""
    scores = metrics[column]
    value = scores.get(key)
    if value is None:
        return "-"
    return f"{value:.3f}" + _tell_interval(find_interval(scores, key, metrics["data"]["images"].get(split, 0)))


def find_interval(scores: Mapping[str, Any], key: str, count: int) -> tuple[float, float] | None:
    """A score's 95 % interval: over objects where the run has it, else by Wilson over ``count`` images, or over those of the worst group."""
    if key in scores.get("intervals", {}):
        low, high = scores["intervals"][key]
        return low, high
    if key == "accuracy" and count:
        return wilson_interval(round(scores[key] * count), count)
    if key == "worst_group_accuracy" and scores["groups"]:
        worst = min(scores["groups"].values(), key=lambda group: group["accuracy"])
        return wilson_interval(round(worst["accuracy"] * worst["count"]), worst["count"])
    return None


def tell_group(group: Mapping[str, Any] | None) -> str:
    """A group's accuracy with its interval and its number of images."""
    if group is None:
        return "-"
    interval = wilson_interval(round(group["accuracy"] * group["count"]), group["count"]) if group["count"] else None
    return f"{group['accuracy']:.3f}{_tell_interval(interval)}, {group['count']} images"


def _tell_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def tell_verdict(metrics: Mapping[str, Any], scores: str) -> Fit:
    """Whether the model with the scores of the key ``scores`` is fit for use. ``fitness`` of metrics.json is of one model alone."""
    fitness = metrics.get("fitness")
    if fitness is None:
        return Fit(None, (), "No verdict was given: the run was scored by a version that gave none.")
    classes = fitness["classes"].items()
    if fitness["model"] == scores:
        return Fit(fitness["verdict"], tuple((name, item["verdict"], "; ".join(item["reasons"])) for name, item in classes), "")
    if scores == "before":
        verdict = next((worst for worst in ("not fit", "cannot tell") if any(item["before"] == worst for _, item in classes)), "fit for use")
        told = tuple((name, item["before"], "-") for name, item in classes)
        return Fit(verdict, told, "The reasons were kept for the repaired model alone.")
    return Fit(None, (), "No verdict was given of this model, but of the one that the run kept.")


def tell_judges(critic: Mapping[str, Any]) -> str:
    """Who gave the verdicts, in a sentence; a name that is a path is told without its folders, since the card is handed on."""
    backend, model = critic["backend"], critic["model"]
    name = PurePath(model).name if backend in ("scripted", "human", "replay", "local") else model
    if critic["simulated"]:
        judge = "A simulated critic, made of ground-truth masks, gave the verdicts. No vision-language model took part"
    elif backend == "scripted":
        judge = "A script gave the verdicts. No vision-language model took part"
    elif backend == "human":
        judge = "People gave the verdicts. No vision-language model took part"
    else:
        judge = f"The vision-language model {escape_words(name)} ({escape_words(backend)}) gave the verdicts"
    overruled = f", and people decided on {critic['overruled']} of {critic['segments']} segments" if critic["overruled"] else ""
    return f"{judge}{overruled}."


def list_limits(metrics: Mapping[str, Any], split: str) -> list[str]:
    """What the scores do not tell, from this run's own numbers."""
    critic, coverage, limits = metrics["critic"], metrics["coverage"], []
    if critic["simulated"]:
        limits.append("The verdicts are made of ground truth that nobody has in practice: a real critic errs more often.")
    limits.append(f"Only {coverage['images']} training images were inspected. A shortcut that none of them shows was neither found nor repaired.")
    unjudged = coverage["segments"] - coverage["judged"]
    if unjudged:
        limits.append(f"{unjudged} of {coverage['segments']} segments have no verdict, or an unsure one.")
    if critic["waiting"]:
        limits.append(f"{critic['waiting']} verdicts wait for a person, and counted as the model gave them.")
    if split == "validation":
        limits.append("There was no test split: the scores are those on the validation images, which also chose the epoch of the repair.")
    if not metrics["before"]["groups"]:
        limits.append("Groups are not known, so that the accuracy on the images that contradict the shortcut is not known either.")
    if metrics["data"].get("images_in_two_splits"):
        limits.append(f"{metrics['data']['images_in_two_splits']} images are in two splits, which makes the scores look better.")
    limits.append("Intervals are over images (or objects, where they are known) of one run with one seed; another training would differ more.")
    limits.append("A score without an interval is a point estimate.")
    return limits


def list_versions() -> dict[str, str]:
    """The versions of what wrote and checked the files."""
    found = {"python": platform.python_version()}
    for package in ("rightreasons", "torch", "safetensors", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# What the template calls on what it shows.
_FILTERS = {
    "words": escape_words,
    "yaml": to_yaml,
    "nameless": drop_folders,
    "percent": lambda share: f"{100 * share:.1f} %",
    "brief": lambda number: f"{number:.2g}",
}
