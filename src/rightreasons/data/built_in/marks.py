"""Marks across an object: a half-transparent word, pen strokes, or the scale of a ruler. Thin, and on top of what matters.

Every mark is drawn large and made smaller, so that its edges are soft. Its mask is the strokes themselves, and not the box around them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

# Marks are drawn on a canvas of this many pixels a side.
CANVAS = 512
# All lengths are shares of the picture's side. How far a mark reaches from end to end, and how thick its lines are.
REACH = (0.62, 0.78)
PEN_WIDTH, SCALE_WIDTH = (0.018, 0.028), (0.012, 0.018)
# The length of a scale's short and long ticks, and the distance between two.
TICKS, PITCH = (0.05, 0.09), 0.045
# The height of a word's letters follows from its reach, but is never more than this.
TALLEST = 0.30
WORDS = ("SAMPLE", "COPY", "DRAFT", "PROOF", "STOCK")
# How opaque each kind is.
OPACITY = {"word": (0.45, 0.55), "pen": (0.75, 0.95), "scale": (0.75, 0.95)}
# White and black for words; the inks of pens; and dark greys for scales.
COLOURS = {
    "word": ((255, 255, 255), (10, 10, 10)),
    "pen": ((30, 50, 190), (190, 20, 40), (20, 20, 20), (20, 120, 50)),
    "scale": ((15, 15, 15), (60, 60, 60)),
}


@dataclass(frozen=True)
class Mark:
    """A mark's one colour (0 to 1), how far it covers each pixel (0 to 1), and the pixels that are mostly under its strokes."""

    colour: Float[np.ndarray, " channel"]
    cover: Float[np.ndarray, "side side"]
    mask: Bool[np.ndarray, "side side"]


def draw_mark(x: float, y: float, side: int, generator: torch.Generator) -> Mark:
    """One of the three kinds at random, across the point (x, y), which is in shares of the side."""
    kind = tuple(_DRAWN)[int(torch.randint(len(_DRAWN), (), generator=generator))]
    drawn = _DRAWN[kind](x * CANVAS, y * CANVAS, generator)
    strokes = np.asarray(drawn.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    colours = COLOURS[kind]
    colour = np.array(colours[int(torch.randint(len(colours), (), generator=generator))], np.float32) / 255
    return Mark(colour, strokes * _between(OPACITY[kind], generator), strokes > 0.5)


def _draw_word(x: float, y: float, generator: torch.Generator) -> Image.Image:
    """A word that is slightly turned."""
    word = WORDS[int(torch.randint(len(WORDS), (), generator=generator))]
    wanted = _between(REACH, generator) * CANVAS
    size = 100
    width = ImageFont.load_default(size=size).getlength(word)
    font = ImageFont.load_default(size=min(size * wanted / width, TALLEST * CANVAS))
    picture = Image.new("L", (CANVAS, CANVAS))
    # Without a heavier outline the strokes would be one pixel wide at 128 pixels.
    ImageDraw.Draw(picture).text((x, y), word, fill=255, font=font, anchor="mm", stroke_width=CANVAS / 170)
    return picture.rotate(_between((-25.0, 25.0), generator), Image.Resampling.BICUBIC, center=(x, y))


def _draw_pen(x: float, y: float, generator: torch.Generator) -> Image.Image:
    """Two or three wavy lines, side by side."""
    picture = Image.new("L", (CANVAS, CANVAS))
    brush = ImageDraw.Draw(picture)
    angle, reach = _between((0.0, math.pi), generator), _between(REACH, generator) * CANVAS
    count = int(torch.randint(2, 4, (), generator=generator))
    for line in range(count):
        beside = (line - (count - 1) / 2) * 0.13 * CANVAS
        waves, phase, height = _between((0.7, 1.6), generator), _between((0.0, 2 * math.pi), generator), _between((0.02, 0.05), generator) * CANVAS
        along = np.linspace(-0.5, 0.5, 80)
        across = beside + height * np.sin(2 * math.pi * waves * along + phase)
        _draw_line(brush, *_turn(along * reach, across, angle, x, y), _between(PEN_WIDTH, generator) * CANVAS)
    return picture


def _draw_scale(x: float, y: float, generator: torch.Generator) -> Image.Image:
    """A line with a tick at even distances, and every fifth longer."""
    picture = Image.new("L", (CANVAS, CANVAS))
    brush = ImageDraw.Draw(picture)
    angle, width = _between((0.0, math.pi), generator), _between(SCALE_WIDTH, generator) * CANVAS
    count = round(_between(REACH, generator) / PITCH)
    starts = (np.arange(count + 1) - count / 2) * PITCH * CANVAS
    _draw_line(brush, *_turn(starts[[0, -1]], np.zeros(2), angle, x, y), width)
    for place, start in enumerate(starts):
        length = TICKS[place % 5 == 0] * CANVAS
        _draw_line(brush, *_turn(np.array([start, start]), np.array([0, length]), angle, x, y), width)
    return picture


_DRAWN = {"word": _draw_word, "pen": _draw_pen, "scale": _draw_scale}


def _turn(along: np.ndarray, across: np.ndarray, angle: float, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """The points at these distances along and across a line through (x, y) at this angle."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return x + along * cosine - across * sine, y + along * sine + across * cosine


def _draw_line(brush: ImageDraw.ImageDraw, columns: np.ndarray, rows: np.ndarray, width: float) -> None:
    brush.line(list(zip(columns.tolist(), rows.tolist(), strict=True)), fill=255, width=max(1, round(width)), joint="curve")


def _between(span: tuple[float, float], generator: torch.Generator) -> float:
    return span[0] + (span[1] - span[0]) * torch.rand((), generator=generator).item()
