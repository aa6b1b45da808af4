"""Penalties on gradients: against loops over outputs and pixels, against finite differences, and against torch's own gradient of a gradient."""

import math

import pytest
import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.repair.penalties import jacobian_penalty, log_prob_sum_penalty


@pytest.fixture
def smooth_net(build_seeded):
    return build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double())


@pytest.fixture
def masked_images(generator):
    images = torch.randn(4, 2, 2, 2, generator=generator, dtype=torch.float64)
    masks = torch.rand(4, 2, 2, generator=generator) > 0.4
    masks[1] = False
    masks[3] = True
    return images, masks


def jacobian_of(function, image):
    """(output, channel, height, width), an output at a time."""
    rows = []
    for output in range(len(function(image))):
        leaf = image.clone().requires_grad_()
        rows.append(torch.autograd.grad(function(leaf)[output], leaf)[0])
    return torch.stack(rows)


def masked_square_by_hand(gradient, mask) -> float:
    total = 0.0
    for channel in range(gradient.shape[0]):
        for y in range(2):
            for x in range(2):
                total += (int(mask[y, x]) * gradient[channel, y, x].item()) ** 2
    return total


def test_the_published_penalty_by_hand(smooth_net, masked_images, generator):
    """Eq. 8: the squared gradient of the sum of log-probabilities inside the mask, mean over images that have one."""
    images, masks = masked_images
    each = []
    for image, mask in zip(images, masks, strict=True):
        (gradient,) = jacobian_of(lambda x: smooth_net(x[None])[0].softmax(0).log().sum()[None], image)
        if mask.any():
            each.append(masked_square_by_hand(gradient, mask))
    assert len(each) == 3
    assert log_prob_sum_penalty(smooth_net, images, masks, generator).item() == pytest.approx(sum(each) / 3, rel=1e-9)


def test_the_jacobian_penalty_is_unbiased(smooth_net, masked_images, generator):
    """Eq. 11: its mean over projections is the squared Frobenius norm of the Jacobian inside the mask."""
    images, masks = masked_images
    expected = sum(masked_square_by_hand(row, masks[0]) for row in jacobian_of(lambda x: smooth_net(x[None])[0], images[0]))
    many = 40_000
    estimate = jacobian_penalty(smooth_net, images[:1].expand(many, -1, -1, -1), masks[:1].expand(many, -1, -1), generator)
    assert estimate.item() == pytest.approx(expected, rel=5 * math.sqrt(2 / many))


@pytest.mark.parametrize("penalty", [log_prob_sum_penalty, jacobian_penalty])
def test_images_without_a_mask_do_not_count(smooth_net, masked_images, penalty):
    images, masks = masked_images
    alone, among = (penalty(smooth_net, images[rows], masks[rows], seeded(0)) for rows in ([0, 3], [0, 1, 3]))
    assert alone.item() == pytest.approx(among.item())
    assert penalty(smooth_net, images[[1]], masks[[1]], seeded(0)).item() == 0


@pytest.mark.parametrize("penalty", [log_prob_sum_penalty, jacobian_penalty])
def test_a_gradient_penalty_can_be_minimised(smooth_net, masked_images, penalty):
    """Its gradient by a weight of the first layer, against a finite difference."""
    images, masks = masked_images
    penalty(smooth_net, images, masks, seeded(0)).backward()
    weight, step = smooth_net[1].weight, 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 3] += sign * step
        values.append(penalty(smooth_net, images, masks, seeded(0)).item())
        with torch.no_grad():
            weight[2, 3] -= sign * step
    assert weight.grad[2, 3].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


class Grouped(nn.Module):
    """Convolutions in groups: depthwise, with strides that leave a rest, dilated, without bias, and padded by word."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.dilated = nn.Conv2d(6, 8, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2, bias=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.same(self.dilated(self.depthwise(self.first(images).tanh()).tanh()).tanh()).tanh()
        return self.head(hidden.mean((2, 3)))


@pytest.mark.parametrize("side", [9, 10])
def test_convolutions_in_groups_are_differentiated_twice(generator, side):
    """The value and every weight's gradient are those of torch's own double backward."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Grouped().double()
    images = torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)
    masks = torch.rand(3, side, side, generator=generator) > 0.5
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf).log_softmax(1).sum(), leaf, create_graph=True)
    expected = (gradient * masks[:, None]).square().sum((1, 2, 3)).mean()
    by_torch = torch.autograd.grad(expected, list(network.parameters())[:-1])
    ours = log_prob_sum_penalty(network, images, masks, generator)
    by_us = torch.autograd.grad(ours, list(network.parameters())[:-1])
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(by_us, by_torch, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in by_us)


def test_attention_is_differentiated_twice(generator):
    """Torch's fused attention is not: the penalty and its gradient are those of the same attention written out."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    images, masks = torch.rand(2, 3, 8, 8, generator=generator), torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True
    found = []
    for fused in (True, False):
        network.blocks[0].attn.fused_attn = fused
        value = jacobian_penalty(network, images, masks, seeded(0, "projection"))
        found.append((value, torch.autograd.grad(value, network.blocks[0].attn.qkv.weight)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0] > 0
