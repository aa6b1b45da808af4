#!/usr/bin/env bash
# One would guess that a mixture fitted to points with whole-numbered weights is that of
# the same points repeated so often, since EM's sums are the same.
# pomegranate 1.1.2 (seen 2026-11-29) weighs the points in each step, but decides when
# to stop by the sum of log densities without the weights. That sum falls while the
# weighted one rises, so that fit() ends after two steps of a fit that takes dozens,
# without a warning. It works where all weights are about equal; a heatmap's are not.
# Source: GeneralMixtureModel.summarize returns torch.sum(logp), and fit compares it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pomegranate==1.1.2 torch==2.13.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel

# The pixels of a heatmap with three bright blobs, each weighted by its brightness.
side = 16
y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
pixels = torch.stack([x.flatten(), y.flatten()], 1) / side
blobs = [((4, 4), 2.0), ((11, 6), 2.5), ((6, 12), 1.5)]
weights = sum(20 * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * width**2)) for (a, b), width in blobs).round().int().flatten()


def fit(points, sample_weight=None):
    parts = [Normal(torch.tensor(start), 0.05 * torch.eye(2)) for start in ((0.3, 0.4), (0.5, 0.5), (0.6, 0.6))]
    model, steps = GeneralMixtureModel(parts, tol=1e-3, max_iter=500), []
    summarize = model.summarize
    model.summarize = lambda *args, **kwargs: steps.append(1) or summarize(*args, **kwargs)
    model.fit(points, sample_weight=sample_weight)
    with torch.no_grad():
        return len(steps), model.log_probability(repeated).mean().item()


repeated = pixels.repeat_interleave(weights, 0)
(few, worse), (many, better) = fit(pixels, weights.float()), fit(repeated)
print(f"weights:       {few:3} steps, mean log density of the weighted pixels {worse:.3f}")
print(f"rows repeated: {many:3} steps, mean log density of the weighted pixels {better:.3f}")
assert few < 5 < 20 < many and better - worse > 0.1, "the behaviour has changed"
PYTHON
