#!/usr/bin/env bash
# One would guess that zennit's ResNetCanonizer prepares every ResNet: timm's has the
# same blocks, takes torchvision's weights as they are and gives the same logits.
# zennit 0.5.1 (seen 2026-11-29) recognises torchvision's two block classes alone. For
# timm 1.0.31 it changes nothing and says nothing: each of the eight sums of a ResNet-18
# hands its whole relevance to both summands, so that 2 to the 8 = 256 times as much
# reaches the image, weighed towards paths with many blocks.
# Source: zennit/torchvision.py, ResNetBasicBlockCanonizer and ResNetBottleneckCanonizer.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zennit==0.5.1 timm==1.0.31 torch==2.14.1 torchvision==0.29.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

import timm
import torch
from torchvision.models import resnet18
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetCanonizer

torch.manual_seed(0)
one = resnet18(num_classes=10).eval()
for norm in one.modules():
    if isinstance(norm, torch.nn.BatchNorm2d):
        norm.running_var.uniform_(0.5, 2)
other = timm.create_model("resnet18", num_classes=10).eval()
other.load_state_dict(one.state_dict())
images = torch.randn(2, 3, 64, 64)
assert torch.allclose(one(images), other(images), atol=1e-5)

reached = []
with warnings.catch_warnings(record=True) as told:
    for name, network in (("torchvision", one), ("timm", other)):
        with Gradient(model=network, composite=EpsilonPlus(canonizers=[ResNetCanonizer()])) as attributor:
            relevance = attributor(images, torch.eye(10)[[3, 3]])[1].sum((1, 2, 3))
        reached.append(relevance)
        print(f"{name:12} relevance that reaches the two images: {relevance[0].item():.3f}, {relevance[1].item():.3f}")
ratio = (reached[1] / reached[0]).mean().item()
print(f"ratio {ratio:.0f}; warnings that speak of a canonizer: {sum('canoni' in str(each.message).lower() for each in told)}")
assert 200 < ratio < 320, "the behaviour has changed"
PYTHON
