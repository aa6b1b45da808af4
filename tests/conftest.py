"""What every test shares: shapes are checked wherever the package runs, and everything is seeded."""
# ruff: noqa: E402 -- what is set here must be set before torch and the package are imported

import os

os.environ["OMP_WAIT_POLICY"] = "passive"  # the machine may be shared

from jaxtyping import install_import_hook

install_import_hook("rightreasons", "beartype.beartype")

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightreasons.common.seeds import seeded


class TinyCNN(nn.Module):
    """Every way to call ReLU, batch norm with statistics of its own, and windows that overlap."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)
        self.relu = nn.ReLU()
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.3, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        h = F.max_pool2d(h, 3, 2, 1)
        h = h + torch.relu_(self.second(h))
        h = self.relu(F.relu(self.third(h)) - 0.1)
        return self.head(h.mean((2, 3)))


class TinyDataset(torch.utils.data.Dataset):
    """Images and labels in memory, one item at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def _seeded_module(build) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


@pytest.fixture
def generator() -> torch.Generator:
    return seeded(0, "test")


@pytest.fixture
def tiny_mlp() -> nn.Module:
    """1 x 4 x 4 pixels, three classes."""
    return _seeded_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """3 channels of any size, three classes."""
    return _seeded_module(TinyCNN)


@pytest.fixture
def tiny_dataset(generator) -> TinyDataset:
    """24 images of 1 x 4 x 4 pixels; the label is how bright the lower half is."""
    images = torch.rand(24, 1, 4, 4, generator=generator)
    labels = torch.arange(24) % 3
    images[:, :, 2:] *= (labels[:, None, None, None] + 1) / 3
    return TinyDataset(images, labels)


@pytest.fixture
def in_memory():
    """Makes a dataset of images and labels."""
    return TinyDataset


@pytest.fixture
def build_seeded():
    """Builds a module whose weights do not depend on the tests before."""
    return _seeded_module


def pytest_collection_modifyitems(items):
    """Runs from end to end take longest. They come first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("whole", "studies") and item.path.stem != "test_real_networks")
