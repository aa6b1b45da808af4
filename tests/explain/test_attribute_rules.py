"""Each rule of DeepLIFT re-derived with plain loops on a few numbers, and Captum where it is right."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.errors import UnsupportedLayer
from rightreasons.explain.attribute import attribute_images
from rightreasons.explain.rules import RescaleSoftmax
from rightreasons.explain.tape import Tape


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


def logarithmic_mean(p, p_b):
    """The integral of p^t p'^(1-t) over t from 0 to 1, by 20 Gauss-Legendre points: the mean on the way from one distribution to the other."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    return sum(weight / 2 * p ** ((node + 1) / 2) * p_b ** ((1 - node) / 2) for node, weight in zip(nodes, weights, strict=True))


def softmax(z):
    shifted = [math.exp(value - max(z)) for value in z]
    return [value / sum(shifted) for value in shifted]


@pytest.mark.parametrize("kind", ["softmax", "log_softmax", "function", "softmin"])
def test_a_softmax_has_its_jacobian_at_the_logarithmic_means(kind, build_seeded):
    """delta p_k = L_k (delta z_k - sum L delta z / sum L), and delta log p_k without the first L_k."""
    function = {
        "softmax": lambda z: z.softmax(1),
        "log_softmax": lambda z: torch.log_softmax(z, dim=-1),
        "function": lambda z: F.softmax(z.view(-1, 6), dim=1, dtype=torch.float64),
        "softmin": lambda z: F.softmin(-z, dim=1),
    }[kind]

    def derive(z, z_b):
        mean = [logarithmic_mean(p, p_b) for p, p_b in zip(softmax(z), softmax(z_b), strict=True)]
        scale = [1.0] * 6 if kind == "log_softmax" else mean
        return [[scale[k] * ((j == k) - mean[j] / sum(mean)) for j in range(6)] for k in range(6)]

    assert_heatmaps(build_seeded(lambda: Plain(function)), derive)


def test_a_softmax_stays_exact_and_bounded_where_its_winner_changes(build_seeded):
    """In single precision, with logits 200 apart: as exp times the reciprocal of the sum such a step overflows."""
    z, baseline = torch.tensor([[200.0, 0.0, -30.0, -200.0]], requires_grad=True), torch.tensor([[-3.0, 180.0, -30.0, 5.0]])
    tape = Tape()
    with tape.running(nn.Identity(), 1, recording=True):
        tape.visit("softmax", baseline.log_softmax(1), baseline.softmax(1))
    with tape.running(nn.Identity(), 1, recording=False):
        visit = tape.visit("softmax", z.log_softmax(1), z.softmax(1))
    gradient = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    (multiplier,) = torch.autograd.grad(RescaleSoftmax.apply(z, visit, 1, False), z, gradient)
    change = (gradient * (z.softmax(1) - baseline.softmax(1))).sum()
    torch.testing.assert_close((multiplier * (z - baseline)).sum(), change, rtol=1e-5, atol=0)
    assert multiplier.abs().max() < 3


def test_a_masked_place_of_a_softmax_has_no_effect(build_seeded):
    mask = torch.tensor([True, False, True, True, False, True])

    def derive(z, z_b):
        kept = [j for j in range(6) if mask[j]]
        parts = (dict(zip(kept, softmax([values[j] for j in kept]), strict=True)) for values in (z, z_b))
        p, p_b = parts
        mean = [logarithmic_mean(p[j], p_b[j]) if mask[j] else 0.0 for j in range(6)]
        return [[mean[k] * ((j == k) - mean[j] / sum(mean)) for j in range(6)] for k in range(6)]

    assert_heatmaps(build_seeded(lambda: Plain(lambda z: z.masked_fill(~mask, -math.inf).softmax(1))), derive)


