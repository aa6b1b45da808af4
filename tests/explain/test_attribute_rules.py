"""Each rule of DeepLIFT re-derived with plain loops on a few numbers, and Captum where it is right."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.explain.attribute import attribute_images


class Plain(nn.Module):
    """Four pixels, a linear layer of six, something, a linear layer: z = W x + w, f = U g(z)."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.into, self.out, self.middle = nn.Linear(4, 6), nn.Linear(6, 3, bias=False), middle

    def forward(self, x):
        return self.out(self.middle(self.into(x.flatten(1))))


def draw(count, seed):
    return torch.randn(count, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_heatmaps(model, derive, scale=3.0):
    """``derive(z, z_b)[k][j]`` is by how much the rule multiplies a change of z_j on its way to g_k."""
    model = model.double()
    images, baselines = scale * draw(4, 1), scale * draw(3, 2)
    baselines[0] = images[0]
    ours = attribute_images(model, images, baselines)
    weights, out = model.into.weight.tolist(), model.out.weight.tolist()
    for n, image in enumerate(images):
        expected = [0.0] * 4
        for baseline in baselines:
            z, z_b = (model.into(x.flatten()).tolist() for x in (image, baseline))
            multiplier = derive(z, z_b)
            for i, change in enumerate((image - baseline).flatten().tolist()):
                for k in range(6):
                    for j in range(6):
                        expected[i] += out[int(ours.targets[n])][k] * multiplier[k][j] * weights[j][i] * change / len(baselines)
        torch.testing.assert_close(ours.heatmaps[n].flatten(), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-7)
    assert ours.completeness_error.max() < 1e-9


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def clamp(z, low, high):
    return min(max(z, low), high)


ELEMENTWISE = {
    "relu": (F.relu, lambda z: max(z, 0)),
    "threshold": (lambda z: F.threshold(z, 0.5, -1.0), lambda z: z if z > 0.5 else -1),
    "relu6": (F.relu6, lambda z: clamp(z, 0, 6)),
    "hardtanh": (F.hardtanh, lambda z: clamp(z, -1, 1)),
    "clamp": (lambda z: z.clamp(-2, 1), lambda z: clamp(z, -2, 1)),
    "leaky_relu": (lambda z: F.leaky_relu(z, 0.1), lambda z: max(z, 0.1 * z)),
    "elu": (F.elu, lambda z: z if z > 0 else math.exp(z) - 1),
    "silu": (F.silu, lambda z: z * sigmoid(z)),
    "gelu, erf": (F.gelu, lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2),
    "gelu, tanh": (lambda z: F.gelu(z, approximate="tanh"), lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2),
    "hardswish": (F.hardswish, lambda z: z * clamp(z + 3, 0, 6) / 6),
    "hardsigmoid": (F.hardsigmoid, lambda z: clamp(z + 3, 0, 6) / 6),
    "sigmoid": (torch.sigmoid, sigmoid),
    "tanh": (torch.tanh, math.tanh),
    "softplus": (F.softplus, lambda z: math.log1p(math.exp(z))),
    "mish": (F.mish, lambda z: z * math.tanh(math.log1p(math.exp(z)))),
    "square": (torch.square, lambda z: z * z),
    "power": (lambda z: z**3, lambda z: z**3),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_function_multiplies_by_its_quotient_of_differences(name, build_seeded):
    """Eq. 2, and the derivative where nothing changed."""
    function, by_hand = ELEMENTWISE[name]

    def quotient(z, z_b):
        if z == z_b:
            return (by_hand(z + 1e-6) - by_hand(z - 1e-6)) / 2e-6
        return (by_hand(z) - by_hand(z_b)) / (z - z_b)

    def derive(z, z_b):
        return [[quotient(z[k], z_b[k]) if j == k else 0.0 for j in range(6)] for k in range(6)]

    assert_heatmaps(build_seeded(lambda: Plain(function)), derive)


def test_a_product_gives_each_factor_the_mean_of_the_other(build_seeded):
    """delta(ab) = (a + a')/2 delta b + (b + b')/2 delta a, here for a pair of halves that are added up again."""

    def derive(z, z_b):
        multiplier = [[0.0] * 6 for _ in range(6)]
        for k in range(6):
            left, right = k % 3, k % 3 + 3
            multiplier[k][left] = (z[right] + z_b[right]) / 2
            multiplier[k][right] = (z[left] + z_b[left]) / 2
        return multiplier

    assert_heatmaps(build_seeded(lambda: Plain(lambda z: (z[:, :3] * z[:, 3:]).repeat(1, 2))), derive)


def test_a_product_that_broadcasts(build_seeded):
    """Every z_k times the mean of all."""

    def derive(z, z_b):
        mean, mean_b = sum(z) / 6, sum(z_b) / 6
        return [[(mean + mean_b) / 2 * (j == k) + (z[k] + z_b[k]) / 2 / 6 for j in range(6)] for k in range(6)]

    assert_heatmaps(build_seeded(lambda: Plain(lambda z: z.mean(1, keepdim=True) * z)), derive)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["layer", "group", "by hand"])
def test_a_norm_is_centring_a_square_a_root_and_a_product(kind, groups, build_seeded):
    size, eps = 6 // groups, 0.1

    def function(z):
        if kind == "group":
            return F.group_norm(z, groups, eps=eps)
        parts = z.view(-1, groups, size)
        if kind == "layer":
            return F.layer_norm(parts, (size,), eps=eps).flatten(1)
        centred = parts - parts.mean(2, keepdim=True)
        return (centred * ((centred * centred).mean(2, keepdim=True) + eps).rsqrt()).flatten(1)

    def derive(z, z_b):
        multiplier = [[0.0] * 6 for _ in range(6)]
        for start in range(0, 6, size):
            group = range(start, start + size)
            mean, mean_b = (sum(values[j] for j in group) / size for values in (z, z_b))
            c, c_b = {j: z[j] - mean for j in group}, {j: z_b[j] - mean_b for j in group}
            v, v_b = (sum(value**2 for value in values.values()) / size + eps for values in (c, c_b))
            r, r_b = v**-0.5, v_b**-0.5
            root = (r - r_b) / (v - v_b) if v != v_b else -0.5 * v**-1.5
            for k in group:
                for centred in group:
                    square = (c[centred] + c_b[centred]) / size
                    step = (r + r_b) / 2 * (k == centred) + (c[k] + c_b[k]) / 2 * root * square
                    for j in group:
                        multiplier[k][j] += step * ((j == centred) - 1 / size)
        return multiplier

    assert_heatmaps(build_seeded(lambda: Plain(function)), derive)


def test_a_small_difference_keeps_its_digits_in_single_precision(build_seeded):
    """With ten digits in common the quotient of two sigmoids would be rounding alone."""
    model = build_seeded(lambda: Plain(torch.sigmoid))
    images = draw(4, 1).float()
    baselines = images[:1] + 1e-6 * draw(1, 2).float()
    single = attribute_images(model, images, baselines).heatmaps[0]
    leaf = images[:1].clone().requires_grad_()
    model(leaf).max().backward()
    torch.testing.assert_close(single, (leaf.grad * (images[:1] - baselines)).sum(1)[0], rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning:captum", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Setting forward")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus])
def test_equals_captum_on_plain_networks(activation, build_seeded):
    captum = pytest.importorskip("captum.attr", reason="comes with the extra 'rivals'")
    model = build_seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 5, 2, padding=1), activation(), nn.AvgPool2d(2, 1), activation(), nn.Flatten(), nn.Linear(20, 3)).double()
    )
    images, baselines = draw(5, 1), draw(4, 2)
    ours = attribute_images(model, images, baselines)
    theirs = captum.DeepLiftShap(model).attribute(images, baselines, target=ours.targets).sum(1).detach()
    torch.testing.assert_close(ours.heatmaps, theirs, atol=1e-7, rtol=1e-5)
