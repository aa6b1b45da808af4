"""Networks from every source: how they are built, what they are fed, and what is refused."""

import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from rightreasons.config import ModelConfig
from rightreasons.errors import ModelError
from rightreasons.networks.classifier import Classifier, Preset, as_classifier, check_model, load_checkpoint, place_model, save_checkpoint, unwrap
from rightreasons.networks.sources import build_model, find_checkpoint, read_preset

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TWO = ("cat", "dog")


def build(source, root, classes=2, seed=0, **settings):
    return build_model(ModelConfig(source=source, **settings), classes=classes, root=root, generator_seed=seed)


def images(side=64, channels=3, count=2):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory):
    """A small residual network as save_pretrained leaves it, with five classes and an image processor of its own."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("hf") / "resnet"
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 96}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("source", "size", "normalisation"),
    [
        ("torchvision:resnet18", 224, IMAGENET),
        ("timm:regnetx_002", 224, IMAGENET),
        ("timm:tf_efficientnet_lite0", 224, ((0.5,) * 3,) * 2),
        ("packaged:efficientnet-lite0", 224, ((0.5,) * 3,) * 2),
    ],
)
def test_every_source_gives_logits_of_the_classes_and_its_own_preset(source, size, normalisation, tmp_path):
    model = build(source, tmp_path, classes=3).eval()
    assert model.preset == Preset(size, *normalisation)
    assert model(images()).shape == (2, 3)
    # Grey pictures go into a network that wants three channels.
    grey = images(channels=1)
    torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)))


def test_images_are_normalised_once(tmp_path):
    model = build("torchvision:resnet18", tmp_path).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    torch.testing.assert_close(model(images()), model.network((images() - mean) / std))


def test_mean_and_std_of_the_configuration_go_before_the_preset(tmp_path):
    config = ModelConfig(source="torchvision:resnet18", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert read_preset(config, root=tmp_path) == Preset(224, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("stated", [{}, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}])
def test_a_stated_order_of_colours_is_the_one_that_the_network_is_fed(stated, tmp_path):
    """As OpenCV reads files; mean and deviation are then those of blue, green and red."""
    config = ModelConfig(source="packaged:small-mlp", channels="bgr", **stated)
    preset = read_preset(config, root=tmp_path)
    fed = Classifier(nn.Flatten(), preset)(images(side=2))
    mean, std = (torch.tensor(stated.get(name, default)) for name, default in (("mean", [0.0] * 3), ("std", [1.0] * 3)))
    expected = torch.stack([(images(side=2)[:, colour] - mean[place]) / std[place] for place, colour in enumerate((2, 1, 0))], 1)
    torch.testing.assert_close(fed, expected.flatten(1))
    grey = images(side=2, channels=1)
    torch.testing.assert_close(Classifier(nn.Flatten(), preset)(grey), Classifier(nn.Flatten(), preset)(grey.repeat(1, 3, 1, 1)))
    assert read_preset(ModelConfig(source="packaged:small-mlp", channels="rgb"), root=tmp_path) == Preset()


def test_packaged_weights_are_those_of_imagenet(tmp_path):
    """The same weights whatever the seed, but for the new head; and features that differ from random ones."""
    one, other = (build("packaged:efficientnet-lite0", tmp_path, seed=seed) for seed in (0, 1))
    different = [name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert different == ["network.classifier.weight"]
    # Statistics of a trained network: a fresh one has running means of zero.
    assert one.network.bn1.running_mean.abs().max() > 0.1


def test_a_folder_of_hugging_face_gets_a_new_head_and_keeps_its_trunk(resnet_folder):
    root, name = resnet_folder.parent, resnet_folder.name
    model = build(f"hf:{name}", root)
    assert model.preset == Preset(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.eval()(images()).shape == (2, 2)
    stored = safetensors.torch.load_file(resnet_folder / "model.safetensors")
    trunk = [name for name in stored if "classifier" not in name]
    assert trunk and all(torch.equal(model.network.state_dict()[name], stored[name]) for name in trunk)
    # With as many classes as it was trained on, its head is kept too.
    same = build(f"hf:{name}", root, classes=5)
    assert all(torch.equal(same.network.state_dict()[key], value) for key, value in stored.items())


def test_a_multi_label_classifier_is_refused_by_name(tmp_path, resnet_folder):
    config = json.loads((resnet_folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((resnet_folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="multi-label"):
        build("hf:labels", tmp_path)
    with pytest.raises(ModelError, match="sigmoid"):
        check_model(as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Sigmoid())), torch.rand(2, 3, 2, 2), TWO)


def test_a_single_logit_becomes_two_with_the_same_probabilities():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    pictures = torch.rand(4, 3, 2, 2)
    logits = Classifier(network)(pictures)
    assert logits.shape == (4, 2)
    torch.testing.assert_close(logits.softmax(1)[:, 1], network(pictures)[:, 0].sigmoid())
    check_model(Classifier(network), pictures, TWO)
    with pytest.raises(ModelError, match="3 classes"):
        check_model(Classifier(network), pictures, ("a", "b", "c"))


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:regnetx_002"])
def test_a_checkpoint_with_a_single_logit_is_taken_for_two_classes(source, tmp_path):
    trained = build(source, tmp_path, classes=1).eval()
    torch.save(trained.network.state_dict(), tmp_path / "one.pt")
    model = build(source, tmp_path, seed=1, checkpoint="one.pt").eval()
    load_checkpoint(model, tmp_path / "one.pt")
    assert model(images()).shape == (2, 2)
    torch.testing.assert_close(model(images()), trained(images()))


def test_a_hugging_face_folder_with_the_right_head_is_a_checkpoint(resnet_folder):
    root, config = resnet_folder.parent, ModelConfig(source=f"hf:{resnet_folder.name}")
    assert find_checkpoint(config, classes=5, root=root) == "resnet/model.safetensors"
    assert find_checkpoint(config, classes=2, root=root) is None
    assert find_checkpoint(ModelConfig(source="torchvision:resnet18"), classes=2, root=root) is None
    model = build("hf:resnet", root, classes=5)
    load_checkpoint(model, root / "resnet/model.safetensors")


def test_a_users_own_network_comes_back_unwrapped():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert unwrap(as_classifier(network)) is network
    whole = Classifier(network, Preset(2, (0.5,) * 3, (0.5,) * 3))
    assert as_classifier(whole) is whole and unwrap(whole) is whole


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_checkpoints_go_there_and_back(suffix, tmp_path):
    one, other = (build("torchvision:resnet18", tmp_path, seed=seed) for seed in (0, 1))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": one.network.state_dict()}, path)
    else:
        save_checkpoint(one, path)
    load_checkpoint(other, path)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_pretrained_weights_of_a_file_may_have_another_head(tmp_path):
    torch.save(build("torchvision:resnet18", tmp_path, classes=10).network.state_dict(), tmp_path / "ten.pt")
    model = build("torchvision:resnet18", tmp_path, classes=2, seed=1, pretrained="ten.pt")
    stored = torch.load(tmp_path / "ten.pt", weights_only=True)
    assert torch.equal(model.network.state_dict()["conv1.weight"], stored["conv1.weight"])
    assert model.network.fc.weight.shape == (2, 512)


def test_inception_is_built_as_torchvision_builds_it_for_its_weights(tmp_path):
    """torchvision 0.29.1 sets transform_input for weights, and no state dict has it. GoogLeNet fine-tuned from weights has no auxiliary heads."""
    options = {"num_classes": 2, "transform_input": True, "init_weights": False}
    pictures = images(side=96)
    for name, given in (("googlenet", {"aux_logits": False}), ("googlenet", {"aux_logits": True}), ("inception_v3", {"aux_logits": True})):
        torch.manual_seed(0)
        owners = torchvision.models.get_model(name, **options, **given).eval()
        torch.save(owners.state_dict(), tmp_path / "model.pt")
        notes = []
        config = ModelConfig(source=f"torchvision:{name}", checkpoint="model.pt")
        model = build_model(config, classes=2, root=tmp_path, generator_seed=1, note=notes.append).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(pictures), owners((pictures - model.mean) / model.std))
        assert any("transform_input" in note for note in notes)
        # What is saved goes back into its owner's network.
        save_checkpoint(model, tmp_path / "back.safetensors")
        owners.load_state_dict(safetensors.torch.load_file(tmp_path / "back.safetensors"))
    assert build("torchvision:googlenet", tmp_path).network.transform_input is False


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
@pytest.mark.parametrize("own", [True, False])
def test_pretrained_inception_takes_all_but_its_heads(name, own, tmp_path, monkeypatch):
    """Its auxiliary heads have as many outputs as it has classes, and stand before the last layer."""
    torch.manual_seed(0)
    stored = torchvision.models.get_model(name, num_classes=10, aux_logits=True, init_weights=False).state_dict()
    if own:  # as if they came from torchvision's server
        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: stored)
    else:
        torch.save(stored, tmp_path / "weights.pt")
    model = build(f"torchvision:{name}", tmp_path, pretrained=True if own else "weights.pt").eval()
    kept = model.network.state_dict()
    heads = {"inception_v3": ("fc.", "AuxLogits.fc."), "googlenet": ("fc.", "aux1.fc2.", "aux2.fc2.")}[name]
    assert {key for key in kept if not torch.equal(kept[key], stored[key])} <= {key for key in kept if key.startswith(heads)}
    assert model.network.transform_input and model.network.aux_logits is (name == "inception_v3" or not own)
    assert model(images(side=96)).shape == (2, 2)


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1"])
def test_pretrained_weights_fit_a_network_with_two_heads(name, tmp_path):
    stored = timm.create_model(name, num_classes=10).state_dict()
    torch.save({"state_dict": stored}, tmp_path / "weights.pt")
    kept = build(f"timm:{name}", tmp_path, pretrained="weights.pt").network.state_dict()
    new = {key.split(".")[0] for key in kept if kept[key].shape != stored[key].shape}
    assert new == {"head", "head_dist"}
    assert all(torch.equal(kept[key], stored[key]) for key in kept if key.split(".")[0] not in new)


def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    torch.save(build("timm:regnetx_002", tmp_path).network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"do not fit.*conv1.weight"):
        build("torchvision:resnet18", tmp_path, pretrained="other.pt")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision:resnet1", "resnet1"),
        ("timm:no_such_network", "no_such_network"),
        ("hf:nowhere", "save_pretrained"),
        ("packaged:resnet50", "efficientnet-lite0"),
        ("python:nowhere:build", "nowhere"),
        ("resnet50", "torchvision:NAME"),
    ],
)
def test_unknown_sources_say_what_was_expected(source, words, tmp_path):
    with pytest.raises(ModelError, match=words):
        build(source, tmp_path)


def test_a_network_is_placed_where_it_gives_the_same_logits(tmp_path):
    class Views(nn.Module):
        """Wants channels first, as networks that call view on feature maps do."""

        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    for network in (Views().eval(), build("torchvision:resnet18", tmp_path).eval()):
        pictures = images(side=16)
        expected = network(pictures)
        torch.testing.assert_close(place_model(network, pictures)(pictures), expected, rtol=1e-4, atol=1e-4)


def test_two_projects_may_have_modules_of_one_name(tmp_path):
    """In one process, as in a notebook."""
    for name, width in (("one", 3), ("two", 5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "same_name.py").write_text(f"from torch import nn\ndef build(classes):\n    return nn.Linear({width}, classes)\n")
        assert build("python:same_name:build", folder).network.in_features == width
