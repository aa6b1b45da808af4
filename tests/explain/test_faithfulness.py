"""What benchmarks/faithfulness measures, on cases whose answers are known."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.faithfulness.apart import take_apart
from benchmarks.faithfulness.attnlrp import Gammas, apply_gamma, rewritten
from benchmarks.faithfulness.curves import correlate_ranks, count_hits, measure_areas

from rightreasons.networks.small_vit import small_vit


def test_areas_of_a_linear_model():
    effects = torch.tensor([[[1.0, 4.0], [2.0, 3.0]]])
    quarters = [0, 0.25, 0.5, 0.75, 1]

    def answer(images):
        return (images[:, 0] * effects).sum((1, 2))

    right = measure_areas(answer, torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2), effects, quarters)
    # Ten in all go in steps of 4, 3, 2, 1: 10, 6, 3, 1 and 0 are left, and 0, 4, 7, 9 and 10 are back.
    assert right.deletion == pytest.approx(0.25 * (5 + 6 + 3 + 1))
    assert right.insertion == pytest.approx(0.25 * (4 + 7 + 9 + 5))
    assert (right.whole, right.nothing) == (10, 0)
    wrong = measure_areas(answer, torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2), -effects, quarters)
    assert (wrong.deletion, wrong.insertion) == pytest.approx((right.insertion, right.deletion))


def test_hits_and_ranks():
    masks = torch.tensor([[[True, False], [False, False]]]).expand(3, 2, 2)
    maps = torch.tensor([[[2.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert count_hits(maps, masks) == pytest.approx(1 / 3)
    assert correlate_ranks(maps[:1], maps[:1].exp()) == pytest.approx(1)
    assert correlate_ranks(maps[:1], -maps[:1]) == pytest.approx(-1)
    assert correlate_ranks(maps[2:], maps[:1]) == 0


def test_attnlrp_gives_the_networks_own_logits():
    torch.manual_seed(0)
    network, images = small_vit(10).eval(), torch.randn(2, 3, 8, 8)
    for gammas in (Gammas(), Gammas(patches=0.25, linear=0.05)):
        torch.testing.assert_close(rewritten(network, images, gammas), network(images), atol=1e-5, rtol=1e-4)


def test_the_gamma_rule_with_loops():
    torch.manual_seed(0)
    weight, bias, gamma = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64), 0.25
    inputs = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    arriving = torch.randn(4, dtype=torch.float64)
    outputs = apply_gamma(F.linear, inputs, weight, bias, gamma)
    (gradient,) = torch.autograd.grad(outputs, inputs, arriving[None])
    expected = torch.zeros(5, dtype=torch.float64)
    for output in range(4):
        sign = outputs[0, output].sign().item()

        def enlarge(part: float, sign: float = sign) -> float:
            return part * (1 + gamma) if part * sign > 0 else part

        parts = [enlarge((inputs[0, place] * weight[output, place]).item()) for place in range(5)]
        relevance = (outputs[0, output] * arriving[output]).item()
        for place in range(5):
            expected[place] += parts[place] / (sum(parts) + enlarge(bias[output].item())) * relevance
    torch.testing.assert_close((inputs * gradient)[0], expected)


def test_a_network_taken_apart_gives_the_same_logits():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 48, 48)
    network = timm.create_model("test_efficientnet", num_classes=3)
    with torch.no_grad():
        network.train()(images)  # gives the batch norms statistics
    apart = take_apart(network)
    torch.testing.assert_close(apart(images), network.eval()(images), atol=1e-5, rtol=1e-4)
    assert not [module for module in apart.modules() if isinstance(module, nn.BatchNorm2d)]
