"""CVAT's XML for images, version 1.1: boxes, polygons, ellipses, masks and tags below each image."""

from __future__ import annotations

from functools import partial
from xml.etree import ElementTree

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.data.annotations.region import Region, check_size
from rightreasons.data.annotations.run_lengths import from_runs
from rightreasons.data.annotations.shapes import fill_ellipse, fill_polygon, fill_rectangle

_AREAS = ("box", "polygon", "ellipse", "mask")


def read_cvat(text: str) -> list[Region]:
    """The marks of all images. Raises ValueError for text that is no such XML, KeyError for an attribute that is missing."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can be made to grow without a bound, and CVAT writes none
        raise ValueError("it has a DOCTYPE or entities, which CVAT does not write")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML ({error})") from error
    if root.tag != "annotations":
        raise ValueError(f"its root is <{root.tag}>; expected <annotations>, as CVAT writes it")
    if root.find("track") is not None:
        raise ValueError("it has tracks of a video: export the task as 'CVAT for images 1.1'")
    regions = []
    for image in root.iter("image"):
        size = check_size(_number(image, "height"), _number(image, "width"))
        for number, element in enumerate(image, start=1):
            where = f"image {image.get('name')}, <{element.tag}> number {number}"
            if (label := element.get("label")) is None:
                raise ValueError(f"{where} has no label")
            named = next((each.text for each in element.iter("attribute") if each.get("name") == "segment"), None)
            draw = partial(_draw, element, size) if element.tag in _AREAS else None
            regions.append(Region(image.attrib["name"], label, where, draw, (named or "").strip() or None))
    return regions


def _draw(element: ElementTree.Element, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    turn = float(element.get("rotation", 0))
    if element.tag == "polygon":
        points = [tuple(map(float, pair.split(","))) for pair in element.attrib["points"].split(";")]
        return fill_polygon([(x, y) for x, y in points], size)
    if element.tag == "ellipse":
        x, y, radius_x, radius_y = (_number(element, key) for key in ("cx", "cy", "rx", "ry"))
        return fill_ellipse(x, y, radius_x, radius_y, size, turn=turn)
    if element.tag == "box":
        left, top, right, bottom = (_number(element, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return fill_rectangle(left, top, right - left, bottom - top, size, turn=turn, centred=True)
    return _draw_mask(element, size)


def _draw_mask(element: ElementTree.Element, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Runs of unmarked and marked pixels in turn, row by row, in a part of the image."""
    left, top, width, height = (int(_number(element, key)) for key in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"a mask of {width} x {height} pixels at ({left}, {top}) is not inside the image of {size[1]} x {size[0]}")
    mask = torch.zeros(size, dtype=torch.bool)
    runs = [int(length) for length in element.attrib["rle"].split(",")]
    mask[top : top + height, left : left + width] = from_runs(runs, (height, width)).view(height, width)
    return mask


def _number(element: ElementTree.Element, key: str) -> float:
    said = element.get(key)
    try:
        return float(said or "")
    except ValueError:
        raise ValueError(f"<{element.tag}> has {key} = {said!r}; expected a number") from None
