#!/usr/bin/env bash
# One would guess that a missing label in a column of floats is null in Parquet,
# whoever wrote the file, and that dropping nulls drops it.
# With pyarrow 26.0.0 (seen 2026-11-28) that depends on the way in: a pandas
# column's NaN becomes null, while NaN from a NumPy array or a list stays a number. It
# counts as valid, the file's null_count is 0, drop_null() keeps the row, and only
# a conversion to pandas makes the two look alike.
# A reader that counts nulls takes unlabelled images for labelled ones, or makes
# "nan" a class.
# Sources: pyarrow's documentation of pyarrow.array (from_pandas) and of
# pyarrow.compute.is_valid; null is a definition level in the Parquet format.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.0 pandas==3.1.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

labels = np.array([0.0, 1.0, np.nan, 1.0])
tables = {
    "from pandas": pa.Table.from_pandas(pd.DataFrame({"label": labels})),
    "from NumPy": pa.table({"label": labels}),
}
seen = {}
for name, table in tables.items():
    file = io.BytesIO()
    pq.write_table(table, file)
    file.seek(0)
    counted = pq.ParquetFile(file).metadata.row_group(0).column(0).statistics.null_count
    file.seek(0)
    back = pq.read_table(file)
    seen[name] = (counted, back.drop_null().num_rows, len(back.to_pandas().dropna()))
    print(f"{name}: null_count {seen[name][0]}, rows after drop_null {seen[name][1]}, after pandas dropna {seen[name][2]}")
assert seen["from pandas"] == (1, 3, 3)
assert seen["from NumPy"] == (0, 4, 3), "the behaviour has changed"
PYTHON
