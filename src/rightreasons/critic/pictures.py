"""The pictures that a critic is shown: the clean image, the image with outlined segments, the segments alone; and close-ups of one segment.

They are PNGs with 512 to 1024 pixels along the longer side, enlarged without smoothing. The image may have more pixels than its segments, which are
scaled to cover it: a critic sees the file's own pixels, with small print and fine lesions, and not the few that the network sees. Outlines are two
to three pixels wide with a white edge, and leave the image inside them visible. Segments are called S1, S2, ...: bare digits could be confused with
MNIST's, letters with X-ray tags.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
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
_PAPER_INDEX, _EMPTY_INDEX = len(COLOURS), len(COLOURS) + 1
# The filter "up" and the colour type of the PNG specification.
_PNG_UP, _PNG_RGB = 2, 2
# Everything that shapes a picture except the image and its segments. It is part of a prompt's version, since the style of the marks alone can change
# verdicts.
_MARKS = f"margin={MARGIN} font={FONT_SIZE} outline={OUTLINE} edge={EDGE} paper={_PAPER} empty={_EMPTY} colours={COLOURS}"
STYLE = f"side={SIDE}-{LONGEST} {_MARKS} own pixels v2"
# The style of older runs, which show the network's own pixels. Such a run keeps its style, since its answers are stored by what was shown.
FIRST_STYLE = f"side={SIDE} {_MARKS} v1"

# A close-up is cut from the file's own pixels, up to FINEST along the longer side of the whole image, and is a square where the image allows one. Its
# side is the longer side of the box that has the segment's effect without TAIL of it at each end, widened by WIDEN of that on each side, and at least
# NEAREST of the image's shorter side.
FINEST = 2048
TAIL = 0.05
WIDEN = 0.25
NEAREST = 0.25
CLOSE_STYLE = f"side={SIDE}-{LONGEST} finest={FINEST} tail={TAIL} widen={WIDEN} nearest={NEAREST} {_MARKS} v1"


@dataclass(frozen=True)
class CloseUp:
    """The part of an image around one segment, as it is and with the outlines of the segment and of its core, as PNG bytes.

    The core is the smallest part that holds half of the segment's effect. ``width`` and ``height`` are the close-up's share of the image's.
    """

    clean: bytes
    outlined: bytes
    width: float
    height: float


@dataclass(frozen=True)
class _Label:
    text: str
    anchor: tuple[int, int]
    inside: bool
    colour: tuple[int, int, int]


def render_pictures(image: Float[Tensor, "channel image_height image_width"], segments: Int[Tensor, "height width"], style: str = STYLE) -> Pictures:
    """The three pictures of an image. ``segments`` are numbered from 0, with -1 for none, and cover the image. Values outside 0 to 1 are rescaled."""
    clean = _fit(to_bytes(image))
    labels = _lay_over(segments.numpy().astype(np.int16), (clean.height, clean.width))
    tags = _place_labels(segments, (clean.height / segments.shape[0], clean.width / segments.shape[1]))
    flat = _paint(np.where(labels >= 0, labels % len(COLOURS), _EMPTY_INDEX))
    return Pictures(_png(clean), _png(_annotate(_draw_outlines(clean, labels), tags)), _png(_annotate(flat, tags)), style)


def render_close_up(
    pixels: UInt8[np.ndarray, "image_height image_width 3"], effect: Float[Tensor, "height width"], *, around: Bool[Tensor, "height width"]
) -> CloseUp:
    """The close-up of the segment at the pixels ``around``, which cover the image, with their positive ``effect``. No other segment is outlined."""
    weights = np.where(around.numpy(), effect.clamp_min(1e-12).numpy(), 0).astype(np.float64)
    size = pixels.shape[:2]
    rows, columns = (_middle(weights.sum(1 - axis), length) for axis, length in enumerate(size))
    side = max(rows[1] - rows[0], columns[1] - columns[0]) * (1 + 2 * WIDEN)
    side = math.ceil(max(side, NEAREST * min(size)))
    rows, columns = _widen(rows, side, size[0]), _widen(columns, side, size[1])
    clean = _fit(pixels[slice(*rows), slice(*columns)])
    labels = np.where(around.numpy(), np.where(_find_core(weights), 1, 0), -1)
    outlined = _draw_outlines(clean, _lay_over(_lay_over(labels, size, rows, columns), (clean.height, clean.width)))
    return CloseUp(_png(clean), _png(outlined), (columns[1] - columns[0]) / size[1], (rows[1] - rows[0]) / size[0])


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


def _fit(pixels: np.ndarray) -> Image.Image:
    height, width = fit_size(*pixels.shape[:2])
    smaller = height < pixels.shape[0] or width < pixels.shape[1]
    resample = Image.Resampling.BILINEAR if smaller else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((width, height), resample)


def _lay_over(labels: np.ndarray, shape: tuple[int, ...], *ends: tuple[int, int]) -> np.ndarray:
    """A label map scaled to a picture of another size, or to its part between the ``ends`` of rows and columns: each pixel takes the label at its
    centre.
    """
    parts = ends or tuple((0, new) for new in shape)
    rows, columns = ((np.arange(*part) * 2 + 1) * old // (2 * new) for old, new, part in zip(labels.shape, shape, parts, strict=True))
    return labels[rows[:, None], columns]


def _middle(weights: Float[np.ndarray, " old"], length: int) -> tuple[int, int]:
    """The stretch that has the weight but for TAIL of it at each end, on a side of another length."""
    reached = weights.cumsum() / weights.sum()
    start, end = int((reached <= TAIL).sum()), int((reached < 1 - TAIL).sum()) + 1
    return start * length // len(weights), math.ceil(end * length / len(weights))


def _find_core(weights: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The fewest pixels that hold half of the weight; equal ones go together."""
    falling = np.sort(weights, axis=None)[::-1]
    return weights >= falling[int((falling.cumsum() < falling.sum() / 2).sum())]


