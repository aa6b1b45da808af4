"""Verdicts on a few images, told again in all others: what is found, what is not, and when nothing is spread."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.data.loading import read_all
from rightreasons.networks.small_vit import SmallViT
from rightreasons.repair.align import AlignmentSet, neutral_images
from rightreasons.repair.propagate import NEAR_CELLS, _cross_validate, _label_cells, spread_verdicts

SIDE, COUNT, INSPECTED = 48, 60, 20
PATCH = 12


@pytest.fixture
def network(build_seeded):
    """Random features are enough to tell a white patch from noise."""

    def build():
        layers = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 3, stride=2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 11 * 11, 2))

    return build_seeded(build).eval()


@pytest.fixture
def scene(in_memory, generator):
    """Noise; every other image has a white patch somewhere. The first INSPECTED are inspected."""
    images = 0.5 + 0.1 * torch.randn(COUNT, 1, SIDE, SIDE, generator=generator)
    masks = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.bool)

    for row in range(0, COUNT, 2):
        top, left = torch.randint(SIDE - PATCH, (2,), generator=generator).tolist()
        images[row, 0, top : top + PATCH, left : left + PATCH] = 1.0
        masks[row, top : top + PATCH, left : left + PATCH] = True
    return in_memory(images.clamp(0, 1), torch.arange(COUNT) % 2), masks


def spread(network, scene, spurious=None, relevant=None, clear=None):
    dataset, masks = scene
    spurious = masks[:INSPECTED] if spurious is None else spurious
    return spread_verdicts(
        network,
        dataset,
        read_all(dataset, range(INSPECTED)),
        spurious,
        torch.zeros_like(spurious) if relevant is None else relevant,
        ~spurious.flatten(1).any(1) if clear is None else clear,
    )


def test_an_image_of_which_not_all_is_judged_is_no_example_of_nothing_spurious(network, scene):
    """Half of the shortcuts are neither judged spurious nor relevant: counted as clear, their images would raise the probe's threshold."""
    _, masks = scene
    judged = masks[:INSPECTED].clone()
    some = judged.flatten(1).any(1)
    judged[some.nonzero()[::2, 0]] = False
    wrongly, rightly = (spread(network, scene, judged, clear=clear) for clear in (~judged.flatten(1).any(1), ~some))
    assert rightly.recall > 0.8 and rightly.precision > 0.9
    assert wrongly.precision < 0.6, "marks in images that were taken for clear"


def test_the_same_thing_is_found_where_nobody_looked(network, scene):
    found = spread(network, scene)
    others = torch.arange(INSPECTED, COUNT)
    marked, masks = found.masks(others, (SIDE, SIDE)), scene[1][INSPECTED:]
    assert found.recall > 0.8 and found.precision > 0.8
    assert (marked & masks).sum() / masks.sum() > 0.95, "to the edge"
    cell = math.ceil(SIDE / found.scores.shape[-1])
    near = F.max_pool2d(masks[:, None].float(), 4 * cell + 1, stride=1, padding=2 * cell)[:, 0] > 0
    assert (marked & near).sum() / marked.sum() > 0.9
    # An image without it is left alone, not peppered with single cells.
    free = marked[1::2].flatten(1).any(1)
    assert free.float().mean() < 0.1


def coarse():
    """Convolutions whose deepest maps have 12 cells a side, of four pixels each."""
    layers = [nn.Conv2d(1, 32, 4, stride=4), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, stride=2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 25, 2))


def coarsest():
    """The same with 7 cells a side, of about seven pixels each."""
    layers = [nn.Conv2d(1, 32, 7, stride=7, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, stride=2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 9, 2))


@pytest.mark.parametrize(
    ("build", "cells"), [(lambda: SmallViT(2, channels=1), 12), (coarse, 12), (coarsest, 7)], ids=["tokens", "12 cells", "7 cells"]
)
def test_token_grids_and_coarse_maps_point_to_the_same_pixels(build, cells, build_seeded, scene):
    """The patch is 12 pixels wide, and lies across cells. What is marked covers it, and reaches no further than a cell beyond it."""
    found = spread(build_seeded(build), scene)
    others = torch.arange(INSPECTED, COUNT)
    marked, masks = found.masks(others, (SIDE, SIDE)), scene[1][INSPECTED:]
    assert found is not None and found.scores.shape[1] >= 24, "as fine as the map of any other network"
    assert (marked & masks).sum() / masks.sum() > 0.95, "to the edge"
    reach = math.ceil(1.5 * SIDE / cells)
    near = F.max_pool2d(masks[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    assert (marked & near).sum() / marked.sum() > 0.9
    assert marked[1::2].flatten(1).any(1).float().mean() < 0.1, "an image without it is left alone"


def test_the_precision_is_the_share_of_marked_images_that_have_something():
    """Of 16 images eight have a bright cell that was judged, and two of one fold one that was not: a probe of the other fold marks all six there.

    A probe of the fold with false alarms is as strict as they ask, and marks nothing: four of the six marked images have something.
    """
    maps, spurious = torch.zeros(16, 1, 8, 8), torch.zeros(16, 8, 8, dtype=torch.bool)
    maps[:8, 0, 2:4, 2:4] = 1.0
    spurious[:8, 2:4, 2:4] = True
    maps[[9, 11], 0, 5:7, 5:7] = 1.0  # the second and the fourth without anything judged are of the second fold
    found = _cross_validate(maps, _label_cells(spurious, torch.zeros_like(spurious), ~spurious.flatten(1).any(1), torch.Size((8, 8))))
    assert found is not None and found.precision == pytest.approx(4 / 6)


def test_what_the_features_do_not_tell_is_not_spread(network, scene, generator):
    """Verdicts on places that look like everything else: cross-validation finds out."""
    dataset, masks = scene
    anywhere = torch.stack([mask.roll(tuple(torch.randint(SIDE, (2,), generator=generator).tolist()), (0, 1)) for mask in masks[:INSPECTED]])
    noise = type(scene[0])(torch.rand(COUNT, 1, SIDE, SIDE, generator=generator), torch.arange(COUNT) % 2)
    assert spread(network, (noise, masks), spurious=anywhere) is None


def test_too_few_images_are_nothing_to_learn_from(network, scene):
    three = scene[1][:INSPECTED].clone()
    three[6:] = False
    assert spread(network, scene, spurious=three) is None
    everywhere = torch.ones(INSPECTED, SIDE, SIDE, dtype=torch.bool)
    assert spread(network, scene, spurious=everywhere) is None


def test_a_network_without_feature_maps_spreads_nothing(build_seeded, scene):
    assert spread(build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2))), scene) is None


