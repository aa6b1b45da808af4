"""A first configuration for a folder of images: what can be read off it is filled in, and what only a person knows is marked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightreasons.common.progress import Reporter
from rightreasons.common.text import clean_text
from rightreasons.config import UNFILLED, parse_data, quote_key, quote_value
from rightreasons.data import open_data, task_defaults
from rightreasons.data.survey import THUMBNAIL, survey_task
from rightreasons.errors import ConfigError, ModelError
from rightreasons.networks.guess import guess_source

# Files that may be a classifier's weights.
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
MOST_SIZES = 3
# The size in pixels that most networks take; smaller images would be computed at several times their own size.
LARGE = 224


@dataclass(frozen=True)
class Draft:
    """The text of a configuration, and a sentence on how its network was guessed."""

    text: str
    told: str


def draft_config(folder: Path, destination: Path, reporter: Reporter, *, checkpoint: Path | None = None) -> Draft:
    """A configuration for the images in ``folder``, whose paths start from where ``destination`` will lie.

    Raises ConfigError for a built-in task, DataError for one that cannot be read, ModelError for a ``checkpoint`` that is none.
    """
    if task_defaults(str(folder)):
        raise ConfigError(f"{folder} is a built-in task, which brings its own configuration: write [data] path = {str(folder)!r} and no more")
    config = parse_data({"path": str(folder), "size": THUMBNAIL}, source=str(folder))
    with reporter.stage("list"):
        task = open_data(config, root=Path.cwd(), seed=0)
    survey = survey_task(task, reporter, decode=False)
    classes: list[str] = survey["classes"]
    found = [checkpoint] if checkpoint is not None else find_weights(folder, destination.parent)
    model, told = _draft_model(found, len(classes), destination.parent, given=checkpoint is not None)
    lines = [
        f"# Written by `rightreasons init`. Every line with {UNFILLED} waits for you; the rest may stay. Paths start from this file.",
        "",
        *_draft_data(folder, survey, destination.parent),
        "",
        *model,
        "",
        "# What an expert knows of each class, in a sentence or two: things that can be pointed at in a picture.",
        *(line for name in classes for line in _draft_class(name)),
        "[critic]",
        '# Who judges: any server that speaks the OpenAI protocol, such as vLLM, Ollama or LM Studio. Or "anthropic:MODEL", "gemini:MODEL",',
        '# "local:FOLDER"; or "human:questions.jsonl": you judge, in a browser, by `rightreasons review`. A host other than this machine needs',
        "# --allow-remote HOST.",
        'lvlm = "openai:qwen2.5-vl"',
        'base_url = "http://127.0.0.1:8000/v1"',
        "",
        "[sample]",
        "size = 100   # images to inspect, the ones that the classifier is surest of: each is a question to the critic",
        "",
        "# Everything else has a default: docs/configuration.md.",
    ]
    return Draft("\n".join(lines) + "\n", told)


def find_weights(folder: Path, beside: Path) -> list[Path]:
    """Files that may be weights: in the folder, beside it, or where the configuration will lie. Folders below are not looked into."""
    places = dict.fromkeys(place.resolve() for place in (folder if folder.is_dir() else folder.parent, folder.resolve().parent, beside))
    return [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.suffix.lower() in WEIGHTS and file.is_file()]


def _draft_data(folder: Path, survey: Mapping[str, Any], beside: Path) -> list[str]:
    """The table [data], with what the folder is read as."""
    counts = [f"{split}: {_count(split_counts)}" for split, split_counts in survey["splits"].items()]
    sizes = ", ".join(f"{size} ({count})" for size, count in list(survey["sizes"].items())[:MOST_SIZES])
    lines = [f"read as {survey['read_as']}", *counts]
    lines += [f"sizes: {sizes}{', ...' if len(survey['sizes']) > MOST_SIZES else ''}"] if sizes else []
    lines += [f"note: {problem}" for problem in survey["problems"]]
    table = [
        "[data]",
        *map(_comment, lines),
        f"path = {quote_value(_relative(folder, beside))}",
        'mode = "rgb"   # grey images too, since most networks take three channels',
    ]
    own = next(iter(survey["sizes"]), "")
    side = max(map(int, own.split("x"))) if own else LARGE
    table += [f"# size = {side}   # the images' own size, if the network takes it: else they are resized to the network's"] if side < LARGE else []
    return [*table, '# flips = "horizontal"   # if an image may be mirrored without changing its class']


def _count(counts: Mapping[str, Any]) -> str:
    by_class = ", ".join(f"{name} {count}" for name, count in counts["classes"].items())
    of = f" of {counts['patients']} patients" if counts["patients"] else ""
    return f"{counts['images']} images{of} ({by_class})"


def _draft_model(found: list[Path], classes: int, beside: Path, *, given: bool) -> tuple[list[str], str]:
    """The table [model], and a sentence on how it was guessed."""
    if len(found) > 1:
        names = ", ".join(_relative(file, beside) for file in found[:5])
        told = f"{len(found)} files may be your classifier's weights ({names}): name one by --checkpoint, or in [model] checkpoint"
        return _draft_untrained(told), told
    if not found:
        told = "no file of weights was found beside the images: the classifier is trained first, unless [model] checkpoint names one"
        return _draft_untrained(told), told
    (file,) = found
    try:
        source = guess_source(file, classes)
    except ModelError as error:
        if given:
            raise
        told = f"{_relative(file, beside)} is no checkpoint that can be used ({error})"
        return _draft_untrained(told), told
    checkpoint = f"checkpoint = {quote_value(_relative(file, beside))}"
    if source is None:
        told = f"{file.name} fits no common network of torchvision with {classes} outputs"
        waits = f"{UNFILLED}: the network that {file.name} belongs to: torchvision:NAME, timm:NAME, or python:module:function beside this file"
        return ["[model]", _comment(told), f"source = {quote_value(waits)}", checkpoint], f"{told}: fill in [model] source"
    told = f"{file.name} fits {source} with {classes} outputs, tensor by tensor"
    return ["[model]", _comment(told), f"source = {quote_value(source)}", checkpoint], told


def _draft_untrained(told: str) -> list[str]:
    """A network to train first, whose ImageNet weights a package carries: nothing is fetched. It resizes images to its own size."""
    return [
        "[model]",
        _comment(told),
        'source = "packaged:efficientnet-lite0"',
        "epochs = 10   # of training, which is the longest part where there is no GPU",
        '# checkpoint = "model.safetensors"   # then source names its network, and nothing is trained first',
    ]


def _draft_class(name: str) -> list[str]:
    waits = f"{UNFILLED}: what in the picture shows that it is {name!r}"
    example = '# irrelevant = "..."   # what may be there and has nothing to do with it: tags, rulers, the background'
    return [f"[classes.{quote_key(name)}]", f"description = {quote_value(waits)}", example, ""]


def _relative(path: Path, beside: Path) -> str:
    return Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix()


def _comment(text: str) -> str:
    """One line, whatever is in a folder's or a file's name."""
    return f"# {' '.join(clean_text(text).split())}"
