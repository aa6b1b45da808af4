"""The pictures that a critic is shown: large enough, true to the image, every segment labelled, and nothing but pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.critic.pictures import COLOURS, EDGE, MARGIN, OUTLINE, SIDE, render_pictures

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def opened(png: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG" and picture.mode == "RGB"
    return np.asarray(picture)


def quarters(side: int = 16) -> torch.Tensor:
    """Four segments, one a quarter."""
    segments = torch.zeros(side, side, dtype=torch.int64)
    segments[: side // 2, side // 2 :], segments[side // 2 :, : side // 2], segments[side // 2 :, side // 2 :] = 1, 2, 3
    return segments


def speckled(channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [8, 28, 300, 600])
def test_pictures_are_large_png_without_metadata(side):
    pictures = render_pictures(speckled(3, side), quarters(side))
    for png in (pictures.clean, pictures.contours, pictures.map):
        picture = Image.open(io.BytesIO(png))
        picture.load()
        assert min(picture.size) >= 512 and not picture.info and not picture.getexif()


def test_clean_is_the_image_enlarged_without_smoothing():
    image = speckled()
    clean = opened(render_pictures(image, quarters()).clean)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    factor = SIDE // 16
    assert clean.shape == (SIDE, SIDE, 3)
    for row, column in np.ndindex(16, 16):
        block = clean[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert (block == pixels[row, column]).all(), "one colour per pixel, and no other"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 900), (1000, 700), (3000, 1000), (700, 7)])
def test_an_image_may_be_finer_than_its_segments(height, width):
    """Segments are laid over the whole of an image of any size and proportions: the point that is 30 % down and 80 % across is in the second one."""
    image = torch.zeros(1, height, width)
    image[:, : height // 2] = 0.5
    pictures = render_pictures(image, quarters())
    clean, flat = opened(pictures.clean), inner(pictures.map)
    assert (
        clean.shape == flat.shape
        and 512 <= max(clean.shape[:2]) <= 1024
        and (height / width) == pytest.approx(clean.shape[0] / clean.shape[1], rel=0.15)
    )
    if min(clean.shape[:2]) > 400:
        for segment, (down, across) in enumerate([(0.3, 0.4), (0.3, 0.9), (0.9, 0.4), (0.9, 0.9)]):
            assert (flat[int(clean.shape[0] * down), int(clean.shape[1] * across)] == COLOURS[segment]).all()
        assert clean[int(clean.shape[0] * 0.45), 5, 0] == 128 and clean[int(clean.shape[0] * 0.55), 5, 0] == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_and_odd_channels_are_shown(channels):
    """Fewer than three channels are the first one in grey, and of more the first three are the colours."""
    image = speckled(channels)
    clean = opened(render_pictures(image, quarters()).clean)
    colours = [0, 1, 2] if channels > 3 else [0, 0, 0]
    assert (clean[:: SIDE // 16, :: SIDE // 16] == (image[colours] * 255).round().byte().permute(1, 2, 0).numpy()).all()


def test_an_image_outside_0_to_1_is_stretched():
    clean = opened(render_pictures(speckled() * 6 - 3, quarters()).clean)
    assert clean.min() == 0 and clean.max() == 255


def inner(png: bytes) -> np.ndarray:
    return opened(png)[MARGIN:-MARGIN, MARGIN:-MARGIN]


def test_contours_leave_the_inside_free():
    pictures = render_pictures(torch.full((1, 16, 16), 0.5), quarters())
    clean, contours = opened(pictures.clean), inner(pictures.contours)
    changed = (clean != contours).any(2)
    rim = OUTLINE + EDGE
    for top, left in CORNERS:
        part = changed[top * 256 : top * 256 + 256, left * 256 : left * 256 + 256]
        label = part[96:160, 80:176].copy()
        part = part.copy()
        part[96:160, 80:176] = False
        assert not part[rim + 1 : 256 - rim - 1, rim + 1 : 256 - rim - 1].any(), "something is filled or drawn inside"
        assert label.any(), "its label is in the middle"
        assert not label.all(), "and covers little of it"
    assert 0.005 < changed.mean() < 0.1


def test_contours_are_two_to_three_pixels_with_a_white_edge():
    segments = torch.full((16, 16), -1)
    segments[4:12, 4:12] = 0
    line = inner(render_pictures(torch.full((1, 16, 16), 0.5), segments).contours)[256 - 70]  # beside the label
    colour, white = (line == COLOURS[0]).all(1), (line == 255).all(1)
    start, end = 4 * 32, 12 * 32
    assert colour[start : start + OUTLINE].all() and colour[end - OUTLINE : end].all() and colour.sum() == 2 * OUTLINE <= 6
    assert white[start + OUTLINE : start + OUTLINE + EDGE].all() and white[start - EDGE : start].all()


def test_map_has_each_segment_in_a_flat_colour_and_none_of_the_image():
    segments = quarters()
    segments[7:9, :] = -1
    flat = inner(render_pictures(speckled(), segments).map)
    for segment, (top, left) in enumerate(CORNERS):
        part = flat[top * 288 : top * 288 + 224, left * 256 : left * 256 + 256]
        assert (part == COLOURS[segment]).all(2).mean() > 0.95
    assert len({tuple(colour) for colour in flat[:, 3]}) == 3, "two segments and what belongs to none"


def labels_alone(segments, **more) -> np.ndarray:
    """Which pixels of the map are text: black is no segment's colour."""
    return (opened(render_pictures(torch.ones(1, *segments.shape), segments, **more).map) == 0).all(2)


