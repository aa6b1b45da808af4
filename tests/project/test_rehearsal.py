"""The rehearsal before anything is paid or trained: what is taken, and what is refused by name."""

import json
import random
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from rightreasons.config import parse_config
from rightreasons.errors import DataError, ModelError, UnsupportedLayer
from rightreasons.explain.attribute import attribute_images
from rightreasons.networks.classifier import as_classifier, copy_model
from rightreasons.project.rehearsal import rehearse
from tests.support.helpers import edit, invoke, the_error, trained_weights, write_scripted

IMAGES = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, torch.arange(40) % 2)


def settings(**tables):
    words = {name: {"description": "A part."} for name in ("a", "b")}
    return parse_config({"data": {"path": "x"}, "model": {"source": "x"}, "classes": words, "critic": {"lvlm": "x"}, **tables}, source="test")


def try_out(network, *, train_first=False, splits=None, **tables):
    return rehearse(as_classifier(network), splits or {"train": DATA, "validation": DATA}, ("a", "b"), settings(**tables), train_first=train_first)


def small(outputs=2, *, norm=None):
    """A convolution, a pool over all places, and a linear head."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm or nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


class Ends(nn.Module):
    """``small``, and a function of what it gives."""

    def __init__(self, end, outputs=2):
        super().__init__()
        self.network, self.end = small(outputs), end

    def forward(self, x):
        return self.end(self.network(x))


class Between(nn.Module):
    """A function between a convolution and the head."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), function

    def forward(self, x):
        return self.head(self.function(self.conv(x)).mean((2, 3)))


class Swish(torch.autograd.Function):
    """As memory-efficient EfficientNets have it (efficientnet_pytorch 0.7.1)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * torch.sigmoid(z)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        s = torch.sigmoid(z)
        return gradient * (s + z * s * (1 - s))


def without_gradient(function):
    def called(x):
        with torch.no_grad():
            return function(x)

    return called


def on_a_scale(h):
    return torch.relu(h) / h.detach().amax((1, 2, 3), keepdim=True)


def gated(h):
    return h.relu() * torch.sigmoid(5 * without_gradient(torch.relu)(h).mean((2, 3), keepdim=True))


def quiet(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit and torch.ao are deprecated, and people have networks made with them
        return build()


def quantised():
    from torch.ao import quantization

    network = nn.Sequential(quantization.QuantStub(), *small(), quantization.DeQuantStub()).eval()
    del network[2]  # the Identity, which has no quantised form
    network.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(network)
    prepared(IMAGES[:4])
    return quantization.convert(prepared)


def exported():
    return torch.export.export(small().eval(), (IMAGES[:2],), dynamic_shapes=({0: torch.export.Dim("images")},)).module()


def compiled_in_place():
    network = small()
    network.compile(backend="eager")
    return network


class Keeps(nn.Module):
    """Keeps a weight map from its first call, and its features from its last, as hooks and Grad-CAM do."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.map = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), None

    def forward(self, x):
        self.features = torch.relu(self.conv(x))
        if self.map is None:
            self.map = torch.linspace(0, 1, self.features.shape[-1]).expand(self.features.shape[-2:]).clone()
        return self.head((self.features * self.map).mean((2, 3)))


class Gated(nn.Module):
    """A gate that is registered behind the head, and called before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.squeeze, self.gate = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), nn.Linear(8, 8), nn.Sigmoid()

    def forward(self, x):
        h = torch.relu(self.conv(x))
        return self.head((h * self.gate(self.squeeze(h.mean((2, 3))))[:, :, None, None]).mean((2, 3)))


class FailsInTraining(Keeps):
    def forward(self, x):
        if self.training:
            raise ValueError("no labels")
        return super().forward(x)


class Checkpointed(nn.Module):
    """Layers that keep nothing and run again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.SiLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(checkpoint(self.body, x + 0, use_reentrant=False).mean((2, 3)))


