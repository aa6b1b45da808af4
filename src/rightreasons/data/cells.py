"""What the cells of a table mean: missing values, numbers as pandas writes them, and values that cannot be one class per image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable

# How tables write that a value is missing, in lower case: as spreadsheets, pandas, R, NumPy and databases do.
MISSING = frozenset(
    ["", "nan", "-nan", "na", "n/a", "#n/a", "#na", "#n/a n/a", "<na>", "nat", "none", "null", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)
# A cell with one of these between two words names several classes, as NIH's "Effusion|Mass" does.
_LISTS = ("|", ";")
# These also occur within the name of one class: they separate classes only if each part is the label of another image.
_MAYBE_LISTS = (",", "/", "+", "&", " ")


def read_cell(value: object, keep: Container[str] = ()) -> str | None:
    """The text of a cell, None if the value is missing. A word for a missing value that is in ``keep`` is a value. The number 1.0 is read as 1."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()
    if text in keep:
        return text
    if text.lower() in MISSING:
        return None
    return text.partition(".")[0] if re.fullmatch(r"[+-]?\d+\.0*", text) else text


def no_classes(values: Iterable[str], named: Container[str] = ()) -> str | None:
    """Why the values of a column cannot be one class per image, in words; None if they can. Values in ``named`` are classes by the user's word."""
    counts = Counter(values)
    if not counts:
        return "is empty"
    several = next((cell for cell in counts if cell not in named and _names_several(cell, counts)), None)
    if several is not None:
        rows = sum(count for cell, count in counts.items() if cell not in named and _names_several(cell, counts))
        return f"has several classes in one cell in {rows} of {counts.total()} rows, such as {several[:80]!r}"
    numbers = [_number(cell) for cell in counts]
    fractions = [cell for cell, number in zip(counts, numbers, strict=True) if number is not None and not number.is_integer() and cell not in named]
    if None not in numbers and fractions:
        return f"has numbers with fractions, such as {fractions[0]}, which are measurements and not classes"
    if len(counts) > most_classes(counts.total()):
        return f"has {len(counts)} different values in {counts.total()} rows"
    return None


def most_classes(images: int) -> int:
    """With more labels than this, a column holds something other than classes."""
    return max(20, images // 2)


def _names_several(cell: str, known: Container[str]) -> bool:
    if cell[0] + cell[-1] in ("[]", "{}"):
        return True
    if any(len([part for part in cell.split(mark) if part.strip()]) > 1 for mark in _LISTS):
        return True
    return any(mark in cell and all(part.strip() in known for part in cell.split(mark)) for mark in _MAYBE_LISTS)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