def test_every_segment_gets_its_label():
    """Each label differs from the next one's, and lies in its own segment."""
    text = labels_alone(quarters())[MARGIN:-MARGIN, MARGIN:-MARGIN]
    glyphs = [text[top * 256 : top * 256 + 256, left * 256 : left * 256 + 256] for top, left in CORNERS]
    assert all(20 < glyph.sum() < 2000 for glyph in glyphs)
    assert len({glyph.tobytes() for glyph in glyphs}) == 4


def tiny(*pixels) -> torch.Tensor:
    """A segment of one pixel each, in an image of 28 x 28 where the rest belongs to none."""
    segments = torch.full((28, 28), -1)
    for number, (row, column) in enumerate(pixels):
        segments[row, column] = number
    return segments


def margin_labels(segments) -> int:
    """How many separate labels stand in the left margin: its outer strip holds letters, and no line."""
    rows = labels_alone(segments)[:, 8:19].any(1).nonzero()[0]
    return 1 + int((np.diff(rows) > 8).sum()) if len(rows) else 0


def test_a_tiny_segment_is_labelled_in_the_margin_with_a_line_to_it():
    text = labels_alone(tiny((14, 5)))
    row, column = MARGIN + 14 * 19 + 9, MARGIN + 5 * 19 + 9
    assert margin_labels(tiny((14, 5))) == 1
    assert text[row - 3 : row + 4, 45:column].any(0).all(), "the line"
    assert labels_alone(tiny((14, 20)))[:, -40:].any(), "in the nearer margin"


@pytest.mark.parametrize(
    "pixels",
    [
        [(3, 2), (14, 2), (25, 2)],
        [(13, 2), (14, 2), (15, 2), (16, 2), (17, 2)],
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)],
        [(27, 0), (26, 0), (25, 0), (24, 0), (23, 0)],
        [(27, column) for column in range(5)],
    ],
    ids=["apart", "together", "top", "bottom", "bottom row"],
)
def test_margin_labels_do_not_cover_one_another(pixels):
    assert margin_labels(tiny(*pixels)) == len(pixels)


def test_more_segments_than_colours_and_segments_without_pixels():
    segments = torch.arange(400).view(20, 20) // 20  # 20 of them
    segments[segments == 7] = 6
    pictures = render_pictures(speckled(3, 20), segments)
    assert min(opened(pictures.contours).shape[:2]) >= 512


def test_the_same_input_gives_the_same_bytes():
    assert render_pictures(speckled(), quarters()) == render_pictures(speckled(), quarters())
