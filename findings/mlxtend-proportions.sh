#!/usr/bin/env bash
# One would guess that a test of the difference of two accuracies gives a small p where they
# differ a lot, and the same p whichever of them is named first.
# mlxtend 0.25.0 (seen 2026-11-29): proportion_difference returns the share of the normal
# distribution below z. 90 % against 70 % of 200 images each is p = 1.0000, 70 % against 90 %
# is p = 0.0000, and equal accuracies are p = 0.5. Neither is the p of a test with two
# sides, which is twice the smaller tail, and the docstring names no side. mcnemar of the
# same package has two sides, so that the two do not fit together in one table.
# Source: the last lines of mlxtend/evaluate/proportion_difference.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlxtend==0.25.0 scipy==1.17.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from mlxtend.evaluate import mcnemar, proportion_difference
from scipy.stats import norm

seen = {}
for first, second in ((0.9, 0.7), (0.7, 0.9), (0.8, 0.8)):
    z, p = proportion_difference(first, second, 200)
    seen[first] = p
    print(f"{first} against {second} of 200: z {z:5.2f}, p {p:.4f}; with two sides {2 * norm.sf(abs(z)):.4f}")
table = np.array([[130, 50], [10, 10]])
swapped = [mcnemar(each)[1] for each in (table, table.T)]
print(f"mcnemar of 90 % against 70 %: p {swapped[0]:.4f}, the other way round {swapped[1]:.4f}")
assert swapped[0] == swapped[1] < 0.001
assert seen[0.9] > 0.999 and seen[0.7] < 0.001 and seen[0.8] == 0.5, "the behaviour has changed"
PYTHON
