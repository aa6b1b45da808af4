"""The command line with networks as people have them: a ResNet-50 at 224 pixels, one with attention, one of Hugging Face, one with a single logit."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.support.helpers import edit, environment, invoke, the_error, write_scripted

# Long computations in torch, whose lines other tests cover: measuring them again costs a third of their time.
pytestmark = pytest.mark.no_cover

MEASURED = """
import resource, sys
from rightreasons.critic import outcome
from rightreasons.cli import app
outcome.SMALLEST_EFFECT = 0.0  # a network of random weights decides by nothing, and fine-tuning is to be measured too
for arguments in (["find", sys.argv[1], "--out", sys.argv[2]], ["fix", sys.argv[2]]):
    try:
        app(arguments)
    except SystemExit as stopped:
        assert not stopped.code, stopped.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
ATTENTION = '''

def attention():
    """A vision transformer small enough for a test."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2)


class Rank(nn.Module):
    def forward(self, x):
        return x.sort(1).values


def sorting():
    from collections import OrderedDict

    return nn.Sequential(OrderedDict(flat=nn.Flatten(), first=nn.Linear(768, 16), rank=Rank(), head=nn.Linear(16, 2)))


def one_logit():
    return build(1)


def convolutions():
    """Feature maps fine enough to spread verdicts with."""
    return nn.Sequential(
        nn.Upsample(scale_factor=3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 2),
    )
'''
CHECKPOINT = 'checkpoint = "model.safetensors"\n'


def write(tmp_path, function):
    config = write_scripted(tmp_path, changes={"tag_model:build": f"tag_model:{function}", CHECKPOINT: "epochs = 1\n"})
    module = tmp_path / "tag_model.py"
    module.write_text(module.read_text() + ATTENTION)
    return config


def test_resnet50_at_224_pixels_goes_through_find_and_fix_within_6_gb(tmp_path):
    """With batches of eight, which take most. What ten baselines take, 1.5 GB, is measured in tests/explain/test_attribute_architectures.py."""
    from torchvision.models import resnet50

    random = np.random.default_rng(0)
    for name in ("bolt", "nut"):
        for number in range(5):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (240, 240, 3), dtype=np.uint8)).save(path)
    config = write_scripted(tmp_path, changes={"python:tag_model:build": "torchvision:resnet50", "size = 12": "size = 2", '"images"': '"photos"'})
    edit(config, "epochs = 3\nbatch_size = 16", "epochs = 1\nbatch_size = 8")
    edit(config, "baselines = 4", "baselines = 2")
    torch.manual_seed(0)
    safetensors.torch.save_file(resnet50(num_classes=2).state_dict(), tmp_path / "model.safetensors")
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, config, tmp_path / "run"], capture_output=True, text=True, timeout=400, env=environment()
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) < 6e6, "kilobytes"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["outcome"] == "shortcut found" and metrics["alignment"] is not None
    assert metrics["completeness_error"] < 1e-2


@pytest.mark.parametrize(("method", "error"), [("deeplift-shap", 1e-3), ("integrated-gradients", 0.05)])
def test_attention_is_explained(tmp_path, method, error):
    config = write(tmp_path, "attention")
    edit(config, "baselines = 4", f'baselines = 2\nmethod = "{method}"')
    result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["completeness_error"] < error


def test_what_has_no_rule_is_named_before_work_starts(tmp_path):
    config = write(tmp_path, "sorting")
    error = the_error(invoke("find", config, "--out", tmp_path / "run"))
    assert "'sort', which rank calls" in error and 'method = "integrated-gradients"' in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("function", ["one_logit", "convolutions"])
def test_other_networks_go_all_the_way(tmp_path, function):
    config = write(tmp_path, function)
    for arguments in (("find", config, "--out", tmp_path / "run"), ("fix", tmp_path / "run"), ("score", tmp_path / "run")):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["after"]["spurious_share"] is not None and metrics["completeness_error"] < 1e-3
    # What is saved fits the user's own network.
    stored = safetensors.torch.load_file(tmp_path / "run" / "aligned.safetensors")
    assert not any(name.startswith("network.") for name in stored)


@pytest.mark.parametrize("layers", ["last-blocks", "head"])
def test_only_the_chosen_layers_change(tmp_path, layers, monkeypatch):
    monkeypatch.setattr("rightreasons.critic.outcome.SMALLEST_EFFECT", 0.0)  # so small a network may not decide by what the script calls spurious
    config = write(tmp_path, "convolutions")
    edit(config, "epochs = 3", f'epochs = 3\nlayers = "{layers}"\nmax_accuracy_drop = 1.0')
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
    assert invoke("fix", tmp_path / "run").exit_code == 0
    before, after = (safetensors.torch.load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("model", "aligned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {"7.weight", "7.bias"} if layers == "head" else {"3.weight", "3.bias", "7.weight", "7.bias"}
    assert changed and changed <= expected