TAKEN = {
    "plain": small,
    "batch norm": lambda: small(norm=nn.BatchNorm2d(8)),
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(2)),
    "what it keeps": Keeps,
    "a gate registered last": Gated,
    "old weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(768, 2))),
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "compiled in place": compiled_in_place,
    "a compiled function": lambda: Between(torch.compile(F.silu, backend="eager")),
    "a checkpointed function": lambda: Between(lambda h: checkpoint(torch.tanh, 9 * h, use_reentrant=False)),
    "a tuple": lambda: Ends(lambda z: (z, z.square())),
    "a dict": lambda: Ends(lambda z: {"features": z.square(), "logits": z}),
    "squeeze() of one logit": lambda: Ends(torch.squeeze, 1),
    "one bounded logit": lambda: Ends(torch.tanh, 1),
    "the sum of two heads": lambda: Ends(lambda z: z[:, :1] + z[:, 1:]),
}
REFUSED = {
    "a function of its own": (lambda: Between(lambda h: Swish.apply(20 * h)), UnsupportedLayer, r"missing.*Function Swish"),
    "checkpointing": (lambda: Checkpointed(), UnsupportedLayer, "gradient checkpointing"),
    "reentrant": (lambda: Between(lambda h: checkpoint(torch.tanh, 9 * h, use_reentrant=True)), UnsupportedLayer, "gradient checkpointing"),
    "a detached maximum": (lambda: Between(on_a_scale), UnsupportedLayer, "missing.*detached"),
    "a detached gate": (lambda: Between(gated), UnsupportedLayer, "missing.*no_grad"),
    "hard attention": (lambda: Between(lambda h: h * (h > 0.1)), UnsupportedLayer, "comparing features"),
    "torch.jit.script": (lambda: torch.jit.script(small()), UnsupportedLayer, "compiled by torch.jit"),
    "torch.jit.trace": (lambda: torch.jit.trace(small().eval(), IMAGES[:2]), UnsupportedLayer, "compiled by torch.jit"),
    "no_grad": (lambda: Between(without_gradient(torch.relu)), ModelError, "no gradient leads.*no_grad"),
    "quantised": (quantised, ModelError, "0 is quantised"),
    "torch.export": (exported, ModelError, "exported from"),
    "sigmoid": (lambda: Ends(torch.sigmoid, 1), ModelError, "gives probabilities.*leave out"),
    "sigmoid by hand": (lambda: Ends(lambda z: 1 / (1 + torch.exp(-z)), 1), ModelError, "gives probabilities"),
    "sigmoid as a quotient": (lambda: Ends(lambda z: z.exp() / (1 + z.exp()), 1), ModelError, "gives probabilities"),
    "many sigmoids": (lambda: Ends(torch.sigmoid), ModelError, "gives probabilities.*multi-label"),
    "softmax": (lambda: nn.Sequential(small(), nn.Softmax(1)), ModelError, "gives probabilities"),
    "softmax by hand": (lambda: Ends(lambda z: z.exp() / z.exp().sum(1, keepdim=True)), ModelError, "gives probabilities"),
    "batch statistics": (lambda: small(norm=nn.BatchNorm2d(8, track_running_stats=False)), ModelError, "for an image alone.*batch statistics"),
    "noise": (lambda: Ends(lambda z: z + torch.randn_like(z)), ModelError, "for an image alone"),
    "another dict": (lambda: Ends(lambda z: {"out": z, "aux": z}), ModelError, "dict with the keys 'out', 'aux'.*under 'logits'"),
    "nothing": (lambda: Ends(lambda z: None), ModelError, "NoneType"),
    "three outputs": (lambda: small(3), ModelError, "3 outputs and the data have 2 classes"),
    "not finite": (lambda: Ends(lambda z: z / 0), ModelError, r"logits of image \d+, and of 14 more of 15 are not finite"),
    "what fails in training": (lambda: FailsInTraining(), ModelError, r"a step of fine-tuning \(layers = 'all'\) fails .*ValueError: no labels"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_explained_to_rounding_and_can_be_trained(name, build_seeded):
    network = quiet(lambda: build_seeded(TAKEN[name]))
    found = quiet(lambda: try_out(network, train_first=True)).found
    assert {"images", "input", "logits", "heatmaps", "training", "fine-tuning"} <= set(found)
    assert attribute_images(as_classifier(network), IMAGES[:3], IMAGES[3:5]).completeness_error.max() < 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name, build_seeded):
    build, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        quiet(lambda: try_out(build_seeded(build)))


@pytest.mark.parametrize("name", ["a function of its own", "checkpointing", "torch.jit.trace", "torch.jit.script"])
def test_integrated_gradients_take_what_has_ordinary_gradients(name, build_seeded):
    quiet(lambda: try_out(build_seeded(REFUSED[name][0]), attribute={"method": "integrated-gradients"}))


@pytest.mark.parametrize("name", ["a detached maximum", "hard attention", "no_grad"])
def test_integrated_gradients_refuse_what_has_none(name, build_seeded):
    with pytest.raises(ModelError, match="no_grad"):
        try_out(build_seeded(REFUSED[name][0]), attribute={"method": "integrated-gradients"})


def test_an_untrained_logit_that_happens_to_lie_within_0_and_1_is_no_probability(build_seeded):
    """z * (1 + z) of a product with the image on both sides: which function ends it cannot be told."""
    network = build_seeded(lambda: Ends(lambda z: (0.5 + 0.1 * z) * (1 + 0.1 * z), 1))
    assert try_out(network, train_first=True).found["logits"]
    with pytest.raises(ModelError, match="gives probabilities"):
        try_out(network)


def test_the_network_keeps_its_weights_its_mode_of_training_and_its_frozen_layers(build_seeded):
    network = build_seeded(lambda: small(norm=nn.BatchNorm2d(8)))
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_out(network, train_first=True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, True, True, True, True, True]


def test_a_copy_leaves_the_graph_of_the_last_pass_behind(build_seeded):
    network = build_seeded(Keeps)
    logits = network(IMAGES[:2])
    copied = copy_model(network)
    assert copied.features.grad_fn is None and torch.equal(copied.features, network.features)
    assert torch.equal(copied(IMAGES[:2]), logits)


class Changes(torch.utils.data.Dataset):
    """Gives something else at each reading of one of its images."""

    def __init__(self, change):
        self.change, self.draws = change, random.Random(0)

    def __len__(self):
        return 15

    def __getitem__(self, index):
        return self.change(IMAGES[index], index % 2, self.draws.randrange(16))


@pytest.mark.parametrize("change", [lambda image, label, n: (image.roll(n, 2), label), lambda image, label, n: (image, n % 2)])
def test_data_that_change_at_each_reading_are_refused_by_name(change):
    changing = torch.utils.data.Subset(Changes(change), range(15))
    with pytest.raises(DataError, match=r"Changes \(train\) gives another picture or label of image \d+.*without random transforms"):
        try_out(small(), splits={"train": changing})
    with pytest.raises(DataError, match=r"Changes \(validation\)"):
        try_out(small(), splits={"train": DATA, "validation": changing})


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES[:15], torch.arange(15) % 2 + 1, r"image \d+ of validation has the label 2, and there are 2 classes: labels count from 0 to 1"),
        (IMAGES[:15] / 0, torch.arange(15) % 2, r"image \d+ of validation has pixels that are NaN or infinite"),
        (IMAGES[:15, :, :8], torch.arange(15) % 2, r"validation has 3 x 8 x 16 and train 3 x 16 x 16"),
    ],
)
def test_every_split_is_looked_at(images, labels, words):
    with pytest.raises(DataError, match=words):
        try_out(small(), splits={"train": DATA, "validation": TensorDataset(images, labels)})


