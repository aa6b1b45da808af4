#!/usr/bin/env bash
# One would guess that the gradient of a batch norm by running statistics, which is
# a scale for each channel, does not depend on how memory is laid out, nor on how
# many images there are.
# torch 2.13.0 (seen 2026-11-28) on a CPU gives a wrong gradient for an image alone
# whose features become tokens: x.flatten(2).transpose(1, 2), as hybrids of
# convolutions and attention have it (EfficientFormer). What comes back to the norm
# is laid out with the channels last, with an arbitrary stride for the batch of one,
# and the scale of a channel reaches the numbers of others. Two images are right, and
# so is one image with the gradient made contiguous; no error, no warning. The sum
# of gradient times change then misses the change of the output, so that saliency
# maps of single images, as they are mostly made, are wrong in part.
# Sources: the documentation of torch.nn.BatchNorm2d; aten/src/ATen/native/
# Normalization.cpp (batch_norm_cpu_backward).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(0)
norm = nn.BatchNorm2d(4).eval()
norm.running_var.uniform_(0.5, 2)
scale = (norm.running_var + norm.eps).rsqrt()
weights = torch.randn(49, 4)


def off(images, contiguous=False):
    """How far the gradient of an affine function is from what it is on paper, as a share of the largest entry."""
    images = images.clone().requires_grad_()
    features = norm(images)
    if contiguous:
        features.register_hook(lambda gradient: gradient.contiguous())
    tokens = features.flatten(2).transpose(1, 2)  # (image, token, channel)
    (tokens.flatten(1) * weights.flatten()).sum().backward()
    right = (weights * scale).T.reshape(1, 4, 7, 7).expand_as(images)
    return float((images.grad - right).abs().max() / right.abs().max())


image = torch.randn(1, 4, 7, 7)
seen = {
    "one image": off(image),
    "the same image twice": off(torch.cat([image, image])),
    "one image, gradient made contiguous": off(image, contiguous=True),
}
for case, share in seen.items():
    print(f"{case}: the gradient is off by {share:.1e} of its largest entry")
assert [share > 0.1 for share in seen.values()] == [True, False, False], "the behaviour has changed"
PYTHON
