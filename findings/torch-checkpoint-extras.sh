#!/usr/bin/env bash
# One would guess that weights_only=True looks at the weights, and that a
# checkpoint whose weights are plain tensors opens; or else that allowing the
# names which torch lists as unsafe in the file is enough.
# torch 2.13.0 (seen 2026-11-28) refuses the whole file because of what lies beside
# the weights: a training script's argparse.Namespace, or an accuracy kept as a
# NumPy scalar. For the scalar, get_unsafe_globals_in_checkpoint lists two names,
# but allowing both is not enough: the class of the scalar's dtype is needed too.
# Training scripts save such files every day, so that a classifier with sound
# weights counts as broken, or is opened with weights_only=False.
# Sources: the documentation of torch.load and torch.serialization.safe_globals;
# torch/_weights_only_unpickler.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import argparse
import pickle

import numpy as np
import torch

weights = torch.nn.Linear(4, 2).state_dict()
torch.save({"state_dict": weights, "accuracy": 0.91}, "plain.pt")
torch.save({"state_dict": weights, "args": argparse.Namespace(lr=0.1)}, "namespace.pt")
torch.save({"state_dict": weights, "accuracy": np.float64(0.91)}, "scalar.pt")


def opens(path, allowed=()):
    with torch.serialization.safe_globals(list(allowed)):
        try:
            torch.load(path, weights_only=True)
        except pickle.UnpicklingError:
            return False
    return True


listed = [np._core.multiarray.scalar, np.dtype]
names = torch.serialization.get_unsafe_globals_in_checkpoint("scalar.pt")
seen = {
    "a float beside the weights": opens("plain.pt"),
    "a Namespace": opens("namespace.pt"),
    "a Namespace, allowed": opens("namespace.pt", [argparse.Namespace]),
    "a NumPy scalar": opens("scalar.pt"),
    f"a NumPy scalar, {sorted(names)} allowed": opens("scalar.pt", listed),
    "a NumPy scalar, its dtype's class allowed too": opens("scalar.pt", [*listed, type(np.dtype("float64"))]),
}
for case, opened in seen.items():
    print(f"{case}: {'opens' if opened else 'refused'}")
assert sorted(names) == ["numpy._core.multiarray.scalar", "numpy.dtype"], "the behaviour has changed"
assert list(seen.values()) == [True, False, True, False, False, True], "the behaviour has changed"
PYTHON