def test_the_model_is_left_as_it_was(network, scene):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    spread(network, scene)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_judged_relevant_goes_before_what_the_probe_says(network, scene):
    dataset, masks = scene
    relevant = torch.zeros_like(masks[:INSPECTED])
    relevant[0] = masks[0]
    judged = masks[:INSPECTED].clone()
    judged[0] = False
    inspected = read_all(dataset, range(INSPECTED))
    found = spread_verdicts(network, dataset, inspected, judged, torch.zeros_like(relevant), ~judged.flatten(1).any(1))
    alignment = AlignmentSet(inspected, judged, relevant, found)
    assert found.masks(torch.tensor([0]), (SIDE, SIDE)).any(), "the probe takes it for spurious"
    spurious, protected = alignment.look_up(torch.tensor([0, 2]))
    assert not (spurious & protected).any() and torch.equal(protected[0], relevant[0]) and spurious[1].any()


def test_in_an_inspected_image_the_probe_counts_only_beside_the_verdict(network, scene):
    """A second patch far from the judged one looks the same to the probe, as an object beside a shortcut may: it is no part of what is pasted."""
    dataset, masks = scene
    found, cell = spread(network, scene), SIDE / 24
    images, judged = read_all(dataset, range(INSPECTED)), masks[:INSPECTED]
    # The image whose patch lies furthest up, and a second patch at its lower edge.
    second = int(judged.any(2).double().argmax(1).masked_fill(~judged.flatten(1).any(1), SIDE).argmin())
    far = (second, slice(SIDE - PATCH, SIDE), slice(SIDE - PATCH, SIDE))
    shown = images.images.clone()
    shown[far[0], 0, far[1], far[2]] = 1.0
    scores = found.scores.clone()
    assert found.score is not None
    scores[second] = found.score(shown[second : second + 1])[0]
    found = type(found)(scores, found.recall, found.score)
    assert found.masks(torch.tensor([second]), (SIDE, SIDE))[0][far[1:]].any(), "the probe marks both"
    spurious = AlignmentSet(images, judged, torch.zeros_like(judged), found).look_up(torch.tensor([second]))[0][0]
    assert (spurious & judged[second]).sum() == PATCH**2, "to the edge"
    reach = math.ceil((NEAR_CELLS + 1) * cell)
    near = F.max_pool2d(judged[second][None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    assert not (spurious & ~near).any()


def test_a_verdict_stands_where_the_probe_marks_nothing_beside_it(network, scene):
    dataset, masks = scene
    found, inspected, judged = spread(network, scene), read_all(dataset, range(INSPECTED)), masks[:INSPECTED]
    alone = AlignmentSet(inspected, judged, torch.zeros_like(judged), type(found)(torch.full_like(found.scores, -1.0), 1.0))
    assert torch.equal(alone.look_up(torch.arange(INSPECTED))[0], judged)


def test_the_same_is_found_in_images_that_are_not_of_the_training_set(network, scene):
    found, others = spread(network, scene), torch.arange(INSPECTED, COUNT)
    assert found.find(read_all(scene[0], others).images).equal(found.masks(others, (SIDE, SIDE)))


def test_neutral_images_lose_their_own_shortcut_and_get_one_that_tells_nothing(network, scene, generator):
    """Hosts of one class have a patch of their own and the others none; afterwards both kinds have the one that was pasted."""
    dataset, masks = scene
    inspected = read_all(dataset, range(INSPECTED))
    alignment = AlignmentSet(inspected, masks[:INSPECTED], torch.zeros_like(masks[:INSPECTED]), spread(network, scene))
    hosts = read_all(dataset, range(INSPECTED, COUNT))
    white = (neutral_images(hosts, alignment, generator)[:, 0] >= 1).flatten(1).sum(1).double()
    with_patch, without = white[hosts.labels == 0].mean(), white[hosts.labels == 1].mean()
    assert with_patch == pytest.approx(PATCH**2, rel=0.15) and without == pytest.approx(PATCH**2, rel=0.15)


def test_nothing_spurious_makes_no_neutral_images(scene, generator):
    inspected, nothing = read_all(scene[0], range(INSPECTED)), torch.zeros_like(scene[1][:INSPECTED])
    assert neutral_images(inspected, AlignmentSet(inspected, nothing, nothing), generator) is None
