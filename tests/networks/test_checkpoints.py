"""Checkpoints as training programs write them: what is taken of them, and what is refused in words."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from rightreasons.errors import ModelError
from rightreasons.networks.checkpoints import as_names, read_checkpoint
from rightreasons.networks.classifier import load_checkpoint, save_checkpoint


class Net(nn.Module):
    def __init__(self, classes=2, depth=1):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *(nn.Conv2d(4, 4, 1) for _ in range(depth - 1)))
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Lightning(nn.Module):
    """The state dict of a LightningModule: the network, and beside it the buffers of its loss."""

    def __init__(self, network):
        super().__init__()
        self.model, self.loss = network, nn.CrossEntropyLoss(weight=torch.ones(2))


def seeded(seed=1, **settings):
    torch.manual_seed(seed)
    return Net(**settings)


def averaged(network):
    return torch.optim.swa_utils.AveragedModel(network)


def load(stored, tmp_path, network=None):
    """The notes of loading what torch.save wrote, once the weights are those of seed 1."""
    notes, network = [], network or seeded(0)
    torch.save(stored, tmp_path / "model.pt")
    load_checkpoint(network, tmp_path / "model.pt", note=notes.append)
    expected = seeded().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    return notes


def optimiser(network):
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda net: nn.DataParallel(net).state_dict(), "module."),
        (lambda net: {f"_orig_mod.{name}": value for name, value in net.state_dict().items()}, None),
        (lambda net: {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()}, "module."),
        (lambda net: {f"net.encoder.{name}": value for name, value in net.state_dict().items()}, "net.encoder."),
        (lambda net: averaged(net).state_dict(), "module."),
        (lambda net: Lightning(net).state_dict(), "model."),
        (lambda net: {f"model._orig_mod.{name}": value for name, value in net.state_dict().items()}, "model."),
    ],
)
def test_prefixes_are_taken_off_and_told(wrap, prefix, tmp_path):
    notes = load(wrap(seeded()), tmp_path)
    assert [repr(prefix) in note for note in notes] == ([True] if prefix else [])


def test_names_within_a_network_may_be_those_of_torch_compile(tmp_path):
    state = {name.replace("features.", "features._orig_mod."): value for name, value in seeded().state_dict().items()}
    assert load(state, tmp_path) == []


@pytest.mark.parametrize(
    ("key", "state"),
    [
        ("model", lambda net: net.state_dict()),  # torchvision's reference scripts, and fastai's learn.save
        ("model_state_dict", lambda net: net.state_dict()),  # PyTorch's tutorial
        ("net", lambda net: nn.DataParallel(net).state_dict()),
        ("state_dict", lambda net: Lightning(net).state_dict()),
        ("my_weights", lambda net: net.state_dict()),
    ],
)
def test_weights_are_found_beside_an_optimiser_and_settings(key, state, tmp_path):
    other = {"epoch": 3, "best_acc": np.float64(0.5), "curve": np.zeros(3), "args": argparse.Namespace(lr=0.1, out=Path("runs"))}
    notes = load({"optimizer": optimiser(seeded(5)), **other, key: state(seeded())}, tmp_path)
    assert any(repr(key) in note for note in notes), notes


@pytest.mark.parametrize(("averages", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model")])
def test_averaged_weights_are_taken_first(averages, plain, tmp_path):
    """As timm.models.load_checkpoint does (timm 1.0.31, use_ema=True), for they are the ones that were evaluated."""
    (note,) = load({plain: seeded(7).state_dict(), averages: averaged(seeded()).state_dict()}, tmp_path)
    assert repr(averages) in note and "n_averaged" in note


def test_what_is_left_out_is_named(tmp_path):
    (note,) = load(Lightning(seeded()).state_dict(), tmp_path)
    assert "left out: loss.weight" in note


def test_a_network_inside_another_takes_the_inner_ones_weights(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = seeded(0)

    outer = Outer()
    torch.save(seeded().state_dict(), tmp_path / "model.pt")
    load_checkpoint(outer, tmp_path / "model.pt")
    assert torch.equal(outer.backbone.fc.weight, seeded().fc.weight)


def test_several_networks_in_one_file_are_refused_unless_equal(tmp_path):
    def both(one, other):
        return {f"{name}.{key}": value for name, net in (("student", one), ("teacher", other)) for key, value in net.state_dict().items()}

    load(both(seeded(), seeded()), tmp_path)
    with pytest.raises(ModelError, match="'student.*'teacher"):
        load(both(seeded(), seeded(3)), tmp_path)
    with pytest.raises(ModelError, match="several state dicts.*student, teacher"):
        load({"student": seeded().state_dict(), "teacher": seeded().state_dict()}, tmp_path)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: seeded(depth=2), r"the file has features\.2\.weight, and 1 more"),
        (lambda: seeded(classes=5), r"fc\.weight has shape \(5, 4\) in the file and \(2, 4\) in the network"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), r"the network's features\.0\.weight is not in the file, and the file's 0\.weight"),
    ],
)
def test_another_network_is_refused_with_the_first_name_of_either_side(network, words, tmp_path):
    with pytest.raises(ModelError, match=words) as caught:
        load(network().state_dict(), tmp_path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_would_run_code_is_refused_in_plain_words(tmp_path):
    with pytest.raises(ModelError, match=r"pickled object, .*Net.*save model\.state_dict\(\)") as caught:
        load(seeded(), tmp_path)
    assert "\x1b" not in str(caught.value)
    (tmp_path / "model.pt").write_bytes(b"no checkpoint at all")
    with pytest.raises(ModelError, match="damaged"):
        read_checkpoint(tmp_path / "model.pt")
    with pytest.raises(ModelError, match="no state dict among its entries"):
        load({"epoch": 3}, tmp_path)
    with pytest.raises(ModelError, match="cannot read"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_tied_weights_are_in_a_safetensors_file_once(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        net = nn.ModuleDict({"b": nn.Linear(3, 3), "a": nn.Linear(3, 3)})
        net["b"].weight = net["a"].weight
        return net

    one, other = tied(0), tied(1)
    save_checkpoint(one, tmp_path / "model.safetensors")
    load_checkpoint(other, tmp_path / "model.safetensors")
    assert torch.equal(one["b"].weight, other["b"].weight) and torch.equal(one["a"].weight, other["a"].weight)


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {"benign": 1, "malignant": 0}},
        {"classes": ["malignant", "benign"]},
        {"names": {0: "malignant", 1: "benign"}},
        {"hyper_parameters": {"lr": 0.1, "class_names": ["malignant", "benign"]}},
        {"args": argparse.Namespace(id2label={"0": "malignant", "1": "benign"})},
        {"meta": {"CLASSES": ("malignant", "benign")}},
    ],
)
def test_names_of_classes_beside_the_weights_are_read(beside, tmp_path):
    torch.save({"state_dict": seeded().state_dict(), **beside}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").names == ("malignant", "benign")


def test_names_are_read_from_the_header_of_safetensors(tmp_path):
    safetensors.torch.save_file(seeded().state_dict(), tmp_path / "a.safetensors", metadata={"classes": '["malignant", "benign"]'})
    assert read_checkpoint(tmp_path / "a.safetensors").names == ("malignant", "benign")


def test_two_orders_in_one_file_are_refused(tmp_path):
    torch.save({"model": seeded().state_dict(), "classes": ["a", "b"], "class_to_idx": {"b": 0, "a": 1}}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="several ways"):
        _ = read_checkpoint(tmp_path / "model.pt").names


def test_what_is_no_list_of_names_is_none():
    assert [as_names(value) for value in (2, ["a", "a"], [0, 1], {"a": 0, "b": 2}, {"a": "b"}, [], None)] == [None] * 7
