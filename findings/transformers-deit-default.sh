#!/usr/bin/env bash
# One would guess that the default configuration of every image classifier builds.
# transformers 5.24.0 (seen 2026-11-28): AutoModelForImageClassification.from_config of
# a DeiTConfig raises TypeError ('NoneType' object is not iterable), while ViT and BEiT
# build. With `architectures` set, as in every file that was saved, it builds, so the
# fault is met only by whoever makes a network from settings.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$folder"
venv/bin/python - <<'PYTHON'
from transformers import AutoModelForImageClassification, BeitConfig, DeiTConfig, ViTConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}


def built(config):
    try:
        return type(AutoModelForImageClassification.from_config(config)).__name__
    except TypeError as error:
        return f"TypeError: {error}"


seen = {
    "ViT": built(ViTConfig(**SMALL)),
    "BEiT": built(BeitConfig(**SMALL)),
    "DeiT": built(DeiTConfig(**SMALL)),
    "DeiT with architectures": built(DeiTConfig(**SMALL, architectures=["DeiTForImageClassification"])),
}
for name, outcome in seen.items():
    print(f"{name}: {outcome}")
assert seen["ViT"] == "ViTForImageClassification" and seen["BEiT"] == "BeitForImageClassification", "the behaviour has changed"
assert seen["DeiT"] == "TypeError: 'NoneType' object is not iterable", "the behaviour has changed"
assert seen["DeiT with architectures"] == "DeiTForImageClassification", "the behaviour has changed"
PYTHON
