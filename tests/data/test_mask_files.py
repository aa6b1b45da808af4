"""What a mask's file marks: every form that people keep masks in, by its rule; and what two rules could read is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.data.decode import decode_mask
from rightreasons.data.mask_files import shrink_mask
from rightreasons.errors import UnreadableImage

SQUARE = np.zeros((32, 32), np.uint8)
SQUARE[8:20, 6:16] = 1
# Indices 0, 1, 2 and 255 in the colours that PASCAL VOC's palette gives them (VOC2012 development kit, section 3.3; 255 is void).
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * (252 * 3), 224, 224, 192]


def void_around(square: np.ndarray) -> np.ndarray:
    marked = square.copy()
    marked[7, 5:17] = marked[20, 5:17] = 255
    marked[7:21, 5] = marked[7:21, 16] = 255
    return marked


def palette(indices: np.ndarray, colours: list[int] = VOC) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(colours)
    return image


def layer(colour: tuple[int, ...], alpha: np.ndarray) -> Image.Image:
    mode = "LA" if len(colour) == 1 else "RGBA"
    return Image.merge(mode, [*(Image.new("L", (32, 32), value) for value in colour), Image.fromarray(alpha)])


def coloured(*colours: tuple[int, int, int]) -> Image.Image:
    """Black, with the upper half of the square in the first colour and the lower half in the last."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:14, 6:16], pixels[14:20, 6:16] = colours[0], colours[-1]
    return Image.fromarray(pixels)


def two(low: int, high: int, kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(SQUARE, high, low).astype(kind))


def labels(square: np.ndarray) -> np.ndarray:
    marked = square.copy()
    marked[14:20, 6:16] = 2
    return marked


READ = {
    "black and white": two(0, 255), "zero and one": two(0, 1), "one bit": Image.fromarray(SQUARE > 0), "16 bits": two(0, 65535, np.uint16),
    "16 bits of one": two(0, 1, np.uint16), "labels 0, 1, 2": Image.fromarray(labels(SQUARE)), "floating point": two(0, 1, np.float32),
    "labels and void": Image.fromarray(void_around(SQUARE)), "many labels and void": Image.fromarray(void_around(labels(SQUARE) * 10)),
    "palette and void": palette(void_around(SQUARE)), "palette of two objects": palette(labels(SQUARE)), "black palette": palette(SQUARE, [0] * 768),
    "palette whose background is not the first": palette(1 - SQUARE, [255, 0, 0, 0, 0, 0]),
    "palette of greys": palette(SQUARE * 255, np.arange(256).repeat(3).tolist()),
    "palette of white first": palette(1 - SQUARE, [255, 255, 255, 0, 0, 0]), "palette without black": palette(SQUARE, [68, 1, 84, 253, 231, 37]),
    "drawn in black on a layer": layer((0, 0, 0), SQUARE * 255), "drawn in white": layer((255, 255, 255), SQUARE * 255),
    "drawn in grey": layer((255,), SQUARE * 255), "drawn in red, half through": layer((255, 0, 0), SQUARE * 200),
    "opaque": Image.merge("RGBA", [*[two(0, 255)] * 3, Image.new("L", (32, 32), 255)]), "red": coloured((128, 0, 0)),
    "red and green": coloured((128, 0, 0), (0, 255, 0)), "grey in three channels": coloured((7, 7, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_forms_of_masks(tmp_path, name):
    image = READ[name]
    path = tmp_path / ("a.tif" if image.mode == "F" else "a.png")
    image.save(path)
    assert (decode_mask(path).numpy() == (SQUARE > 0)).all()


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("name", ["black and white", "red"])
def test_compression_leaves_a_mask_what_it_is(tmp_path, name, quality):
    image = READ[name].convert("RGB") if name == "red" else READ[name]
    image = image if name != "red" else coloured((255, 40, 30))
    image.resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=quality)
    expected = SQUARE.repeat(8, 0).repeat(8, 1) > 0
    assert (decode_mask(tmp_path / "a.jpg").numpy() == expected).mean() > 0.995


def test_soft_edges(tmp_path):
    two(0, 255).resize((256, 256), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    assert (decode_mask(tmp_path / "a.png").numpy() == (SQUARE.repeat(8, 0).repeat(8, 1) > 0)).mean() > 0.99


REFUSED = {
    "no black": (two(100, 255), "none is black"), "labels from one": (two(1, 2), "none is black"), "three greys": (
        Image.fromarray(SQUARE * 100 + np.eye(32, dtype=np.uint8).cumsum(1).astype(np.uint8) * 100), "neither dark nor bright"),
    "a photograph": (Image.fromarray(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4), "neither dark nor bright"),
    "colours without black": (Image.merge("RGB", [two(255, 255), two(255, 0), two(255, 0)]), "none is black"),
    "void alone": (palette(SQUARE * 255), "index 255 alone"), "a wholly transparent image": (
        Image.merge("RGBA", [*[two(0, 255)] * 3, Image.new("L", (32, 32), 0)]), "wholly transparent"),
    "a mask on a layer that is opaque in part": (
        Image.merge("RGBA", [*[two(0, 255)] * 3, Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 4))]), "black in part"),
    "no background": (palette(SQUARE + 1, [0, 0, 0, 9, 0, 0, 0, 9, 0]), "background cannot be told"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_rules_could_read_is_refused(tmp_path, name):
    image, words = REFUSED[name]
    image.save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=words):
        decode_mask(tmp_path / "a.png")


def test_label_numbers_in_a_jpeg_are_refused(tmp_path):
    two(0, 3).save(tmp_path / "a.jpg", quality=100)
    with pytest.raises(UnreadableImage, match="save it as PNG"):
        decode_mask(tmp_path / "a.jpg")


@pytest.mark.parametrize(("value", "full"), [(0, False), (1, True), (255, True)])
def test_one_value_marks_nothing_or_everything(tmp_path, value, full):
    Image.new("L", (32, 32), value).save(tmp_path / "a.png")
    mask = decode_mask(tmp_path / "a.png")
    assert mask.all() if full else not mask.any()


@pytest.mark.parametrize(("side", "width"), [(224, 2), (224, 1), (1000, 1), (96, 1)])
def test_thin_lines_survive(side, width):
    """Every row that a diagonal or an upright line passes has a pixel of it, and no pixel is far from the line."""
    for slope in (0.0, 0.7):
        mask = torch.zeros(side, side, dtype=torch.bool)
        for row in range(side):
            start = int(side * 0.1 + slope * row)
            mask[row, start : start + width] = True
        small = shrink_mask(mask, (64, 64))
        assert small.any(1).all()
        reached = torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), (64, 64))[0, 0] > 0
        assert not (small & ~reached).any(), "nothing is marked that the line does not touch"


@pytest.mark.parametrize("side", [200, 224, 500, 1000])
@pytest.mark.parametrize("radius", [0.1, 0.3])
def test_large_areas_do_not_grow(side, radius):
    """A disc keeps its area to a twentieth: pi r squared, counted in pixels of 64 by 64."""
    rows, columns = np.mgrid[:side, :side] / side - 0.47
    small = shrink_mask(torch.from_numpy(rows**2 + columns**2 < radius**2), (64, 64))
    assert int(small.sum()) == pytest.approx(np.pi * (64 * radius) ** 2, rel=0.05)
