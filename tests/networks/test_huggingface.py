"""Folders of Hugging Face: the weights, the names of outputs, and the pixels that the folder's own processor makes (transformers 5.24)."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from rightreasons.config import ModelConfig
from rightreasons.errors import ModelError
from rightreasons.explain.attribute import attribute_images
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.huggingface import read_input
from rightreasons.networks.sources import find_checkpoint, open_model, read_preset

CLASSES = ("benign", "malignant")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
FAMILIES = {
    "ViT": SMALL,
    "DeiT": SMALL,
    "Beit": SMALL,
    "Dinov2": {**SMALL, "mlp_ratio": 1},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


def save(folder, family="ResNet", **settings):
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **settings)
    network = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    network.save_pretrained(folder)
    return network


def opened(root, stated=None, **settings):
    """The model of a folder "net" as a run opens it, and the notes."""
    config, notes = ModelConfig(source="hf:net", classes=stated, **settings), []
    config = config.model_copy(update={"checkpoint": find_checkpoint(config, classes=len(CLASSES), root=root)})
    return open_model(config, classes=CLASSES, root=root, generator_seed=0, note=notes.append).eval(), notes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_its_owners_logits(family, tmp_path):
    """save_pretrained may write other names than the network has, so that only transformers itself can read the weights."""
    network = save(tmp_path / "net", family)
    images = torch.rand(2, 3, 32, 32)
    model, _ = opened(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images).logits)


def test_outputs_are_put_into_the_datas_order_by_id2label(tmp_path):
    network = save(tmp_path / "net", id2label={0: "Malignant", 1: "Benign"}, label2id={"Malignant": 0, "Benign": 1})
    images = torch.rand(2, 3, 32, 32)
    model, notes = opened(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images).logits.flip(1))
    assert model.order == (1, 0) and any("id2label" in note and "Malignant, Benign" in note for note in notes)
    # Its weights are those of the plain network, and its heatmaps are those of the class asked for.
    model.network.load_state_dict(network.state_dict())
    found = attribute_images(model, images, torch.rand(2, 3, 32, 32))
    plain = attribute_images(Classifier(network, model.preset), images, torch.rand(2, 3, 32, 32))
    assert torch.equal(found.targets, 1 - plain.targets) and found.completeness_error.max() < 1e-3


def test_names_of_other_classes_are_refused_and_can_be_overruled(tmp_path):
    save(tmp_path / "net", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    with pytest.raises(ModelError, match=r"cat, dog.*benign, malignant.*\[model\] classes"):
        opened(tmp_path)
    assert opened(tmp_path, stated=("malignant", "benign"))[0].order == (1, 0)
    # As weights to start from, the names do not matter.
    assert find_checkpoint(ModelConfig(source="hf:net", pretrained=True), classes=2, root=tmp_path) is None
    assert opened(tmp_path, pretrained=True)[0].order is None


def test_placeholders_leave_the_order_open(tmp_path):
    save(tmp_path / "net")
    model, notes = opened(tmp_path)
    assert model.order is None
    assert any("does not say which class each output stands for" in note and "LABEL_0" in note for note in notes)


def test_opening_a_folder_writes_nothing_to_the_terminal(tmp_path, capfd):
    """transformers 5 prints a bar, and a report with escape codes for a head of another size."""
    save(tmp_path / "net", num_labels=5)
    before = transformers.utils.logging.get_verbosity()
    capfd.readouterr()
    opened(tmp_path)
    assert "".join(capfd.readouterr()) == ""
    assert transformers.utils.logging.get_verbosity() == before and transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("side", [16, 28, 224])
def test_a_processor_that_shows_the_whole_picture_has_no_remark(side, tmp_path):
    """In a small output the edge of a ramp is the mean of many of its pixels."""
    save(tmp_path / "net")
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(tmp_path / "net")
    assert read_input("net", tmp_path).remark is None
    crop = {"height": side * 7 // 8, "width": side * 7 // 8}
    transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop).save_pretrained(tmp_path / "net")
    assert "middle" in str(read_input("net", tmp_path).remark)


def test_a_wrapped_timm_network_without_its_preprocessing_is_told(tmp_path):
    """config.json has pretrained_cfg where the network came from the hub, and not where it was made here."""
    config = transformers.TimmWrapperConfig(architecture="regnetx_002", label_names=list(CLASSES), num_classes=2)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "net")
    model, notes = opened(tmp_path)
    assert model.order == (0, 1) and any("has no image processor" in note for note in notes)


def test_a_folder_without_a_head_is_no_checkpoint(tmp_path):
    config = transformers.ViTConfig(**SMALL, num_labels=2)
    transformers.ViTModel(config).save_pretrained(tmp_path / "net")
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias"):
        opened(tmp_path)
    assert opened(tmp_path, pretrained=True)[0](torch.rand(1, 3, 32, 32)).shape == (1, 2)


SIDE = {"height": 64, "width": 64}
PROCESSORS = {
    "plain": transformers.ViTImageProcessor(size=SIDE),
    "no normalisation": transformers.ViTImageProcessor(size=SIDE, do_normalize=False),
    "no rescaling": transformers.ViTImageProcessor(size=SIDE, do_rescale=False, image_mean=[127.5] * 3, image_std=[50.0, 60.0, 70.0]),
    "neither": transformers.ViTImageProcessor(size=SIDE, do_rescale=False, do_normalize=False),
    "another factor": transformers.ViTImageProcessor(size=SIDE, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "blue first": transformers.MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size=SIDE),
    "deviation once more": transformers.EfficientNetImageProcessor(size=SIDE, crop_size={"height": 48, "width": 48}, do_center_crop=False),
    "an offset": transformers.EfficientNetImageProcessor(
        size=SIDE, do_center_crop=False, include_top=False, rescale_offset=True, rescale_factor=1 / 127.5
    ),
    "the shorter side": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "any size": transformers.ViTImageProcessor(do_resize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_folders_processor(name, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text(json.dumps({"model_type": "resnet"}))
    PROCESSORS[name].save_pretrained(tmp_path / "net")
    preset = read_preset(ModelConfig(source="hf:net"), root=tmp_path)
    assert preset.size == {"the shorter side": 384, "any size": None}.get(name, 64)
    picture = np.random.default_rng(1).integers(0, 256, (preset.size or 40, preset.size or 40, 3), dtype=np.uint8)
    theirs = torch.as_tensor(np.asarray(PROCESSORS[name](Image.fromarray(picture))["pixel_values"][0])).float()
    ours = Classifier(torch.nn.Identity(), preset)(torch.as_tensor(picture).permute(2, 0, 1)[None] / 255)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_timm_network_in_a_folder_has_its_own_preprocessing(tmp_path):
    """A TimmWrapper has no processor's file: its values are in pretrained_cfg of config.json."""
    given = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 1.0, "interpolation": "bilinear"}
    settings = {"model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 2, "pretrained_cfg": given}
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text(json.dumps(settings))
    preset = read_preset(ModelConfig(source="hf:net"), root=tmp_path)
    assert preset.size == 64 and preset.mean == pytest.approx((0.1, 0.2, 0.3)) and preset.std == pytest.approx((0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (transformers.ViTImageProcessor(size={"height": 64, "width": 96}), "64 x 96"),
        (transformers.ViTImageProcessor(size=SIDE, do_pad=True, pad_size={"height": 96, "width": 96}), "one colour"),
    ],
)
def test_what_cannot_be_followed_is_refused_until_it_is_stated(processor, words, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text(json.dumps({"model_type": "resnet"}))
    processor.save_pretrained(tmp_path / "net")
    with pytest.raises(ModelError, match=words):
        read_preset(ModelConfig(source="hf:net"), root=tmp_path)
    stated = ModelConfig(source="hf:net", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert read_preset(stated, root=tmp_path).mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda values: values / max(values.max(), 1.0), "more than that value"),  # as bright as the picture allows
        (lambda values: values[:, :, ::-1], "more than that value"),  # turned
        (lambda values: (values / 255) ** 2.2, "more than that value"),  # a curve
        (lambda values: np.repeat(values.mean(0, keepdims=True), 3, 0), "mixes the channels"),
        (lambda values: values[:1], "of shape"),
    ],
)
def test_a_processor_that_is_no_affine_map_of_each_pixel_is_refused(work, words, tmp_path, monkeypatch):
    def process(picture):
        small = np.asarray(picture.resize((64, 64))).astype(np.float64).transpose(2, 0, 1)
        return {"pixel_values": [work(small).copy()]}

    save(tmp_path / "net")
    (tmp_path / "net/preprocessor_config.json").write_text("{}")
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *_, **__: process)
    with pytest.raises(ModelError, match=words):
        read_preset(ModelConfig(source="hf:net"), root=tmp_path)


def test_a_folder_without_a_processor_is_told(tmp_path):
    save(tmp_path / "net")
    assert any("has no image processor" in note for note in opened(tmp_path)[1])
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(tmp_path / "net")
    assert any("the middle of a picture" in note for note in opened(tmp_path)[1])
    transformers.ViTImageProcessor(size=SIDE).save_pretrained(tmp_path / "net")
    assert not any("processor" in note for note in opened(tmp_path)[1])
