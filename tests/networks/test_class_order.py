"""Which output stands for which class: by the names that a checkpoint or a folder gives, or that the configuration states."""

import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from rightreasons.config import ModelConfig
from rightreasons.errors import ConfigError, ModelError
from rightreasons.networks.checkpoints import read_checkpoint
from rightreasons.networks.class_order import match_classes, order_outputs, read_order, stated_order
from rightreasons.networks.classifier import Classifier, hash_weights, save_checkpoint, unwrap
from rightreasons.networks.sources import open_model
from tests.support.helpers import invoke, the_error, trained_weights, write_scripted

CLASSES = ("benign", "malignant")


@pytest.mark.parametrize(
    ("outputs", "classes", "order"),
    [
        (("benign", "malignant"), CLASSES, (0, 1)),
        (("malignant", "benign"), CLASSES, (1, 0)),
        (("Malignant", "BENIGN "), CLASSES, (1, 0)),
        (("b_c", "C-d", "a"), ("a", "b c", "c d"), (2, 0, 1)),
        (("b", "A", "a"), ("a", "A", "b"), (2, 1, 0)),  # two classes that differ in case alone are told apart by it
        (("B", "A", "a"), ("a", "A", "b"), None),  # and there case may not differ
        (("cat", "dog"), CLASSES, None),
        (("benign", "benign"), CLASSES, None),
        (("benign", "malignant", "other"), CLASSES, None),
        (("malignant",), CLASSES, (0, 1)),  # a single output is the positive class's
        (("benign",), CLASSES, (1, 0)),
    ],
)
def test_names_give_the_output_of_each_class(outputs, classes, order):
    assert match_classes(outputs, classes) == order


def test_labels_that_were_given_names_are_known_by_either():
    assert match_classes(("1_m", "0_b"), CLASSES, {"0_b": "benign", "1_m": "malignant"}) == (1, 0)


def test_another_order_is_told_and_other_names_are_refused():
    notes = []
    assert read_order(("malignant", "benign"), CLASSES, source="model.pt", note=notes.append) == (1, 0)
    assert len(notes) == 1 and "malignant, benign" in notes[0] and "model.pt" in notes[0]
    assert read_order(CLASSES, CLASSES, source="model.pt", note=notes.append) == (0, 1) and len(notes) == 1
    with pytest.raises(ModelError, match=r"model.pt names its outputs cat, dog, .*\[model\] classes"):
        read_order(("cat", "dog"), CLASSES, source="model.pt", note=notes.append)


@pytest.mark.parametrize("outputs", [None, ("LABEL_0", "LABEL_1"), ("0", "1"), ("class 1", "class 2")])
def test_placeholders_say_nothing(outputs):
    assert read_order(outputs, CLASSES, source="model.pt", note=lambda _: None) is None


def test_numbers_are_names_where_the_classes_are_numbers():
    assert read_order(("1", "0"), ("0", "1"), source="model.pt", note=lambda _: None) == (1, 0)


@pytest.mark.parametrize("stated", [("benign",), ("benign", "cat"), ("benign", "benign"), ("a", "b", "c")])
def test_a_stated_order_names_each_class_once(stated):
    assert stated_order(("malignant", "benign"), CLASSES) == (1, 0)
    with pytest.raises(ConfigError, match=r"\[model\] classes .* benign, malignant"):
        stated_order(stated, CLASSES)


def test_a_moved_classifier_keeps_its_network_as_it_is():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(4, 3, 2, 2)
    moved = Classifier(network, order=(2, 0, 1))
    assert torch.equal(moved(images), network(images)[:, [2, 0, 1]])
    assert moved.state_dict().keys() == Classifier(network).state_dict().keys()
    assert unwrap(moved) is moved and unwrap(Classifier(network, order=(0, 1, 2))) is network
    # A run folder made in one order is none of another.
    assert len({hash_weights(Classifier(network, order=order)) for order in (None, (0, 1, 2), (2, 0, 1), (1, 0, 2))}) == 3
    single = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    assert torch.equal(Classifier(single, order=(1, 0))(images), Classifier(single)(images).flip(1))


SOURCE = "from torch import nn\ndef build(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))\n"


@pytest.mark.parametrize(
    ("beside", "stated", "order", "told"),
    [
        ({}, None, None, 0),
        ({"classes": ["benign", "malignant"]}, None, (0, 1), 0),
        ({"class_to_idx": {"malignant": 0, "benign": 1}}, None, (1, 0), 1),
        ({}, ("malignant", "benign"), (1, 0), 0),
        ({"classes": ["cat", "dog"]}, ("malignant", "benign"), (1, 0), 0),
        ({"classes": ["benign", "malignant"]}, ("malignant", "benign"), (1, 0), 1),  # the statement is followed, and the disagreement told
    ],
)
def test_a_checkpoint_and_the_configuration_say_the_order(beside, stated, order, told, tmp_path):
    (tmp_path / "ordered_net.py").write_text(SOURCE)
    torch.save({"state_dict": nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).state_dict(), **beside}, tmp_path / "model.pt")
    config = ModelConfig(source="python:ordered_net:build", checkpoint="model.pt", classes=stated)
    notes = []
    assert open_model(config, classes=CLASSES, root=tmp_path, generator_seed=0, note=notes.append).order == order
    assert len(notes) == told


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    (tmp_path / "ordered_net.py").write_text(SOURCE)
    torch.save({"state_dict": nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).state_dict(), "classes": ["cat", "dog"]}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="cat, dog"):
        config = ModelConfig(source="python:ordered_net:build", checkpoint="model.pt")
        open_model(config, classes=CLASSES, root=tmp_path, generator_seed=0, note=lambda _: None)


