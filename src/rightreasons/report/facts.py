"""What the page is about: which model, data and critic, with which settings, by which version, when. No path: a page is forwarded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from rightreasons.run import Run
from rightreasons.runs.appended import now

# Settings that name files, folders or machines: only the last part of what they say is shown.
_PRIVATE = ("data.path", "data.table", "model.checkpoint", "model.pretrained", "segment.weights", "critic.prices", "critic.examples")
# Settings that name a server: not shown at all.
_HIDDEN = ("critic.base_url", "critic.judge_base_url")
_LOCAL = ("scripted:", "human:", "replay:", "local:")


def list_facts(run: Run, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is needed to file the page: (what, its value in words)."""
    environment, config, seen = run.folder.environment(), run.config, metrics["classifier"]["input"]
    weights = run.criticism.weights or ""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    checkpoint = "trained by this run" if config.model.checkpoint is None else PurePath(config.model.checkpoint).name
    return [
        ("Model", f"{shorten(config.model.source)}, {parameters:,} weights"),
        ("Checkpoint", f"{checkpoint}{f', SHA-256 {weights[:16]}' if weights else ''}"),
        ("It sees", f"{seen['width']} x {seen['height']} pixels{', normalised' if seen['mean'] else ''}"),
        ("Data", f"{metrics['task']}: " + ", ".join(f"{count} {split}" for split, count in metrics["data"]["images"].items())),
        ("Inspected", f"{metrics['selection']['size']} training images, {_SELECTIONS[metrics['selection']['strategy']]}"),
        ("Judged by", tell_critic(metrics["critic"])),
        ("Made", f"{environment['made']}; this page: {now()}" if "made" in environment else f"this page: {now()}"),
        ("Version", f"rightreasons {environment['rightreasons']}, torch {environment['torch']}, on {environment['device']}"),
        ("Seed", str(metrics["seed"])),
    ]


_SELECTIONS = {
    "low-entropy": "those of which the classifier is surest (not a random sample)",
    "high-entropy": "those of which the classifier is least sure (not a random sample)",
    "random": "a random sample",
}


def tell_critic(critic: Mapping[str, Any]) -> str:
    """Who judged, with people beside the machine."""
    machine = f"{critic['backend']}, {shorten(critic['model'])}"
    if critic["simulated"]:
        machine = f"a simulated critic made of ground-truth masks ({critic['model']})"
    if critic["backend"] == "human":
        machine = f"a person, asked in {shorten(critic['model'])}"
    if critic["overruled"] == 0:
        return machine
    if critic["overruled"] == critic["segments"]:
        decided = critic["segments"] - critic["unsure"]
        return f"people, who decided {decided} of {critic['segments']} segments" if critic["unsure"] else "people, every segment"
    return f"{machine}; people decided {critic['overruled']} of {critic['segments']} segments"


def list_settings(run: Run) -> list[tuple[str, str]]:
    """Every setting of the run, (key, value), without classes and without what names a place or a machine."""
    return [(key, _show(key, value)) for key, value in _flatten(run.config.model_dump(by_alias=True, exclude={"classes"})) if key not in _HIDDEN]


def shorten(name: str) -> str:
    """A name without the folders of a path: the page is forwarded, and a path names people and machines."""
    kind, colon, rest = name.partition(":")
    if f"{kind}:" in _LOCAL:
        return f"{kind}{colon}{PurePath(rest).name}"
    return PurePath(name).name if name.startswith(("/", "./", "../", "~")) else name


def hide_paths(text: str, run: Run) -> str:
    """A text of the data's without the folder in which they lie, whose name alone stays."""
    root, path = run.project.root, run.config.data.path
    places = {root / path, (root / path).resolve(), root, root.resolve()}
    for place in sorted(map(str, places), key=len, reverse=True):
        text = text.replace(place, PurePath(place).name) if PurePath(place).is_absolute() else text
    return text


def _show(key: str, value: object) -> str:
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return PurePath(text).name if key in _PRIVATE else shorten(text)


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
