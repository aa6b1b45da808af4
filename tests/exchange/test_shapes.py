"""Runs and shapes: against pycocotools, and against their descriptions written out as loops."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from rightreasons.data.annotations.run_lengths import from_coco, from_label_studio, from_runs, to_coco, to_label_studio, to_runs
from rightreasons.data.annotations.shapes import fill_ellipse, fill_polygon, fill_rectangle

# pycocotools itself is behind NumPy 2 here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = [(1, 1), (1, 7), (5, 3), (40, 61), (64, 64)]


def masks(size, generator):
    """Nothing, everything, noise, and a block."""
    block = torch.zeros(size, dtype=torch.bool)
    block[size[0] // 3 :, size[1] // 2 :] = True
    return [torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool), torch.rand(size, generator=generator) > 0.6, block]


@pytest.mark.parametrize("size", SIZES)
def test_coco_s_runs_are_those_of_pycocotools(size, generator):
    for mask in masks(size, generator):
        theirs = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert to_coco(mask) == {"size": list(size), "counts": theirs["counts"].decode()}
        assert torch.equal(from_coco(theirs["counts"].decode(), size), mask)
        assert torch.equal(from_coco(to_runs(mask.T.flatten()), size), mask), "runs that are not compressed"


def test_long_runs_need_several_characters():
    mask = torch.zeros(3000, 2000, dtype=torch.bool)
    mask[1500:, 1999] = True
    assert to_coco(mask)["counts"] == coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"].decode()
    assert torch.equal(from_coco(to_coco(mask)["counts"], (3000, 2000)), mask)


def unpack(packed: list[int]) -> list[int]:
    """Label Studio's bytes by their description: 32 bits count, 5 word size, 4 times 4 run sizes; then flag, size, length and one or more values."""
    bits = [byte >> place & 1 for byte in packed for place in range(7, -1, -1)]

    def take(count: int) -> int:
        value = 0
        for _ in range(count):
            value = 2 * value + bits.pop(0)
        return value

    count, word, sizes, values = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)], []
    while len(values) < count:
        same, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    return values


@pytest.mark.parametrize("size", SIZES)
def test_label_studio_s_bytes_say_what_their_description_says(size, generator):
    for mask in masks(size, generator):
        packed = to_label_studio(mask)
        assert all(0 <= byte <= 255 for byte in packed)
        assert np.array_equal(np.array(unpack(packed)).reshape(*size, 4), np.repeat(mask.numpy()[..., None] * 255, 4, 2))
        assert torch.equal(from_label_studio(packed, size), mask)


def test_label_studio_s_values_may_come_one_by_one():
    """A run of different values, as the program packs ragged edges: two pixels, the second of which is marked."""
    values = [0, 0, 0, 0, 255, 255, 255, 9]
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "0" + "01" + f"{7:04b}" + "".join(f"{v:08b}" for v in values)
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert unpack(packed) == values
    assert from_label_studio(packed, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda: from_runs([1, 2], (2, 2)), "cover 3 pixels; expected 2 x 2 = 4"),
        (lambda: from_runs([-1, 5], (2, 2)), "no list of whole numbers"),
        (lambda: from_coco("\x7f", (2, 2)), "no character"),
        (lambda: from_coco("o" * 30, (2, 2)), "does not end"),
        (lambda: from_coco(None, (2, 2)), "no list of whole numbers"),
        (lambda: from_label_studio([1, 2], (2, 2)), "ends in the middle"),
        (lambda: from_label_studio([300], (2, 2)), "no list of bytes"),
        (lambda: from_label_studio(to_label_studio(torch.ones(2, 2, dtype=torch.bool)), (2, 3)), "expected 4 of 8 bits for each of 2 x 3"),
        (lambda: from_label_studio(to_label_studio(torch.ones(9, 9, dtype=torch.bool))[:-2], (9, 9)), "ends in the middle"),
        (lambda: fill_polygon([(0, 0), (1, 1)], (4, 4)), "a polygon of 2 points"),
        (lambda: fill_polygon([(0, 0), (1, 1), (math.nan, 2)], (4, 4)), "all of them finite"),
        (lambda: fill_ellipse(1, 1, 0, 1, (4, 4)), "the radii 0 and 1"),
    ],
)
def test_what_is_no_mask_is_refused(broken, said):
    with pytest.raises(ValueError, match=said):
        broken()


def test_polygons_by_the_even_odd_rule_at_pixel_centres(generator):
    for corners in (3, 4, 7):
        points = (torch.rand(corners, 2, generator=generator) * 30 - 3).tolist()
        filled = fill_polygon(points, (20, 24))
        for row in range(20):
            for column in range(24):
                x, y, inside = column + 0.5, row + 0.5, False
                for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                    if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                        inside = not inside
                assert bool(filled[row, column]) == inside
    theirs = coco.decode(coco.frPyObjects([[2, 3, 30, 5, 25, 31, 6, 28]], 40, 40))[..., 0] > 0
    ours = fill_polygon([(2, 3), (30, 5), (25, 31), (6, 28)], (40, 40)).numpy()
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95, "as pycocotools, but for the edge"


def test_rectangles_and_ellipses():
    straight = fill_rectangle(2, 3, 4, 5, (10, 12))
    assert straight.sum() == 20 and bool(straight[3:8, 2:6].all())
    assert torch.equal(fill_rectangle(2, 3, 4, 4, (10, 12), turn=90, centred=True), fill_rectangle(2, 3, 4, 4, (10, 12)))
    turned = fill_rectangle(6, 2, 5, 3, (12, 12), turn=90)
    assert torch.equal(turned, fill_rectangle(3, 2, 3, 5, (12, 12))), "clockwise about the top left corner"
    round_, size = fill_ellipse(20, 15, 12, 8, (30, 40)), (30, 40)
    assert float(round_.sum()) == pytest.approx(math.pi * 12 * 8, rel=0.03)
    assert torch.equal(fill_ellipse(20, 15, 12, 8, size, turn=180), round_)
    assert torch.equal(fill_ellipse(20, 15, 8, 12, size, turn=90), round_), "turned by a quarter the axes change places"
