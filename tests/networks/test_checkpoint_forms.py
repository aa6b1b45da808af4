"""Where in a file the weights lie is found by content: neither the suffix nor a fixed list of keys decides."""

import argparse
import collections

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from rightreasons.config import ModelConfig
from rightreasons.errors import ModelError
from rightreasons.networks.checkpoints import read_checkpoint
from rightreasons.networks.classifier import load_checkpoint
from rightreasons.networks.sources import build_model, open_model


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.features, self.fc = nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.features(x.flatten(1)))


class Wrapper(nn.Module):
    """A user's own module around a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


OWNERS, OTHER = Net(1).state_dict(), Net(2).state_dict()


def load(path, network=None):
    """What is told of loading; the weights have to be the owner's then."""
    notes, network = [], network or Net(0)
    load_checkpoint(network, path, note=notes.append)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), OWNERS.values(), strict=True))
    return " ".join(notes)


def test_the_content_says_what_a_file_is_and_not_its_suffix(tmp_path):
    """torch 2.14 reads whatever is called .safetensors by that format, and so cannot be given the name."""
    safetensors.torch.save_file(OWNERS, tmp_path / "weights.pt")
    torch.save(OWNERS, tmp_path / "weights.safetensors")
    torch.save(OWNERS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("weights.pt", "weights.safetensors", "old.bin"):
        load(tmp_path / name)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    """The form is that of git-lfs, docs/spec.md."""
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 83945296\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_checkpoint(pointer)


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04cut", b"GIF89a" * 9, (2**40).to_bytes(8, "little") + b"{}"])
def test_what_is_no_checkpoint_is_an_error_of_ours(content, tmp_path):
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="checkpoint"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ({"state": {"model": OWNERS, "step": 3}, "epoch": 1}, "state.model"),
        ({"agent": OWNERS, "epoch": 1}, "agent"),
        ({"model": OTHER, "ema": {"module": OWNERS, "decay": 0.999}}, "ema.module"),
        ({"model": OTHER, "state_dict_ema": OWNERS}, "state_dict_ema"),
    ],
)
def test_weights_lie_under_a_key_or_under_several(stored, key, tmp_path):
    torch.save(stored, tmp_path / "model.pt")
    said = load(tmp_path / "model.pt")
    assert repr(key) in said
    assert ("'model' are not" in said) == ("model" in stored)


def test_a_number_among_the_tensors_is_passed_over(tmp_path):
    torch.save({**OWNERS, "epoch": 3}, tmp_path / "model.pt")
    load(tmp_path / "model.pt")


@pytest.mark.parametrize(("beside", "named"), [(nn.CrossEntropyLoss(), "CrossEntropyLoss"), (collections.defaultdict(list, a=[1]), "defaultdict")])
def test_what_torch_will_not_open_beside_the_weights_is_named(beside, named, tmp_path):
    torch.save({"state_dict": OWNERS, "hyper_parameters": {"kept": beside}}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=rf"{named}.*beside the weights.*state_dict\(\)"):
        read_checkpoint(tmp_path / "model.pt")


def test_data_parallel_within_a_network(tmp_path):
    """As PyTorch's ImageNet example does with AlexNet and VGG: model.features = DataParallel(model.features)."""
    network = Net(1)
    network.features = nn.DataParallel(network.features)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "model.pt")
    assert "'module.'" in load(tmp_path / "model.pt")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: nn.ModuleDict({"backbone": network}), lambda network: network])
def test_both_sides_may_have_a_prefix_of_their_own(wrap, tmp_path):
    torch.save(wrap(Net(1)).state_dict(), tmp_path / "model.pt")
    load(tmp_path / "model.pt", Wrapper(Net(0)))


def test_names_that_would_become_one_are_left_as_they_are(tmp_path):
    """A network beside its own wrapped copy: which one is meant is not guessed."""
    torch.save({**OTHER, **{f"module.{name}": value for name, value in OWNERS.items()}}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="several"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "beside",
    [
        {"config": {"data": {"classes": ["b", "a"]}}},
        {"dls": {"vocab": ("b", "a")}},
        {"extra": {"idx2label": {0: "b", 1: "a"}}},
        {"class_to_index": {"a": 1, "b": 0}},
        {"class_to_idx": {"a": 2, "b": 1}},
        {"CLASS_NAMES": np.array(["b", "a"])},
        {"args": argparse.Namespace(dataset={"label2id": {"a": 1, "b": 0}})},
    ],
)
def test_names_of_classes_lie_anywhere_beside_the_weights(beside, tmp_path):
    torch.save({"state_dict": OWNERS, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, **beside}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").names == ("b", "a")


def test_a_stated_order_settles_two_in_one_file(tmp_path):
    """Otherwise the advice in the error would lead nowhere."""
    network = build_model(ModelConfig(source="torchvision:squeezenet1_1"), classes=2, root=tmp_path, generator_seed=0).network
    torch.save({"state_dict": network.state_dict(), "classes": ["a", "b"], "vocab": ["b", "a"]}, tmp_path / "model.pt")
    config = ModelConfig(source="torchvision:squeezenet1_1", checkpoint="model.pt")
    with pytest.raises(ModelError, match=r"several ways.*\[model\] classes"):
        open_model(config, classes=("a", "b"), root=tmp_path, generator_seed=0, note=print)
    stated = config.model_copy(update={"classes": ("b", "a")})
    assert open_model(stated, classes=("a", "b"), root=tmp_path, generator_seed=0, note=print).order == (1, 0)
