#!/usr/bin/env bash
# One would guess that torch.load looks into a file to see what it is, or that it
# never reads safetensors.
# torch 2.13.0 (seen 2026-11-28) reads safetensors if, and only if, it is given a path
# that ends in .safetensors. The same content under another suffix, or as an open
# file, is refused, and the message is about weights_only and pickles, not about the
# format.
# Classifiers' weights are renamed when they are passed on, so a tool has to tell the
# format by the content.
# Source: the start of load in torch/serialization.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import pickle
import shutil

import torch
from safetensors.torch import save_file

save_file(torch.nn.Linear(4, 2).state_dict(), "weights.safetensors")
shutil.copy("weights.safetensors", "weights.pt")


def keys_or_error(source):
    try:
        return sorted(torch.load(source))
    except pickle.UnpicklingError as error:
        return str(error).split(".")[0]


with open("weights.safetensors", "rb") as file:
    seen = [keys_or_error("weights.safetensors"), keys_or_error("weights.pt"), keys_or_error(file)]
for source, outcome in zip(("path with .safetensors", "same content as .pt", "same file, opened"), seen):
    print(f"{source}: {outcome}")
assert seen == [["bias", "weight"], "Weights only load failed", "Weights only load failed"], "the behaviour has changed"
PYTHON
