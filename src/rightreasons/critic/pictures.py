"""The pictures that a critic is shown: the clean image, the image with outlined segments, and the segments alone.

They are PNGs with 512 to 1024 pixels along the longer side, enlarged without smoothing. The image may have more pixels than its segments, which are
scaled to cover it: a critic sees the file's own pixels, with small print and fine lesions, and not the few that the network sees. Outlines are two
to three pixels wide with a white edge, and leave the image inside them visible. Segments are called S1, S2, ...: bare digits could be confused with
MNIST's, letters with X-ray tags.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rightreasons.records import Pictures

SIDE = 512
LONGEST = 1024
MARGIN = 44
FONT_SIZE = 22
OUTLINE = 3
EDGE = 2
# Colours that people with the common kinds of colour blindness can tell apart (after Okabe and Ito 2008); prompts never name them.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (0, 114, 178), (204, 121, 167), (240, 228, 66), (148, 85, 211))
_PAPER = (255, 255, 255)
_EMPTY = (60, 60, 60)
# Everything that shapes a picture except the image and its segments. It is part of a prompt's version, since the style of the marks alone can change
# verdicts.
_MARKS = f"margin={MARGIN} font={FONT_SIZE} outline={OUTLINE} edge={EDGE} paper={_PAPER} empty={_EMPTY} colours={COLOURS}"
STYLE = f"side={SIDE}-{LONGEST} {_MARKS} own pixels v2"
# The style of older runs, which show the network's own pixels. Such a run keeps its style, since its answers are stored by what was shown.
FIRST_STYLE = f"side={SIDE} {_MARKS} v1"


@dataclass(frozen=True)
class _Label:
    text: str
    anchor: tuple[int, int]
    inside: bool
    colour: tuple[int, int, int]


def render_pictures(image: Float[Tensor, "channel image_height image_width"], segments: Int[Tensor, "height width"], style: str = STYLE) -> Pictures:
    """The three pictures of an image. ``segments`` are numbered from 0, with -1 for none, and cover the image. Values outside 0 to 1 are rescaled."""
    clean = _fit(to_bytes(image))
    labels = _lay_over(segments.numpy().astype(np.int16), clean.shape[:2])
    tags = _place_labels(segments, (clean.shape[0] / segments.shape[0], clean.shape[1] / segments.shape[1]))
    outlined = _annotate(_draw_outlines(clean, labels), tags)
    colours = np.array([*(COLOURS[i % len(COLOURS)] for i in range(int(segments.max()) + 1)), _EMPTY], dtype=np.uint8)
    return Pictures(_png(Image.fromarray(clean)), _png(outlined), _png(_annotate(colours[labels], tags)), style)


def to_bytes(image: Float[Tensor, "channel height width"]) -> np.ndarray:
    """The image as bytes of shape (height, width, 3). One channel becomes grey; of more than three the first three are shown."""
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        image = (image - low) / (high - low).clamp_min(1e-12)
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return (shown * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit_size(height: int, width: int) -> tuple[int, int]:
    """A picture's height and width: an integer multiple with a longer side of at least 512 pixels; scaled down to 1024 if that side is longer."""
    longer = max(height, width)
    if longer > LONGEST:
        return max(1, round(height * LONGEST / longer)), max(1, round(width * LONGEST / longer))
    factor = math.ceil(SIDE / longer)
    return height * factor, width * factor


