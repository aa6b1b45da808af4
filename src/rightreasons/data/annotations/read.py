"""Reads a file of marks, whichever program wrote it; the format is told by the content."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from rightreasons.data.annotations.coco import is_coco, read_coco
from rightreasons.data.annotations.cvat import read_cvat
from rightreasons.data.annotations.label_studio import is_label_studio, read_label_studio
from rightreasons.data.annotations.region import Annotations
from rightreasons.errors import DataError

# A larger file is none that somebody made by hand.
MOST_BYTES = 2**30
EXPECTED = "expected COCO's instances (JSON), Label Studio's export (JSON) or CVAT's 'CVAT for images 1.1' (XML, or its ZIP)"


def read_annotations(path: Path) -> Annotations:
    """The marks in a file. Raises DataError naming the file, and the part of it that cannot be read."""
    text = _read_text(path)
    try:
        if text.lstrip("\ufeff \t\r\n").startswith("<"):
            return Annotations("CVAT", read_cvat(text))
        content = json.loads(text)
        if is_coco(content):
            return Annotations("COCO", read_coco(content))
        if is_label_studio(content):
            return Annotations("Label Studio", read_label_studio(content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is neither JSON nor XML ({error}): {EXPECTED}") from error
    except KeyError as error:
        raise DataError(f"{path}: {error} is missing: {EXPECTED}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: {error}: {EXPECTED}") from error
    raise DataError(f"{path} is JSON of another form: {EXPECTED}")


def _read_text(path: Path) -> str:
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than the {MOST_BYTES} that are read")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {EXPECTED}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_zip(path: Path) -> str:
    """The one file of marks in an archive, as CVAT exports it. Raises DataError unless there is exactly one."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.lower().endswith((".xml", ".json"))]
            if len(found) != 1 or found[0].file_size > MOST_BYTES:
                raise DataError(f"{path} has {len(found)} files of marks (XML or JSON) of usual size; expected one: name the one that is meant")
            return archive.read(found[0]).decode("utf-8")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is a damaged or locked archive ({error})") from error
