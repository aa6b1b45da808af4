"""LRP, derived again with loops, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.errors import UnsupportedLayer
from rightreasons.explain.attribute import attribute_images, check_attribution
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.presets import Preset


class Residual(nn.Module):
    """Two convolutions with batch norms, activations that write in place, a sum, and pools."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.after, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def stem(self, images):
        return self.norm(self.first(images))

    def body(self, maps):
        return self.after(self.second(maps))

    def forward(self, images):
        maps = F.relu6(self.stem(images), inplace=True)
        out = self.body(maps)
        out += maps
        return self.head(F.max_pool2d(out.relu_(), 2).mean((2, 3)))


def favour(layer, inputs, relevance):
    """The z-plus rule: an output's relevance goes to inputs in proportion to their positive contributions, of which a positive bias takes a part."""
    matrix = torch.autograd.functional.jacobian(lambda z: layer(z[None])[0].flatten(), inputs).flatten(1)
    bias, handed = layer(torch.zeros_like(inputs)[None])[0].flatten(), torch.zeros(inputs.numel(), dtype=inputs.dtype)
    for output, row in enumerate(matrix):
        parts = (row * inputs.flatten()).clamp_min(0)
        whole = parts.sum() + bias[output].clamp_min(0)
        if whole > 0:
            handed += parts / whole * relevance.flatten()[output]
    return handed.view_as(inputs)


def test_relevance_with_loops():
    torch.manual_seed(0)
    network = Residual().double().eval()
    for norm in (network.norm, network.after):
        for values in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(values)
    model, images = Classifier(network, Preset(mean=(0.5, 0.4), std=(0.2, 0.3))).double(), torch.rand(2, 2, 4, 4, dtype=torch.float64)
    found = attribute_images(model, images, images[:1], torch.tensor([0, 1]), method="lrp", chunk=1)
    for number, image in enumerate((images - model.mean) / model.std):
        maps = F.relu6(network.stem(image[None]))[0].detach()
        body = network.body(maps[None])[0].detach()
        out = (body + maps).relu().requires_grad_()
        network.head(F.max_pool2d(out[None], 2).mean((2, 3)))[0, number].backward()
        relevance = (out * out.grad).detach()
        total = torch.where(body + maps == 0, 1, body + maps)
        to_maps = maps / total * relevance + favour(network.body, maps, body / total * relevance)
        expected = favour(network.stem, image, to_maps)
        torch.testing.assert_close(found.heatmaps[number], expected.sum(0).detach())
    assert found.completeness_error.isnan().all() and math.isnan(check_attribution(model, images, "lrp"))


@pytest.mark.parametrize(
    ("function", "named"),
    [(torch.sigmoid, "sigmoid"), (lambda z: z * z.relu(), "mul"), (lambda z: z.softmax(1), "softmax"), (lambda z: z @ z, "matmul")],
)
def test_what_has_no_rule_of_relevance_is_refused_by_name(function, named):
    class Other(nn.Module):
        def forward(self, images):
            return function(images).mean((2, 3))

    with pytest.raises(UnsupportedLayer, match=f"LRP does not cover '_*{named}"):
        attribute_images(Other(), torch.rand(2, 2, 4, 4), torch.rand(1, 2, 4, 4), method="lrp")


@pytest.mark.parametrize("method", ["deeplift-shap", "lrp"])
def test_a_convolution_may_be_called_with_names(method):
    class Named(nn.Module):
        def forward(self, images):
            return F.conv2d(images, torch.ones(2, 1, 3, 3), groups=2, padding=1).relu().sum((2, 3))

    images, baselines = torch.rand(2, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    found = attribute_images(Named(), images, baselines, torch.tensor([0, 0]), method=method)
    torch.testing.assert_close(found.heatmaps.sum((1, 2)), Named()(images)[:, 0])
