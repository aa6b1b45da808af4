"""Items of other people's datasets: what is taken, and what is refused with the line that helps."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import rightreasons as rr
from rightreasons.data.items import read_item
from rightreasons.data.loading import StoredImages, count_images, read_all, read_batches
from rightreasons.errors import DataError, ModelError

BYTES = torch.arange(3 * 6 * 8).reshape(3, 6, 8).to(torch.uint8)
FLOATS = BYTES.float() / 255
ROWS = BYTES.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "item",
    [
        (FLOATS, 1),
        [FLOATS.numpy(), np.int64(1)],
        (FLOATS, torch.tensor([1])),
        (FLOATS, 1.0),
        (FLOATS, torch.tensor([0, 1, 0])),
        (FLOATS, np.array([0.0, 1.0])),
        (FLOATS, 1, torch.zeros(2)),
        (FLOATS, 1, "scanner B"),
        {"image": FLOATS, "label": 1, "patient": "p7"},
        {"pixel_values": FLOATS, "target": 1},
        (BYTES, 1),
        (ROWS, 1),
        (Image.fromarray(ROWS), 1),
    ],
)
def test_what_is_clear_is_taken(item):
    image, label = read_item(item, 0)
    assert label == 1 and image.dtype == torch.float32
    torch.testing.assert_close(image, FLOATS)


def test_grey_pictures_have_one_channel():
    image, _ = read_item((Image.fromarray(ROWS[:, :, 0]), 0), 0)
    assert image.shape == (1, 6, 8)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((FLOATS, 0.7), "0.7 as its label"),
        ((FLOATS, "nut"), "the name 'nut' as its label"),
        ((FLOATS, torch.tensor([0, 1, 1])), "as its label"),
        ((FLOATS, torch.tensor([0.2, 0.8])), "as its label"),
        ((FLOATS, torch.nan), "nan as its label"),
        ((FLOATS, None), "a NoneType as its label"),
        ((FLOATS, 1, 5), "3 parts .* more than one of which could be the label"),
        ((FLOATS,), "1 part"),
        (FLOATS, "a Tensor"),
        ({"image": FLOATS, "y": 1}, r"the keys \['image', 'y'\]"),
        ({"image": FLOATS, "img": FLOATS, "label": 1}, "keys"),
        (("a.png", 1), "a str as the image"),
        ((torch.zeros(2, 3, 6, 8), 1), r"shape \(2, 3, 6, 8\)"),
        ((Image.new("RGBA", (4, 4)), 1), "mode 'RGBA'"),
        ((255 * FLOATS * 3, 1), "0 to 1 is expected: bytes are divided"),
        ((BYTES.long(), 1), "0 to 1 is expected: bytes are divided"),
        ((4 * FLOATS - 2, 1), r"looks normalised.*rr\.Preset\(mean"),
    ],
)
def test_what_is_not_clear_is_refused_in_words(item, words):
    with pytest.raises(DataError, match=words):
        read_item(item, 3)


class Triples(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return FLOATS * index / 4, index % 2, index


def test_the_line_of_the_error_is_python_that_helps():
    data = Triples()
    with pytest.raises(DataError) as caught:
        next(read_batches(data))
    line = str(caught.value).partition("is expected: ")[2]
    names = {"torch": torch, "data": data}
    exec(line, names)  # this is what a user would paste
    assert read_all(names["Pairs"](), range(4)).labels.tolist() == [0, 1, 0, 1]


def test_a_loader_is_no_dataset():
    with pytest.raises(DataError, match=r"loader\.dataset"):
        count_images(DataLoader(Triples()))


class Large(Dataset):
    """Counts what is read at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def read(self, indices: torch.Tensor):
        from rightreasons.data.loading import Batch

        self.asked.append(len(indices))
        return Batch(indices, indices[:, None, None, None].float().expand(-1, 3, 1200, 1600) / 10, indices % 2)


def test_a_batch_is_cut_by_bytes_and_not_by_count(monkeypatch):
    data = Large()
    assert [len(batch) for batch in read_batches(data)] == [2] * 5, "23 MB each: two of them in 64 MiB"
    assert max(data.asked) == 2
    monkeypatch.setattr("rightreasons.data.loading.KEPT_IMAGE_BYTES", 2**20)
    images = StoredImages(data, [9, 4, 7])
    data.asked.clear()
    assert images[1].mean().item() == pytest.approx(0.4)
    assert images[torch.tensor([2, 0, 2])].mean((1, 2, 3)).tolist() == pytest.approx([0.7, 0.9, 0.7])
    assert images[0:2].shape == (2, 3, 1200, 1600) and max(data.asked) <= 2


def test_a_preset_has_a_deviation_for_each_mean():
    assert rr.Preset(mean=(0.5,), std=(0.2,)).std == (0.2,)
    for mean, std in (((0.5,), ()), ((0.5,), (0.0,)), ((0.5, 0.5), (1.0,))):
        with pytest.raises(ModelError, match="as many positive deviations"):
            rr.Preset(mean=mean, std=std)
