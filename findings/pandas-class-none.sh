#!/usr/bin/env bash
# One would guess that a table of labels read with pandas has the classes that are
# written in it.
# pandas 3.1.1 (seen 2026-11-28) takes the texts "None" and "NA" for missing values
# unless keep_default_na=False: a class called None (no finding, no tumour) is gone,
# dropna() removes all its images, and as category codes it becomes -1.
# A grading table of None, Mild and Severe loses its healthy class, and the
# classifier is trained on the rest without an error.
# Source: the documentation of pandas.read_csv, na_values and keep_default_na.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import pandas as pd

TABLE = "image,grade\n1.png,None\n2.png,Mild\n3.png,None\n4.png,Severe\n"
default = pd.read_csv(io.StringIO(TABLE))
literal = pd.read_csv(io.StringIO(TABLE), keep_default_na=False)
print("written                  ", ["None", "Mild", "None", "Severe"])
print("read_csv                 ", default["grade"].tolist())
print("  rows after dropna      ", len(default.dropna()))
print("  category codes         ", default["grade"].astype("category").cat.codes.tolist())
print("with keep_default_na=False", literal["grade"].tolist())
assert literal["grade"].tolist() == ["None", "Mild", "None", "Severe"]
assert default["grade"].isna().tolist() == [True, False, True, False], "the behaviour has changed"
assert default["grade"].astype("category").cat.codes.tolist() == [-1, 0, -1, 1], "the behaviour has changed"
PYTHON
