#!/usr/bin/env bash
# One would guess that a network exported for others holds graph and weights.
# torch 2.13.0 (seen 2026-11-28): torch.export.save and torch.onnx.export (dynamo=True,
# the default) keep for each operation the Python stack that made it, with the full
# path and the source line of the author's module. A model handed to another hospital
# tells the names of folders and lines of code; ONNX Runtime and torch.export.load
# carry them along. The older exporter (dynamo=False) writes none.
# For a .pt2, popping "stack_trace" from each node's meta before saving leaves them
# out; for ONNX, clearing metadata_props of the nodes does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.0
mkdir "$folder/ward-7-study"
cat > "$folder/ward-7-study/network.py" <<'PYTHON'
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x).relu()
PYTHON
cd "$folder"
PYTHONPATH=ward-7-study venv/bin/python - <<'PYTHON'
import warnings
import zipfile

import onnx
import torch
from network import Network

warnings.simplefilter("ignore")
network, example = Network().eval(), (torch.zeros(1, 3),)


def in_zip(path):
    with zipfile.ZipFile(path) as file:
        return sum(file.read(name).count(b"ward-7-study") for name in file.namelist())


def in_file(path):
    with open(path, "rb") as file:
        return file.read().count(b"ward-7-study")


program = torch.export.export(network, example)
torch.export.save(program, "as-it-is.pt2")
for node in program.graph.nodes:
    node.meta.pop("stack_trace", None)
torch.export.save(program, "cleared.pt2")
torch.onnx.export(network, example, "as-it-is.onnx", dynamo=True, verbose=False)
torch.onnx.export(network, example, "older.onnx", dynamo=False)
keys = {entry.key for node in onnx.load("as-it-is.onnx").graph.node for entry in node.metadata_props}
seen = [in_zip("as-it-is.pt2"), in_zip("cleared.pt2"), in_file("as-it-is.onnx"), in_file("older.onnx")]
print("times that the folder is named: .pt2 {}, .pt2 without stack traces {}, .onnx {}, .onnx of the older exporter {}".format(*seen))
print("kept for each operation of the ONNX file:", sorted(keys))
assert seen[0] > 0 and seen[1] == 0 and seen[2] > 0 and seen[3] == 0, "the behaviour has changed"
assert "pkg.torch.onnx.stack_trace" in keys, "the behaviour has changed"
PYTHON