def _fit(pixels: np.ndarray) -> np.ndarray:
    height, width = fit_size(*pixels.shape[:2])
    smaller = height < pixels.shape[0] or width < pixels.shape[1]
    resample = Image.Resampling.BILINEAR if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def _lay_over(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A label map scaled to a picture of another size: each pixel takes the label at its centre."""
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for old, new in zip(labels.shape, shape, strict=True))
    return labels[rows[:, None], columns]


def _draw_outlines(clean: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws the rim of each segment in its colour, with a white edge inside it and on pixels of no segment."""
    picture = clean.copy()
    distance = _distance_to_other(labels, OUTLINE + EDGE)
    inside = labels >= 0
    palette = np.array(COLOURS, dtype=np.uint8)
    rim, edge = inside & (distance <= OUTLINE), (inside & (distance > OUTLINE) & (distance <= OUTLINE + EDGE)) | (~inside & (distance <= EDGE))
    picture[edge] = _PAPER
    picture[rim] = palette[labels[rim] % len(COLOURS)]
    return picture


def _distance_to_other(labels: np.ndarray, reach: int) -> np.ndarray:
    """The distance in pixels, along rows or columns, to the nearest pixel of another label; reach + 1 if it is farther."""
    distance = np.full(labels.shape, reach + 1, dtype=np.int16)
    for step in range(reach, 0, -1):
        for axis in (0, 1):
            ahead = tuple(slice(step, None) if a == axis else slice(None) for a in (0, 1))
            behind = tuple(slice(None, -step) if a == axis else slice(None) for a in (0, 1))
            differs = labels[ahead] != labels[behind]
            distance[ahead][differs] = step
            distance[behind][differs] = step
    return distance


def _place_labels(segments: Int[Tensor, "height width"], factors: tuple[float, float]) -> list[_Label]:
    """Puts each label at the point of its segment that is farthest from the border, or outside with a line to that point if it would not fit."""
    tags = []
    for segment in range(int(segments.max()) + 1):
        mask = segments == segment
        if not mask.any():
            continue
        depth = _depth(mask)
        row, column = divmod(int(depth.argmax()), mask.shape[1])
        room = (2 * float(depth.max()) - 1) * min(factors)
        anchor = (round((column + 0.5) * factors[1]), round((row + 0.5) * factors[0]))
        tags.append(_Label(f"S{segment + 1}", anchor, room >= 2.2 * FONT_SIZE, COLOURS[segment % len(COLOURS)]))
    return tags


def _depth(mask: Tensor) -> Float[Tensor, "height width"]:
    """Each pixel's distance to the outside of a mask, with diagonal steps counted as one.

    It takes two passes over the rows (Rosenfeld and Pfaltz 1966), so the time grows with the number of pixels alone.
    """
    height, width = mask.shape
    distance = np.zeros((height + 2, width + 2), dtype=np.int32)
    distance[1:-1, 1:-1] = np.where(mask.numpy(), height + width, 0)
    columns = np.arange(width + 2, dtype=np.int32)
    for rows in (range(1, height + 1), range(height, 0, -1)):
        before = -1 if rows.step == 1 else 1
        for row in rows:
            near, line = distance[row + before], distance[row]
            line[1:-1] = np.minimum(line[1:-1], np.minimum(np.minimum(near[:-2], near[2:]), near[1:-1]) + 1)
            line[:] = np.minimum.accumulate(line - columns) + columns
            line[:] = (np.minimum.accumulate((line + columns)[::-1])[::-1]) - columns
    return torch.from_numpy(distance[1:-1, 1:-1].copy()).float()


def _annotate(pixels: np.ndarray, tags: list[_Label]) -> Image.Image:
    """The picture with a white margin and its labels; those that do not fit into their segment are in the margin."""
    height, width = pixels.shape[:2]
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), _PAPER)
    sheet.paste(Image.fromarray(pixels), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for left in (True, False):
        beside = [tag for tag in sorted(tags, key=lambda tag: tag.anchor[1]) if not tag.inside and (tag.anchor[0] < width / 2) == left]
        for tag, row in zip(beside, _spread([float(tag.anchor[1] + MARGIN) for tag in beside], sheet.height), strict=True):
            spot, end = (MARGIN / 2 if left else width + 1.5 * MARGIN, row), (tag.anchor[0] + MARGIN, tag.anchor[1] + MARGIN)
            draw.line([spot, end], fill=_PAPER, width=4)
            draw.line([spot, end], fill=(0, 0, 0), width=2)
            _write(draw, spot, tag.text, font)
    for tag in tags:
        if tag.inside:
            _write(draw, (float(tag.anchor[0] + MARGIN), float(tag.anchor[1] + MARGIN)), tag.text, font)
    return sheet


def _spread(rows: list[float], height: int) -> list[float]:
    """Vertical positions of labels in a margin: near their rows, at least a line apart, and on the sheet."""
    step = FONT_SIZE + 4
    placed: list[float] = []
    for row in rows:
        placed.append(max(row, placed[-1] + step) if placed else max(row, step / 2))
    limit = height - step / 2
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - step
    return placed


def _write(draw: ImageDraw.ImageDraw, spot: tuple[float, float], text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    draw.text(spot, text, fill=(0, 0, 0), font=font, anchor="mm", stroke_width=3, stroke_fill=_PAPER)


def _png(image: Image.Image) -> bytes:
    """A PNG encoded from pixels alone, so that it carries no metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
