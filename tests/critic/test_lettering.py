"""Printed lines are found, and pictures without any are mostly left alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from rightreasons.critic.lettering import _connected_parts, has_lettering

LINES = ("MUSTERMANN, ERIKA 12.08.1964", "Patient 4711 female", "DOE^JOHN M 045Y")


def noise(side: int = 256, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).normal(90, 25, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def shades(side: int = 256, seed: int = 0) -> Image.Image:
    """Large soft blobs, as an X-ray has."""
    coarse = np.random.default_rng(seed).integers(0, 200, (9, 9), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def write(image: Image.Image, text: str, size: int = 16, fill=(255, 255, 255)) -> Image.Image:
    ImageDraw.Draw(image).text((8, 10), text, fill=fill, font=ImageFont.load_default(size))
    return image


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("size", [12, 16])
@pytest.mark.parametrize("fill", [(255, 255, 255), (0, 0, 0)])
def test_a_printed_line_is_found(text, size, fill):
    assert has_lettering(np.asarray(write(noise(), text, size, fill)))


def test_on_an_xrays_shades():
    found = [has_lettering(np.asarray(write(shades(seed=seed), text, 16))) for seed in range(5) for text in LINES]
    assert sum(found) >= 0.8 * len(found)


def test_after_jpeg(tmp_path):
    write(noise(), LINES[0]).save(tmp_path / "x.jpg", quality=85)
    assert has_lettering(np.asarray(Image.open(tmp_path / "x.jpg")))


@pytest.mark.parametrize("draw", [noise, shades])
@pytest.mark.parametrize("side", [16, 64, 256])
def test_pictures_without_text(draw, side):
    assert not any(has_lettering(np.asarray(draw(side, seed))) for seed in range(8))


def test_a_plain_plate_a_ruler_and_one_letter_are_no_line():
    for shape in ("plate", "ruler", "letter"):
        image = Image.new("RGB", (256, 256), (70, 70, 70))
        draw = ImageDraw.Draw(image)
        if shape == "plate":
            draw.rectangle((10, 10, 90, 40), fill=(255, 230, 40))
        elif shape == "ruler":
            for x in range(10, 240, 8):
                draw.rectangle((x, 200, x + 1, 215), fill=(255, 255, 255))
        else:
            write(image, "R", 24)
        assert not has_lettering(np.asarray(image)), shape


def test_parts_against_a_flood_fill():
    """Every part's box and number of pixels, on random masks: connected by sides and corners."""
    random = np.random.default_rng(1)
    for density in (0.1, 0.3, 0.5, 0.9):
        mask = random.random((17, 23)) < density
        grey = random.integers(0, 255, mask.shape).astype(np.uint8)
        left, expected = {(int(row), int(column)) for row, column in np.argwhere(mask)}, set()
        while left:
            group, front = set(), [left.pop()]
            while front:
                row, column = front.pop()
                group.add((row, column))
                near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                front += near
            rows, columns = [row for row, _ in group], [column for _, column in group]
            expected.add((min(rows), max(rows) + 1, min(columns), max(columns) + 1, len(group)))
        found = _connected_parts(mask, grey)
        assert {(part.top, part.bottom, part.left, part.right, part.pixels) for part in found} == expected
