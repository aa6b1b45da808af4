#!/usr/bin/env bash
# One would guess that an image without a marked pixel counts for nothing in Quantus's
# pointing game: its code says that it returns NaN there, as RelevanceRankAccuracy does.
# Quantus 0.6.0 (seen 2026-11-29) writes the NaN into an array of booleans, where it becomes
# True: such an image is a hit. A mean over images of which some have no mask is too
# good, the more so the fewer have one. A heatmap that is constant is a hit too, since each
# of its pixels is a maximum. The version that weighs by the mask's area (weighted=True)
# raises a TypeError where there is a hit.
# Source: evaluate_batch in quantus/metrics/localisation/pointing_game.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check quantus==0.6.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

import numpy as np
import quantus

warnings.simplefilter("ignore")
# Four images: the heatmap's peak in the mask, beside it, no mask at all, and no peak at all.
images, heatmaps, masks = np.zeros((4, 1, 8, 8)), np.zeros((4, 1, 8, 8)), np.zeros((4, 1, 8, 8))
heatmaps[:3, 0, 2, 2] = 1
masks[0, 0, :4, :4] = masks[1, 0, 4:, 4:] = masks[3, 0, 4:, 4:] = 1


def scores(metric):
    found = metric(model=None, x_batch=images, y_batch=np.zeros(4, int), a_batch=heatmaps, s_batch=masks)
    return np.array(found, dtype=float)


hits = scores(quantus.PointingGame(disable_warnings=True))
mass = scores(quantus.RelevanceRankAccuracy(disable_warnings=True))
for name, hit, rank in zip(("peak in the mask", "peak beside it", "no mask", "constant heatmap"), hits, mass):
    print(f"{name:17} pointing game {hit}, rank accuracy {rank}")
print("mean of the pointing game:", hits.mean(), "where one image of two that can be counted is a hit")
assert hits[0] == 1 and hits[1] == 0 and np.isnan(mass[2])
assert hits[2] == 1 and hits[3] == 1, "the behaviour has changed"
try:
    print("weighted:", scores(quantus.PointingGame(weighted=True, disable_warnings=True)))
except TypeError as error:
    print("weighted: TypeError:", error)
else:
    raise AssertionError("the behaviour has changed")
PYTHON
