"""Convolutions and batch norms that keep no activation, against plain autograd; rules by parts; and what is kept while a model writes in place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.explain import rules
from rightreasons.explain.attribute import attribute_images
from rightreasons.explain.rescale import record, replay
from rightreasons.explain.tape import Tape


class Written(nn.Module):
    """Layers and a function of them."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def norm(channels: int, kind=nn.BatchNorm2d) -> nn.Module:
    found = kind(channels)
    for tensor in (found.weight, found.bias, found.running_mean, found.running_var):
        tensor.data.uniform_(0.5, 2)
    return found


def added(self, x):
    """The batch norm is not of the convolution alone."""
    y = self.conv(x)
    y += self.other(x)
    return self.norm(y).flatten(1)


def shared(self, x):
    """The convolution's output is used before its batch norm too."""
    y = self.conv(x)
    return torch.cat([self.norm(y), y], 1).flatten(1)


def swapped(self, x):
    """Two convolutions, then the batch norm of the first."""
    first, second = self.conv(x), self.other(x)
    return (self.norm(first) + second).flatten(1)


def by_function(call):
    """A convolution of ``call``, with weights of six channels, and the norm after it."""
    return lambda: Written(lambda self, x: self.norm(call(self.conv, x)).flatten(1), conv=nn.Conv2d(4, 6, 3), norm=norm(6))


def as_tokens(self, x):
    """The gradient of the norm comes back with the channels last, as in EfficientFormer; what torch does with that is wrong for an image alone."""
    return self.norm(x).flatten(2).transpose(1, 2).flatten(1)


AFFINE = {
    "arguments by name": by_function(lambda conv, x: F.conv2d(x, conv.weight, stride=2, dilation=2)),
    "a bias, then a name": by_function(lambda conv, x: F.conv2d(x, conv.weight, conv.bias, padding=1)),
    "no bias, groups by name": by_function(lambda conv, x: F.conv2d(x, conv.weight[:, :2], None, groups=2)),
    "all by name": by_function(lambda conv, x: F.conv2d(input=x, weight=conv.weight, padding=2)),
    "torch.batch_norm, whose arguments have another order": lambda: Written(
        lambda self, x: torch.batch_norm(
            x, self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var, False, 0.1, 1e-5, False
        ).flatten(1),
        norm=norm(4),
    ),
    "instance norm by running statistics": lambda: nn.Sequential(
        norm(4, lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)), nn.Flatten()
    ),
    "a norm before tokens": lambda: Written(as_tokens, norm=norm(4)),
    "convolution, norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), norm(6), nn.Flatten()),
    "weights fewer than values": lambda: nn.Sequential(nn.Conv2d(4, 6, 1), norm(6), nn.Flatten()),
    "weights more than values": lambda: nn.Sequential(nn.Conv2d(4, 30, 9), norm(30), nn.Flatten()),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, dilation=2, groups=4), norm(8), nn.Flatten()),
    "padding by name": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), norm(6), nn.Flatten()),
    "norm first": lambda: nn.Sequential(norm(4), nn.Conv2d(4, 6, 3), nn.Flatten()),
    "one axis": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 3, stride=2), norm(6, nn.BatchNorm1d), nn.Flatten()),
    "channels last": lambda: Written(
        lambda self, x: self.norm(self.conv(x.to(memory_format=torch.channels_last))).flatten(1), conv=nn.Conv2d(4, 6, 3), norm=norm(6)
    ),
    "added in place": lambda: Written(added, conv=nn.Conv2d(4, 6, 3), other=nn.Conv2d(4, 6, 3), norm=norm(6)),
    "used twice": lambda: Written(shared, conv=nn.Conv2d(4, 6, 3), norm=norm(6)),
    "another between": lambda: Written(swapped, conv=nn.Conv2d(4, 6, 3), other=nn.Conv2d(4, 6, 3), norm=norm(6)),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", AFFINE)
def test_gradients_of_affine_networks_are_those_of_autograd(kind, count, build_seeded):
    model = build_seeded(lambda: AFFINE[kind]().eval().requires_grad_(False)).double()
    images = torch.randn(count, 4, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.randn(model(images).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain, ours = images.clone().requires_grad_(), images.clone().requires_grad_()
    tape = Tape()
    record(model, images[:1], tape)
    logits = replay(model, ours, tape)
    torch.testing.assert_close(logits, model(plain))
    # Two images at least, for torch's own backward pass is right then.
    pair = torch.cat([plain, plain.detach()]), torch.cat([weights, weights])
    (expected,) = torch.autograd.grad((model(pair[0]) * pair[1]).sum(), plain)
    torch.testing.assert_close(torch.autograd.grad((logits * weights).sum(), ours)[0], expected)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.Softmax(-1), nn.GroupNorm(2, 6)])
def test_parts_change_nothing(activation, build_seeded, monkeypatch):
    model = build_seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), activation, nn.Flatten(), nn.Linear(6 * 49, 3)))
    images, baselines = torch.rand(3, 3, 9, 9), torch.rand(2, 3, 9, 9)
    baselines[:, :, :4] = images[:1, :, :4]  # no difference there, so that the limit is taken
    whole = attribute_images(model, images, baselines)
    for block in (1, 100, 700):
        monkeypatch.setattr(rules, "BLOCK", block)
        torch.testing.assert_close(attribute_images(model, images, baselines).heatmaps, whole.heatmaps)


def overwritten(self, x):
    y = self.conv(x)
    z = F.gelu(y)
    kept = z.relu()
    y.add_(1)  # the input of a curve, then its value and the input of a ReLU, then a part of one
    z *= 2
    out = (kept * z).sigmoid()
    kept[:, :2] = 0
    return torch.cat([out, y, kept], 1).flatten(1)


def test_what_is_kept_survives_a_model_that_writes_over_it(build_seeded):
    def without(self, x):
        y = self.conv(x)
        z = F.gelu(y)
        kept = z.relu()
        return torch.cat([(kept * (2 * z)).sigmoid(), y + 1, kept * torch.tensor([0, 0, 1, 1, 1, 1])[:, None, None]], 1).flatten(1)

    layer = build_seeded(lambda: nn.Conv2d(3, 6, 3)).double()
    images, baselines = torch.rand(3, 3, 9, 9).double(), torch.rand(2, 3, 9, 9).double()
    found, expected = (attribute_images(Written(function, conv=layer), images, baselines).heatmaps for function in (overwritten, without))
    torch.testing.assert_close(found, expected)
