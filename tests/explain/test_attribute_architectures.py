"""Completeness on the architectures that people use, what is refused by name, Integrated Gradients there, and the memory it takes."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.errors import ModelError
from rightreasons.explain import attribute
from rightreasons.explain.attribute import attribute_images, check_attribution
from rightreasons.networks.classifier import Preset, as_classifier
from rightreasons.networks.sources import build_model
from tests.support.helpers import measured

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def draw(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Blobs of colour: pixels drawn one by one would look alike to a deep network, and give all the same logits but for rounding."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bilinear")


def torchvision_model(name):
    from torchvision.models import get_model

    return get_model(name, num_classes=5)


def timm_model(name, **options):
    import timm

    return timm.create_model(name, num_classes=5, **options)


def huggingface_model(name, **options):
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def with_statistics(model: nn.Module, side: int = 64) -> nn.Module:
    """Batch norms get the statistics of such images, not quite right, and each norm an affine part: signals keep their size, and nothing is 0 or 1.

    (Statistics drawn blindly let the signal die or grow on its way: what is left of float32's digits then says nothing of the rule.)
    """
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.normal_(0, 0.2, generator=generator)
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        model(draw(8, side))
    for norm in norms:
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=generator)
            norm.running_var *= 0.8 + 0.5 * torch.rand(norm.running_var.shape, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith(("layer_scale", "gamma", "gamma_1", "gamma_2", "layer_scale_parameter")):
            parameter.data.uniform_(0.1, 0.5, generator=generator)
    return model.eval()


SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
CONVOLUTIONAL = {
    **{f"torchvision:{name}": (torchvision_model, name, {}) for name in "resnet18 mobilenet_v2 mobilenet_v3_small densenet121 convnext_tiny".split()},
    **{f"timm:{name}": (timm_model, name, {}) for name in "tf_efficientnet_lite0 efficientnet_b0 regnetx_002 regnety_002 convnext_atto".split()},
    "hf:ResNet": (huggingface_model, "ResNet", SMALL),
    "hf:RegNet": (huggingface_model, "RegNet", SMALL | {"groups_width": 8}),
    "hf:ConvNext": (huggingface_model, "ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_heatmaps_are_complete_in_single_precision(name, build_seeded):
    build, source, options = CONVOLUTIONAL[name]
    model = as_classifier(build_seeded(lambda: with_statistics(build(source, **options).eval())))
    images, baselines = draw(2, seed=1), draw(2, seed=2)
    check_attribution(model, images)
    with torch.no_grad():
        difference = model(images) - model(baselines).mean(0)
    # The class that images and baselines differ most in: where they hardly do, large effects cancel and rounding is what is left.
    targets = difference.abs().argmax(1)
    result = attribute_images(model, images, baselines, targets)
    expected = difference.gather(1, targets[:, None])[:, 0]
    assert ((result.heatmaps.sum((1, 2)) - expected).abs() < 1e-4 * expected.abs()).all()
    assert result.completeness_error.max() < 1e-4


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}


def torchvision_vit(name):
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zeros otherwise
    return model


def torch_encoder(name):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 2, 32, activation="gelu", batch_first=True), 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), encoder, nn.Flatten(), nn.Linear(12 * 64, 5))


def batch_second(name):
    """Tokens first, as torch's own layers have it by default."""
    layer = nn.TransformerEncoderLayer(64, 2, 32, activation="gelu")
    return nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), Swap(), layer, Swap(), nn.Flatten(), nn.Linear(12 * 64, 5))


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