def exchanged():
    """The weights of the trained network with its outputs the other way round, as a program that sorted its classes otherwise has them."""
    return {name: value.flip(0) if name.startswith("3.") else value for name, value in trained_weights().items()}


def write_exchanged(root, *, stated="", **beside):
    root.mkdir()
    config = write_scripted(root, changes={'"model.safetensors"': f'"model.pt"{stated}'})
    torch.save({"state_dict": exchanged(), **beside}, root / "model.pt")
    return config


def test_find_and_fix_follow_the_names_that_a_checkpoint_carries(tmp_path):
    """Accuracy, verdicts and the repaired weights are those of the classes meant; and the weights are the plain network's own."""
    said = {}
    for name, stated, beside in (("named", "", {"class_to_idx": {"nut": 0, "bolt": 1}}), ("stated", '\nclasses = ["nut", "bolt"]', {})):
        config = write_exchanged(tmp_path / name, stated=stated, **beside)
        out = tmp_path / name / "run"
        told = invoke("find", config, "--out", out)
        assert told.exit_code == 0, told.output
        assert ("names its outputs nut, bolt" in " ".join(told.stderr.split())) == (name == "named")
        assert invoke("fix", out).exit_code == 0
        assert invoke("score", out).exit_code == 0
        said[name] = json.loads((out / "metrics.json").read_text())
        assert said[name]["classifier"]["train"]["accuracy"] > 0.8
        plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 2))
        plain.load_state_dict(safetensors.torch.load_file(out / "aligned.safetensors"))
        assert read_checkpoint(out / "aligned.safetensors").names == ("nut", "bolt"), "the outputs' order, which is not the data's"
    assert said["named"]["classifier"] == said["stated"]["classifier"]
    # The repaired weights alone are a checkpoint again, of which nothing has to be stated.
    again = write_scripted(tmp_path / "again", changes={'"model.safetensors"': '"aligned.safetensors"'})
    shutil.copy(tmp_path / "stated" / "run" / "aligned.safetensors", tmp_path / "again")
    told = invoke("find", again, "--out", tmp_path / "again" / "run", "--json")
    assert told.exit_code == 0, told.output
    after = json.loads(told.stdout)
    assert after["before"]["accuracy"] == said["stated"]["after"]["accuracy"]


@pytest.mark.parametrize("order", [None, (0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_saved_weights_carry_the_names_of_the_outputs(order, tmp_path):
    network, names, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), ("a", "b", "c"), torch.rand(4, 3, 2, 2)
    model = Classifier(network, order=order)
    save_checkpoint(model, tmp_path / "named.safetensors", names)
    stored = read_checkpoint(tmp_path / "named.safetensors")
    outputs = network(images)
    for place, name in enumerate(names):
        assert stored.names is not None and torch.equal(model(images)[:, place], outputs[:, stored.names.index(name)])
    assert match_classes(stored.names, names) == (order or (0, 1, 2))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_single_output_is_saved_with_its_two_names(order, tmp_path):
    save_checkpoint(Classifier(nn.Linear(3, 1), order=order), tmp_path / "single.safetensors", CLASSES)
    names = read_checkpoint(tmp_path / "single.safetensors").names
    assert names == tuple(CLASSES[place] for place in order) and match_classes(names, CLASSES) == order


def test_weights_saved_without_names_say_nothing_of_an_order(tmp_path):
    """As files from before there were any."""
    save_checkpoint(Classifier(nn.Linear(3, 2)), tmp_path / "plain.safetensors")
    assert read_checkpoint(tmp_path / "plain.safetensors").names is None


def test_a_checkpoint_of_other_classes_stops_find_at_once(tmp_path):
    config = write_exchanged(tmp_path / "other", classes=["cat", "dog"])
    said = " ".join(the_error(invoke("find", config, "--out", tmp_path / "run")).split())
    assert "names its outputs cat, dog, and the classes of the data are bolt, nut" in said
    assert not (tmp_path / "run").exists()


def test_a_callers_own_model_is_guarded_too():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.config = SimpleNamespace(id2label={0: "malignant", 1: "benign"})
    with pytest.raises(ModelError, match=r"malignant, benign .*config\.id2label.*benign, malignant"):
        order_outputs(Classifier(network), CLASSES, None)
    assert order_outputs(Classifier(network), CLASSES, ("malignant", "benign")).order == (1, 0)
    assert order_outputs(Classifier(network), ("malignant", "benign"), None).order is None
    assert order_outputs(Classifier(network), ("cat", "dog"), None).order is None