def _widen(ends: tuple[int, int], side: int, length: int) -> tuple[int, int]:
    """A stretch of ``side`` around the middle between ``ends``, or all of a shorter side, moved so that it lies within ``length``."""
    side = min(side, length)
    start = min(max(0, (ends[0] + ends[1] - side) // 2), length - side)
    return start, start + side


def _paint(indices: np.ndarray) -> Image.Image:
    """A picture of the palette's colours: those of segments, then paper, then what belongs to no segment."""
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette([value for colour in (*COLOURS, _PAPER, _EMPTY) for value in colour])
    return picture.convert("RGB")


def _draw_outlines(clean: Image.Image, labels: np.ndarray) -> Image.Image:
    """Draws the rim of each segment in its colour, with a white edge inside it and on pixels of no segment."""
    inside = labels >= 0
    rim = inside & _near_another(labels, OUTLINE)
    edge = _near_another(labels, OUTLINE + EDGE) & inside | _near_another(labels, EDGE) & ~inside
    drawn = _paint(np.where(rim, labels % len(COLOURS), _PAPER_INDEX))
    return Image.composite(drawn, clean, Image.fromarray(rim | edge))


def _near_another(labels: np.ndarray, reach: int) -> np.ndarray:
    """Whether a pixel of another label is at most ``reach`` pixels away along the row or column."""
    near = np.zeros(labels.shape, dtype=bool)
    for across, differs in ((near, labels[1:] != labels[:-1]), (near.T, (labels[:, 1:] != labels[:, :-1]).T)):
        for step in range(1, min(reach, len(differs)) + 1):
            # Between a pixel and one ``step`` farther on there is a border if one lies ``step`` - 1 pixels on.
            across[: len(differs) - step + 1] |= differs[step - 1 :]
            across[step:] |= differs[: len(differs) - step + 1]
    return near


def _place_labels(segments: Int[Tensor, "height width"], factors: tuple[float, float]) -> list[_Label]:
    """Puts each label at the point of its segment that is farthest from the border, or outside with a line to that point if it would not fit."""
    tags, depths = [], _depth(segments)
    for segment in range(int(segments.max()) + 1):
        depth = np.where(segments.numpy() == segment, depths, 0)
        deepest = int(depth.max())
        if deepest == 0:
            continue
        row, column = divmod(int(depth.argmax()), segments.shape[1])
        room = (2 * deepest - 1) * min(factors)
        anchor = (round((column + 0.5) * factors[1]), round((row + 0.5) * factors[0]))
        tags.append(_Label(f"S{segment + 1}", anchor, room >= 2.2 * FONT_SIZE, COLOURS[segment % len(COLOURS)]))
    return tags


def _depth(segments: Int[Tensor, "height width"]) -> Int[np.ndarray, "height width"]:
    """Each pixel's distance to the nearest one outside its segment, with diagonal steps counted as one.

    The nearest pixel beside a border is always one of the same segment, so one map of distances to borders holds for all segments. It takes two
    passes over the rows (Rosenfeld and Pfaltz 1966): the time grows with the number of pixels alone.
    """
    padded = np.pad(segments.numpy(), 1, constant_values=-2)
    middle = padded[1:-1, 1:-1]
    border = np.zeros(middle.shape, dtype=bool)
    for row, column in itertools.product(range(3), range(3)):
        border |= padded[row : row + middle.shape[0], column : column + middle.shape[1]] != middle
    distance = np.where(border, 1, sum(middle.shape)).astype(np.int32)
    columns = np.arange(middle.shape[1], dtype=np.int32)
    for rows in (range(len(distance)), range(len(distance) - 1, -1, -1)):
        near = np.full(middle.shape[1] + 2, sum(middle.shape), dtype=np.int32)
        for row in rows:
            line = np.minimum(distance[row], np.minimum(np.minimum(near[:-2], near[2:]), near[1:-1]) + 1)
            line = np.minimum.accumulate(line - columns) + columns
            distance[row] = near[1:-1] = np.minimum.accumulate((line + columns)[::-1])[::-1] - columns
    return distance


def _annotate(picture: Image.Image, tags: list[_Label]) -> Image.Image:
    """The picture with a white margin and its labels; those that do not fit into their segment are in the margin."""
    width, height = picture.size
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), _PAPER)
    sheet.paste(picture, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(sheet)
    font = _font()
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


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _png(picture: Image.Image) -> bytes:
    """A PNG of pixels alone, without metadata.

    Each row is stored as its difference from the one above: an enlarged pixel's rows after the first are all zeros, which runs of one byte describe.
    That is as small as a search for the best filter of each row, and takes half the time.
    """
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    rows = np.empty((height, 3 * width + 1), dtype=np.uint8)
    rows[:, 0] = _PNG_UP
    rows[0, 1:] = pixels[0].reshape(-1)
    np.subtract(pixels[1:].reshape(height - 1, -1), pixels[:-1].reshape(height - 1, -1), out=rows[1:, 1:])
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    body = deflate.compress(rows.data) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_RGB, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG: its length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