ATTENTION = {
    "torchvision": (torchvision_vit, "", {}),
    "torchvision:swin": (lambda name: swin(), "", {}),
    "timm": (timm_model, "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24}),
    "timm:cait": (timm_model, "cait_xxs24_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}),
    "timm:convnextv2": (timm_model, "convnextv2_atto", {}),
    "hf": (huggingface_model, "ViT", VIT),
    "hf, step by step": (huggingface_model, "ViT", VIT | {"attn_implementation": "eager"}),
    "torch's fast path": (torch_encoder, "", {}),
    "tokens before images": (batch_second, "", {}),
}


def swin():
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_explained_exactly(name, build_seeded):
    build, source, options = ATTENTION[name]
    model = as_classifier(build_seeded(lambda: with_statistics(build(source, **options).eval(), 32)))
    images, baselines = draw(3, 32, 1), draw(2, 32, 2)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert check_attribution(model, images) < 1e-4
    with torch.no_grad():
        targets = (model(images) - model(baselines).mean(0)).abs().argmax(1)
    single = attribute_images(model, images, baselines, targets)
    assert single.completeness_error.max() < 1e-4
    double = attribute_images(model.double(), images.double(), baselines.double(), targets)
    # transformers takes its softmax in single precision, whatever the model's.
    assert double.completeness_error.max() < (1e-5 if name == "hf, step by step" else 1e-9)
    torch.testing.assert_close(single.heatmaps.double(), double.heatmaps, rtol=1e-2, atol=1e-4 * float(double.heatmaps.abs().max()))
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == hooks


def test_integrated_gradients_take_attention_too(build_seeded):
    model = as_classifier(build_seeded(lambda: torchvision_vit("")))
    result = attribute_images(model, draw(2, 32, 1), draw(2, 32, 2), method="integrated-gradients")
    assert result.completeness_error.max() < 1e-3
    assert result.heatmaps.shape == (2, 32, 32)


def test_a_classifier_with_a_preset_is_its_network_and_a_normalisation(build_seeded, tmp_path):
    from rightreasons.config import ModelConfig

    config = ModelConfig(source="torchvision:squeezenet1_1", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model = build_model(config, classes=5, root=tmp_path, generator_seed=0)
    assert model.preset != Preset()
    assert attribute_images(model, draw(2, seed=1), draw(2, seed=2)).completeness_error.max() < 1e-4


def test_integrated_gradients_by_hand(tiny_cnn):
    """The mean over baselines of (x - b) times the mean gradient on the way, at many equal steps."""
    images, baselines = draw(2, 9, 1), draw(3, 9, 2)
    ours = attribute_images(tiny_cnn, images, baselines, method="integrated-gradients")
    expected = torch.zeros(2, 9, 9)
    for n in range(2):
        for baseline in baselines:
            shares = (torch.arange(500) + 0.5) / 500
            leaf = (baseline + shares[:, None, None, None] * (images[n] - baseline)).requires_grad_()
            tiny_cnn.eval()(leaf)[:, ours.targets[n]].mean().backward()
            expected[n] += (leaf.grad.sum(0) * (images[n] - baseline)).sum(0) / 3
    torch.testing.assert_close(ours.heatmaps, expected, atol=0.03 * expected.abs().max().item(), rtol=0)


def test_integrated_gradients_are_exact_for_what_is_linear(build_seeded):
    model = build_seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)).eval())
    images, baselines = draw(5, 9, 1), draw(3, 9, 2)
    deeplift, integrated = (attribute_images(model, images, baselines, method=method) for method in ("deeplift-shap", "integrated-gradients"))
    torch.testing.assert_close(integrated.heatmaps, deeplift.heatmaps, atol=1e-6, rtol=1e-4)
    assert integrated.completeness_error.max() < 1e-4


def test_integrated_gradients_take_targets_chunks_and_progress(build_seeded):
    model = build_seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(196, 3)))
    images, baselines, targets, told = draw(5, 9, 1), draw(2, 9, 2), torch.tensor([0, 1, 2, 0, 1]), []
    model.train()
    whole = attribute_images(model, images, baselines, targets, method="integrated-gradients")
    parts = attribute_images(
        model, images, baselines, targets, method="integrated-gradients", chunk=2, progress=lambda done, total: told.append((done, total))
    )
    assert torch.equal(whole.targets, targets)
    torch.testing.assert_close(parts.heatmaps, whole.heatmaps, atol=1e-6, rtol=1e-4)
    assert parts.completeness_error.max() < 1e-4
    assert told == sorted(told) and told[-1] == (5, 5)
    assert model.training and all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kept", [1, 30_000, 2**30])
def test_less_memory_means_smaller_groups_and_the_same_heatmaps(tiny_cnn, kept, monkeypatch):
    images, baselines, seen, told = draw(7, 9, 1), draw(5, 9, 2), [], []
    whole = attribute_images(tiny_cnn, images, baselines)
    monkeypatch.setattr(attribute, "KEPT_BYTES", kept)
    tiny_cnn.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    parts = attribute_images(tiny_cnn, images, baselines, progress=lambda done, total: told.append((done, total)))
    torch.testing.assert_close(parts.heatmaps, whole.heatmaps, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(parts.targets, whole.targets)
    assert parts.completeness_error.max() < 1e-4
    assert seen == {1: [1] * 40, 2**30: [1, 4, 7]}.get(kept, seen) and len(seen) in (3, 40, *range(5, 30))
    assert told == sorted(told) and told[-1] == (7, 7)


def test_resnet50_at_full_size_stays_within_memory():
    """A process of its own: 3 images and 7 baselines at 224 px, more than are kept at a time; what python and torch take before is not counted."""
    script = """
import resource, torch
from torchvision.models import resnet50
from rightreasons.explain.attribute import attribute_images
torch.manual_seed(0)
model = resnet50(num_classes=5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attribute_images(model, torch.rand(3, 3, 224, 224), torch.rand(7, 3, 224, 224))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    taken = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=measured()).stdout)
    assert taken * (1 if sys.platform == "darwin" else 1024) < 1.5e9


def test_an_untrained_network_whose_signal_has_nearly_died_out_is_complete_as_well(build_seeded):
    """Without statistics the activations of a MobileNet v2 are of the order of 1e-8, and so are their differences."""
    model = build_seeded(lambda: torchvision_model("mobilenet_v2"))
    images = draw(3, seed=1)
    assert check_attribution(model, images) < 1e-5
    assert attribute_images(model, images[:2], images[2:]).completeness_error.max() < 1e-3


def test_a_heatmap_that_is_not_finite_is_an_error(build_seeded):
    class Root(nn.Module):
        """sqrt has an infinite slope at 0, where Integrated Gradients come by with an image that is its own baseline."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 32 * 32, 2)

        def forward(self, x):
            return self.head((x - x.mean((1, 2, 3), keepdim=True)).abs().sqrt().flatten(1))

    with pytest.raises(ModelError, match="effects of the pixels .* are not finite"):
        check_attribution(build_seeded(Root), torch.full((2, 3, 32, 32), 0.5), "integrated-gradients")
