#!/usr/bin/env bash
# One would guess that Adam takes the same steps with fused=True as without, only faster.
# torch 2.14.1 (seen 2026-11-29) takes a weight on the CPU for one piece of memory. A
# weight with gaps, such as every other column of a table, is changed in the wrong
# places: half of its numbers stay, and numbers between them that belong to nobody, or
# to another weight, are changed. There is no error and no warning.
# torch.optim.Adam checks devices and types of fused weights, not how they lie.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

changed = {}
for fused in (False, True):
    memory = torch.arange(8.0).reshape(2, 4)
    before = memory.clone()
    weight = torch.nn.Parameter(memory[:, ::2])
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.1, fused=fused).step()
    changed[fused] = (memory != before).int().tolist()
    print(f"fused={fused!s:5} the weight is columns 0 and 2; changed is {changed[fused]}")
assert changed[False] == [[1, 0, 1, 0], [1, 0, 1, 0]], "the behaviour has changed"
assert changed[True] == [[1, 1, 1, 1], [0, 0, 0, 0]], "the behaviour has changed"
PYTHON
