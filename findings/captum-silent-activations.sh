#!/usr/bin/env bash
# One would guess that Captum's DeepLift refuses an activation that it has no rule for,
# or warns of it: its attributions are promised to add up to the difference of outputs.
# captum 0.9.0 (seen 2026-11-28) has rules for ReLU, LeakyReLU, ELU, Sigmoid, Tanh,
# Softplus, softmax and max pooling. Every other activation gets its plain gradient,
# with the same warnings and no error: ReLU6 (MobileNet-V2, EfficientNet-Lite), SiLU
# (EfficientNet), GELU (ConvNeXt, transformers), Hardswish (MobileNet-V3), PReLU.
# The sum is then off, here by 1 to 50 % of the difference, which only
# return_convergence_delta=True tells.
# Source: SUPPORTED_NON_LINEAR in captum/attr/_core/deep_lift.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 captum==0.9.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

import torch
from captum.attr import DeepLift
from torch import nn

warnings.simplefilter("ignore")
share = {}
for activation in (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.PReLU):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1)).double().eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights *= 3
    images, baselines = torch.randn(4, 8, dtype=torch.float64), torch.zeros(4, 8, dtype=torch.float64)
    _, missing = DeepLift(network).attribute(images, baselines, return_convergence_delta=True)
    share[activation.__name__] = (missing.abs().mean() / (network(images) - network(baselines)).abs().mean()).item()
    print(f"{activation.__name__:10} {share[activation.__name__]:.1e} of the difference is missing")
ruled = ["ReLU", "LeakyReLU", "ELU", "Softplus"]
assert all(share[name] < 1e-9 for name in ruled), "the behaviour has changed"
assert all(missing > 0.01 for name, missing in share.items() if name not in ruled), "the behaviour has changed"
PYTHON
