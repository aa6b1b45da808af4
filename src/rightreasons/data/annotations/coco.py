"""COCO's instances: images, categories, and annotations with polygons, runs or a box. CVAT, Datumaro and FiftyOne keep further ``attributes``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.data.annotations.region import Region, check_size
from rightreasons.data.annotations.run_lengths import from_coco
from rightreasons.data.annotations.shapes import fill_polygon, fill_rectangle


def is_coco(content: object) -> bool:
    """Whether a JSON file's content has COCO's tables."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def read_coco(content: Mapping[str, Any]) -> list[Region]:
    """The annotations of a file. Raises ValueError, KeyError or TypeError naming a part that is none."""
    categories = {each["id"]: str(each["name"]) for each in content.get("categories", [])}
    images = {each["id"]: each for each in content["images"]}
    regions = []
    for number, annotation in enumerate(content["annotations"], start=1):
        where = f"annotation {annotation.get('id', number)}"
        if annotation["image_id"] not in images or annotation["category_id"] not in categories:
            key = "image_id" if annotation["image_id"] not in images else "category_id"
            raise ValueError(f"{where} has {key} = {annotation[key]!r}, which the file does not define")
        image = images[annotation["image_id"]]
        size = check_size(image["height"], image["width"])
        segment = (annotation.get("attributes") or {}).get("segment")
        draw = partial(_draw, annotation, size)
        regions.append(Region(str(image["file_name"]), categories[annotation["category_id"]], where, draw, segment and str(segment)))
    return regions


def _draw(annotation: Mapping[str, Any], size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    marked = annotation.get("segmentation")
    if isinstance(marked, dict):
        if list(marked.get("size", ())) != list(size):
            raise ValueError(f"runs for {marked.get('size')} pixels, and the image has {list(size)} (height, width)")
        return from_coco(marked.get("counts"), size)
    if marked:
        parts = [fill_polygon(list(zip(polygon[::2], polygon[1::2], strict=True)), size) for polygon in marked]
        return torch.stack(parts).any(0)
    left, top, width, height = annotation["bbox"]
    return fill_rectangle(left, top, width, height, size)
