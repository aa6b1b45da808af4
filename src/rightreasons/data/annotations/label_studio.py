"""Label Studio's JSON export: tasks with annotations, whose results are brush strokes, shapes in per cent of the image, and choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from jaxtyping import Bool
from torch import Tensor

from rightreasons.data.annotations.region import Region, check_size
from rightreasons.data.annotations.run_lengths import from_label_studio
from rightreasons.data.annotations.shapes import fill_ellipse, fill_polygon, fill_rectangle
from rightreasons.data.tree import is_image

# The key of a task's data that has an image's name as this package exports it.
FILE = "file"
_SHAPES = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")


def is_label_studio(content: object) -> bool:
    """Whether a JSON file's content is a list of tasks."""
    return isinstance(content, list) and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content)


def read_label_studio(content: Sequence[Mapping[str, Any]]) -> list[Region]:
    """The results of each task's last annotation that was not cancelled. Raises ValueError, KeyError or TypeError naming a part that is none."""
    return [region for number, task in enumerate(content, start=1) for region in _read_task(task, f"task {task.get('id', number)}")]


def _read_task(task: Mapping[str, Any], where: str) -> Iterator[Region]:
    done = [each for each in task.get("annotations", task.get("completions", [])) if not each.get("was_cancelled")]
    if not done:
        return
    last = max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at") or pair[1].get("created_at") or ""), pair[0]))[1]
    name = _find_name(task["data"], where)
    for number, result in enumerate(last["result"], start=1):
        kind, value, place = result.get("type"), result.get("value", {}), f"{where}, result {number}"
        if kind == "choices":
            # One control for each segment: <Choices name="S2" ...>.
            yield from (Region(name, str(choice), place, segment=str(result["from_name"])) for choice in value["choices"])
        elif kind in _SHAPES:
            size = check_size(result["original_height"], result["original_width"])
            noted = (result.get("meta") or {}).get("text") or [None]
            segment = noted[0] if isinstance(noted, list) else noted
            yield from (Region(name, str(label), place, partial(_draw, kind, value, size), segment) for label in value[kind][:1])
        elif kind is not None:
            yield Region(name, str(kind), place)


def _find_name(data: Mapping[str, Any], where: str) -> str:
    """The image's name: as this package wrote it, or the path in an address."""
    if isinstance(data.get(FILE), str):
        return data[FILE]
    addresses = [data[key] for key in ("image", *data) if isinstance(data.get(key), str)]
    for address in addresses:
        parts = urlsplit(address)
        name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        if is_image(name) or address == data.get("image"):
            return name
    raise ValueError(f"{where} names no image: expected data.image with a path or an address; it has {', '.join(data) or 'nothing'}")


def _draw(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    height, width = size
    if kind == "brushlabels":
        if value.get("format") != "rle":
            raise ValueError(f"format = {value.get('format')!r}; expected 'rle'")
        return from_label_studio(value["rle"], size)
    if kind == "polygonlabels":
        return fill_polygon([(x * width / 100, y * height / 100) for x, y in value["points"]], size)
    x, y, turn = value["x"] * width / 100, value["y"] * height / 100, value.get("rotation", 0.0)
    if kind == "rectanglelabels":
        return fill_rectangle(x, y, value["width"] * width / 100, value["height"] * height / 100, size, turn=turn)
    return fill_ellipse(x, y, value["radiusX"] * width / 100, value["radiusY"] * height / 100, size, turn=turn)
