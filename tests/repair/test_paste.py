"""Segments pasted into held-out images: the answers before and after, host by host."""

import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch
from rightreasons.repair.propagate import open_features
from rightreasons.repair.swap import join_pasted, paste_into


class Corner(nn.Module):
    """Class 1 if the top left pixel is bright."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        bright = images[:, 0, 0, 0]
        return torch.stack([0.5 - bright, bright - 0.5], 1)


def cornered(count=12):
    labels = torch.arange(count) % 3
    images = torch.full((count, 1, 4, 4), 0.2)
    images[:, 0, 0, 0] = (labels == 1).float()
    masks = torch.zeros(count, 4, 4, dtype=torch.bool)
    masks[:, 0, 0] = True
    return Batch(torch.arange(count), images, labels), masks


def test_counts_by_class_are_those_of_a_loop():
    batch, masks = cornered()
    masks[batch.labels == 2] = False  # donors of the classes 0 and 1 alone
    pasted = paste_into(Corner(), batch, batch.images, batch.labels, masks, seeded(0, "donors"))
    generator, expected = seeded(0, "donors"), []
    for host in range(len(batch)):
        others = [row for row in range(len(batch)) if masks[row].any() and batch.labels[row] != batch.labels[host]]
        donor = others[int(torch.randint(len(others), (), generator=generator))]
        expected.append((int(batch.labels[host]), int(batch.images[host, 0, 0, 0] > 0.5), int(batch.images[donor, 0, 0, 0] > 0.5)))
    assert list(zip(pasted.labels.tolist(), pasted.clean.tolist(), pasted.swapped.tolist(), strict=True)) == expected
    assert pasted.flip_rate == sum(clean != swapped for _, clean, swapped in expected) / len(batch)


def test_nothing_to_paste_is_no_rate_and_parts_join():
    batch, masks = cornered()
    nothing = paste_into(Corner(), batch, batch.images, batch.labels, masks & False, seeded(0, "donors"))
    assert len(nothing) == 0 and nothing.flip_rate is None
    some = paste_into(Corner(), batch, batch.images, batch.labels, masks, seeded(0, "donors"))
    assert len(join_pasted([nothing, some, some])) == 2 * len(some) and join_pasted([some, some]).flip_rate == some.flip_rate


def test_features_are_those_under_the_mask_less_those_of_the_image(build_seeded):
    first, second = (lambda: nn.Conv2d(3, 5, 3, padding=1)), (lambda: nn.Conv2d(5, 4, 3, padding=1))
    network = build_seeded(lambda: nn.Sequential(first(), nn.ReLU(), second(), nn.Flatten(), nn.LazyLinear(2)))
    images = torch.rand(2, 3, 24, 24, generator=seeded(0, "images"))
    network(images)
    masks = torch.zeros(2, 24, 24, dtype=torch.bool)
    masks[:, 2:6, 3:9] = True
    pool = open_features(network, images)
    assert pool is not None
    with torch.no_grad():
        maps = network[1](network[0](images))
    expected = maps[:, :, 2:6, 3:9].mean((2, 3)) - maps.mean((2, 3))
    both = torch.stack([masks, masks.roll(9, 2)], 1)
    assert torch.allclose(pool(images, both)[:, 0], expected, atol=1e-6) and not torch.allclose(pool(images, both)[:, 1], expected, atol=1e-6)
    assert open_features(build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2))), torch.rand(2, 3, 4, 4)) is None