def told_by_brightness(sign: float, bias: float = 0.0) -> str:
    """What is told of a network that calls bright images b with ``sign`` 1 and dark ones b with -1; of the images, those of b are bright."""
    labels = torch.arange(40) % 2
    images = 0.4 * IMAGES + 0.6 * labels[:, None, None, None]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        network[2].weight.copy_(sign * torch.tensor([[-1.0] * 3, [1.0] * 3]))
        network[2].bias.copy_(sign * torch.tensor([1.5, -1.5]) + torch.tensor([bias, 0.0]))
    data = TensorDataset(images, labels)
    return try_out(network, splits={"train": data, "validation": data}).found["answers"]


@pytest.mark.parametrize(("sign", "bias", "right"), [(1, 0.0, "ab"), (-1, 0.0, ""), (1, 100.0, "a")])
def test_how_many_of_the_images_that_are_read_are_answered_right(sign, bias, right):
    told = told_by_brightness(sign, bias)
    of = {name: tuple(int(word) for word in re.search(rf"\b{name} (\d+) of (\d+)", told).groups()) for name in "ab"}
    assert sum(count for _, count in of.values()) == 15 and told.startswith(f"right on {sum(hits for hits, _ in of.values())} of 15 train images (a ")
    assert all(hits == (count if name in right else 0) for name, (hits, count) in of.items())
    assert ("no better than guessing" in told) == (right != "ab")
    assert "answers" not in try_out(small(), train_first=True).found


def test_inspect_rehearses_the_network_of_a_configuration(tmp_path):
    config = write_scripted(tmp_path)
    result = invoke("inspect", config, "--model", "--json", "--out", tmp_path / "look")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["model"]
    assert re.match(r"right on \d+ of 15 train images \(", found["answers"])
    assert "15 of" in found["images"] and "deeplift-shap" in found["heatmaps"] and "finite" in found["fine-tuning"]
    assert "fine-tuning" in invoke("inspect", config, "--model", "--out", tmp_path / "look").stdout
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in trained_weights().items()}}, tmp_path / "wrapped.pt")
    edit(config, "model.safetensors", "wrapped.pt")
    result = invoke("inspect", config, "--model", "--json", "--out", tmp_path / "look")
    assert any("module." in problem for problem in json.loads(result.stdout)["problems"]), result.stderr
    edit(config, "tag_model:build", "tag_model:missing")
    assert "missing" in the_error(invoke("inspect", config, "--model", "--out", tmp_path / "look"))
    assert "needs a configuration" in the_error(invoke("inspect", tmp_path / "images", "--model", "--out", tmp_path / "look"))