PRODUCTS = {
    "matmul": lambda a, b: (a @ b).flatten(1),
    "bmm": lambda a, b: torch.bmm(a, b).flatten(1),
    "einsum": lambda a, b: torch.einsum("nik,nkj->nij", a, b).flatten(1),
    "einsum of a list": lambda a, b: torch.einsum("nik,nkj->nij", [a, b]).flatten(1),
    "baddbmm": lambda a, b: torch.baddbmm(torch.ones(1, 1, 1).double(), a, b).flatten(1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_two_matrices_gives_each_the_mean_of_the_other(name, build_seeded):
    """Of z = (a_1, a_2, a_3, b_1, b_2, b_3): the matrix a b^T, of which row and column sums are taken."""

    def function(z):
        product = PRODUCTS[name](z[:, :3, None], z[:, None, 3:]).view(-1, 3, 3)
        return torch.cat([product.sum(2), product.sum(1)], 1)

    def derive(z, z_b):
        multiplier = [[0.0] * 6 for _ in range(6)]
        for i in range(3):
            for j in range(3):
                for k in (i, 3 + j):  # the row's sum and the column's
                    multiplier[k][i] += (z[3 + j] + z_b[3 + j]) / 2
                    multiplier[k][3 + j] += (z[i] + z_b[i]) / 2
        return multiplier

    assert_heatmaps(build_seeded(lambda: Plain(function)), derive)


MAXIMA = {
    "amax": lambda z: z.view(-1, 2, 3).amax(2),
    "amax that keeps": lambda z: z.view(-1, 2, 3).amax((2,), keepdim=True),
    "max": lambda z: z.view(-1, 2, 3).max(2).values,
    "min": lambda z: -(-z.view(-1, 2, 3)).min(dim=2)[0],
    "amin": lambda z: -(-z.view(-1, 2, 3)).amin(2),
    "adaptive pooling": lambda z: F.adaptive_max_pool2d(z.view(-1, 2, 1, 3), 1),
    "pooling of lines": lambda z: F.max_pool1d(z.view(-1, 2, 3), 3),
    "maximum": lambda z: torch.maximum(torch.maximum(z[:, ::3], z[:, 1::3]), z[:, 2::3]),
}


@pytest.mark.parametrize("name", MAXIMA)
def test_a_maximum_over_an_axis_changes_by_what_caused_it(name, build_seeded):
    def derive(z, z_b):
        multiplier = [[0.0] * 6 for _ in range(6)]
        for k in range(6):
            group = range(3 * (k % 2), 3 * (k % 2) + 3)
            first, first_b = (max(group, key=lambda j, values=values: values[j]) for values in (z, z_b))
            change = z[first] - z_b[first_b]
            cause = first if change >= 0 else first_b
            multiplier[k][cause] = change / (z[cause] - z_b[cause]) if z[cause] != z_b[cause] else 1.0
        return multiplier

    if name == "maximum":  # of two at a time: another cause where the first step hides one, but as exact
        images, baselines = 3 * draw(4, 1), 3 * draw(3, 2)
        found = attribute_images(build_seeded(lambda: Plain(lambda z: MAXIMA[name](z).repeat(1, 3))).double(), images, baselines)
        assert found.completeness_error.max() < 1e-9
    else:
        assert_heatmaps(build_seeded(lambda: Plain(lambda z: MAXIMA[name](z).flatten(1).repeat(1, 3))), derive)


SLOPES = torch.linspace(-0.5, 0.5, 6).double()
OTHER_NAMES = {
    "prelu": (lambda z: F.prelu(z, SLOPES), lambda z: F.relu(z) - SLOPES * F.relu(-z)),
    "glu": (lambda z: F.glu(z, 1).repeat(1, 2), lambda z: (z[:, :3] * torch.sigmoid(z[:, 3:])).repeat(1, 2)),
    "normalize": (lambda z: F.normalize(z, dim=1), lambda z: z / z.square().sum(1, keepdim=True).sqrt()),
    "norm": (lambda z: z * z.norm(dim=1, keepdim=True), lambda z: z * z.square().sum(1, keepdim=True).sqrt()),
    "vector norm of absolute values": (
        lambda z: z * torch.linalg.vector_norm(z, 1, 1, keepdim=True),
        lambda z: z * z.abs().sum(1, keepdim=True),
    ),
    "vector norm by its own names": (
        lambda z: z * torch.linalg.vector_norm(z, ord=2, dim=(1,), keepdim=True),
        lambda z: z * z.square().sum(1, keepdim=True).sqrt(),
    ),
    "linalg.norm of one axis": (lambda z: z * torch.linalg.norm(z, ord=2, dim=1, keepdim=True), lambda z: z * z.square().sum(1, keepdim=True).sqrt()),
    "rms_norm": (lambda z: F.rms_norm(z, (6,), eps=0.1), lambda z: z * (z.square().mean(1, keepdim=True) + 0.1).rsqrt()),
    "var": (lambda z: z * z.var(1, keepdim=True), lambda z: z * (z - z.mean(1, keepdim=True)).square().sum(1, keepdim=True) / 5),
    "std, biased": (
        lambda z: z * z.std(1, correction=0, keepdim=True),
        lambda z: z * (z - z.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt(),
    ),
    "addcmul": (lambda z: torch.addcmul(z, z, z, value=2), lambda z: z + 2 * (z * z)),
    "lerp": (lambda z: torch.lerp(z, z * z, 0.25), lambda z: 0.75 * z + 0.25 * (z * z)),
    "logsumexp": (lambda z: z * z.logsumexp(1, keepdim=True), lambda z: z * (z - z.log_softmax(1)).mean(1, keepdim=True)),
    "logsumexp of two axes": (
        lambda z: z * z.view(-1, 2, 3).logsumexp((1, -1), keepdim=True).flatten(1),
        lambda z: z * z.logsumexp(1)[:, None],
    ),
    "bilinear": (
        lambda z: F.bilinear(z[:, :3], z[:, 3:], torch.ones(6, 3, 3, dtype=z.dtype), SLOPES),
        lambda z: (z[:, :3].sum(1) * z[:, 3:].sum(1))[:, None] + SLOPES,
    ),
    "tensordot": (
        lambda z: torch.tensordot(z * z, torch.ones(6, 6, dtype=z.dtype), ([1], [0])),
        lambda z: (z * z).sum(1, keepdim=True).repeat(1, 6),
    ),
    "cosine similarity": (
        lambda z: F.cosine_similarity(z, torch.ones_like(z))[:, None] * z,
        lambda z: (z.sum(1) / z.square().sum(1).sqrt() / 6**0.5)[:, None] * z,
    ),
    "attention": (
        lambda z: F.scaled_dot_product_attention(z.view(-1, 3, 2), z.view(-1, 3, 2), z.view(-1, 3, 2)).flatten(1),
        lambda z: ((z.view(-1, 3, 2) @ z.view(-1, 3, 2).mT / 2**0.5).softmax(2) @ z.view(-1, 3, 2)).flatten(1),
    ),
    "local response norm": (
        lambda z: F.local_response_norm(z[:, :, None], 3, alpha=2.0).flatten(1),
        lambda z: z / (1 + 2 * F.avg_pool1d(F.pad(z * z, (1, 1))[:, None], 3, 1)[:, 0]) ** 0.75,
    ),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_function_that_is_made_of_others_is_explained_as_those(name, build_seeded):
    model, written = (build_seeded(lambda middle=middle: Plain(middle)).double() for middle in OTHER_NAMES[name])
    images, baselines = 3 * draw(4, 1), 3 * draw(3, 2)
    torch.testing.assert_close(model(images), written(images), atol=1e-9, rtol=1e-7)
    found, expected = (attribute_images(network, images, baselines) for network in (model, written))
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-9, rtol=1e-7)
    assert found.completeness_error.max() < 1e-9


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


def test_a_norm_of_matrices_is_not_taken_for_one_of_vectors(build_seeded):
    """Over two axes and with an order, linalg.norm is the largest singular value; without an order the root of all squares."""
    images = draw(3, 1)
    with pytest.raises(UnsupportedLayer, match="linalg_matrix_norm"):
        model = build_seeded(lambda: Plain(lambda z: z * torch.linalg.norm(z.unflatten(1, (2, 3)), 2, (1, 2))[:, None])).double()
        attribute_images(model, images[:2], images[2:])
    model = build_seeded(lambda: Plain(lambda z: z * torch.linalg.norm(z.unflatten(1, (2, 3)), dim=(1, 2))[:, None])).double()
    assert attribute_images(model, images[:2], images[2:]).completeness_error.max() < 1e-9
