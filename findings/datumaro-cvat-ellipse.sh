#!/usr/bin/env bash
# One would guess that Datumaro reads each shape that is drawn in CVAT, or names those
# that it leaves out.
# datumaro 1.13.12 (seen 2026-11-29) passes over the ellipses of a file of "CVAT for images
# 1.1" without an error or a line in the log; boxes, polygons and masks beside them come in.
# An image on which people marked round things alone counts as looked at and empty.
# Datumaro has an Ellipse of its own, so that nothing forces the loss.
# Right value: the element <ellipse> with cx, cy, rx and ry in CVAT's documentation of the
# format. Source: the list of shapes in datumaro/plugins/data_formats/cvat/format.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datumaro==1.13.12
cd "$folder"
mkdir -p images
cat > annotations.xml <<'XML'
<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>mark</name><attributes></attributes></label></labels></task></meta>
  <image id="0" name="both.png" width="64" height="64">
    <box label="mark" occluded="0" xtl="10" ytl="20" xbr="50" ybr="30" z_order="0"></box>
    <ellipse label="mark" occluded="0" cx="32" cy="32" rx="10" ry="5" z_order="0"></ellipse>
    <polygon label="mark" occluded="0" points="1,1;9,1;9,9" z_order="0"></polygon>
    <mask label="mark" occluded="0" rle="2, 3, 4" left="5" top="6" width="3" height="3" z_order="0"></mask>
  </image>
  <image id="1" name="round.png" width="64" height="64">
    <ellipse label="mark" occluded="0" cx="40" cy="20" rx="8" ry="8" z_order="0"></ellipse>
  </image>
</annotations>
XML
venv/bin/python - <<'PYTHON'
import logging
import warnings

import datumaro
from PIL import Image

for name in ("both", "round"):
    Image.new("RGB", (64, 64)).save(f"images/{name}.png")
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    dataset = datumaro.Dataset.import_from(".", "cvat")
    read = {item.id: sorted(each.type.name for each in item.annotations) for item in dataset}
words = [text for text in told + [str(each.message) for each in warned] if "ellipse" in text.lower() or "skip" in text.lower()]
for name, shapes in read.items():
    print(name, shapes)
print("messages that speak of an ellipse, or of something skipped:", len(words))
assert hasattr(datumaro, "Ellipse")
assert read == {"both": ["bbox", "mask", "polygon"], "round": []} and not words, "the behaviour has changed"
PYTHON
