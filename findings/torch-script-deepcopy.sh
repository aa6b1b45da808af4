#!/usr/bin/env bash
# One would guess that a deep copy of a network can be trained like the network.
# With torch 2.13.0 (seen 2026-11-28) the copy of a traced or scripted module has
# parameters that are not leaves of the autograd graph, and an optimizer refuses
# them; the original's parameters, and a copy of a plain module's, are leaves.
# A classifier delivered as TorchScript cannot be fine-tuned on a copy that keeps
# the original for comparison; saving it and loading it again gives leaves.
# Sources: the documentation of torch.Tensor.is_leaf and of torch.optim;
# __deepcopy__ in torch/jit/_script.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import copy
import io
import warnings

import torch

warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is deprecated


def leaves(network):
    return all(parameter.is_leaf for parameter in network.parameters())


plain = torch.nn.Linear(4, 2)
modules = {"plain": plain, "traced": torch.jit.trace(plain, torch.zeros(1, 4)), "scripted": torch.jit.script(plain)}
for kind, network in modules.items():
    print(f"{kind}: leaves {leaves(network)}, those of a deep copy {leaves(copy.deepcopy(network))}")
    assert leaves(network)
    assert leaves(copy.deepcopy(network)) == (kind == "plain"), "the behaviour has changed"

file = io.BytesIO()
torch.jit.save(modules["traced"], file)
file.seek(0)
assert leaves(torch.jit.load(file))
try:
    torch.optim.SGD(copy.deepcopy(modules["traced"]).parameters(), lr=0.1)
except ValueError as error:
    print("optimizer on the copy:", error)
else:
    raise SystemExit("the behaviour has changed: the optimizer takes the copy")
PYTHON
