#!/usr/bin/env bash
# One would guess that a network turned into double precision computes in it.
# transformers 5.24.0 (seen 2026-11-28) takes the softmax of its step-by-step attention
# ("eager") in single precision, whatever the model's: the logits are float64 and right
# to about 1e-9. With "sdpa" the same weights compute in float64 throughout.
# Whoever checks an explanation or a gradient in double precision to 1e-12 sees errors
# that no code of his makes.
# Source: eager_attention_forward in transformers/models/vit/modeling_vit.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from transformers import ViTConfig, ViTForImageClassification

settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
logits = {}
for attention in ("eager", "sdpa"):
    torch.manual_seed(0)
    network = ViTForImageClassification._from_config(ViTConfig(**settings), attn_implementation=attention).double().eval()
    with torch.no_grad():
        logits[attention] = network(images).logits
difference = (logits["eager"] - logits["sdpa"]).abs().max().item()
print(f"logits are {logits['eager'].dtype}; eager and sdpa differ by {difference:.1e}")
assert logits["eager"].dtype == torch.float64 and 1e-11 < difference < 1e-6, "the behaviour has changed"
PYTHON
