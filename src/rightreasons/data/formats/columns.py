"""Which column of a table is the image, the label, the split and so on: by its name among those that people give, and by its values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from rightreasons.data.cells import no_classes, read_cell
from rightreasons.data.splits import is_split
from rightreasons.errors import DataError

# The names of columns in the tables that people have, likeliest first; compared without case, spaces, "_" and "-".
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": (
        "img_filename", "filename", "file_name", "image_path", "img_path", "image_file", "filepath", "file_path", "file", "path",
        "image_name", "image_index", "image", "img", "image_id", "isic_id", "dicom", "sop_instance_uid", "patientId", "id",
    ),
    "label": ("y", "label", "labels", "class", "target", "diagnosis", "dx", "finding_labels", "category", "benign_malignant", "outcome"),
    "split": ("split", "partition", "subset", "set"),
    "attribute": ("a", "place", "attribute", "spurious", "shortcut", "confounder", "group"),
    "patient": (
        "patient", "patient_id", "subject", "subject_id", "case_id", "lesion_id", "person", "pat_id", "pid", "mrn", "patient_name", "accession",
        "accession_number",
    ),
    "mask": ("mask", "mask_path", "mask_file", "mask_filename"),
}  # fmt: skip
NEEDED = ("image", "label")
# Beside a column whose name ends in one of these words, "y" is where a box begins.
_COORDINATES = frozenset({"x", "x0", "x1", "x2", "xmin", "xmax", "x_min", "x_max", "xc", "cx", "x_center"})
# With more values than this in a column, its groups would be too small to compare.
_MOST_ATTRIBUTES = 32
# A column of one of these names may hold another kind of set than the splits.
_VAGUE_SPLITS = frozenset({"set", "subset"})
# A cell that names a file has a folder or a suffix.
_FILE = re.compile(r"[/\\]|\.[A-Za-z]\w{1,4}$")
YES_OR_NO = frozenset({"0", "1", "yes", "no", "true", "false", "y", "n"})

# Gives the values of a column by its name.
Values = Callable[[str], Sequence[object]]


def match_columns(path: object, columns: Iterable[str], chosen: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The column of each role, as ``chosen`` (by role) or by its name. Roles that no column fits are missing from the answer.

    Raises DataError for a chosen column that is not there.
    """
    columns = tuple(columns)
    found = _chosen_columns(path, columns, chosen or {})
    for role, candidates in _candidates(columns).items():
        free = [name for name in candidates if name not in found.values()]
        if role not in found and free:
            found[role] = free[0]
    return found


def choose_columns(
    path: object,
    columns: Iterable[str],
    chosen: Mapping[str, str | None],
    values: Values,
    problems: list[str],
    *,
    named: Mapping[str, str],
    names_files: Callable[[str, str], bool] = lambda column, role: True,
) -> dict[str, str]:
    """As ``match_columns``, and among the columns whose name fits a role, the first whose values fit it as well.

    ``named`` is [data] names: what it has is a class, whatever it looks like. ``names_files`` says whether a column names files of a role that are
    there.
    A column that is passed over for its values is reported in ``problems``. Raises DataError if the column of the labels has values that cannot be
    one class per image and no other column fits.
    """
    columns = tuple(columns)
    found = _chosen_columns(path, columns, chosen)
    unfit: dict[str, str] = {}
    for role, candidates in _candidates(columns).items():
        free = [found[role]] if role in found else [name for name in candidates if name not in found.values()]
        if role == "image":
            free = [name for name in free if names_files(name, role)] or free
        for name in free:
            why = _why_unfit(role, name, values, named, names_files) if role == "label" or role not in found else None
            if why is None:
                found[role] = name
                break
            if role == "label" and (name in (chosen or {}).values() or name == free[-1]):
                raise DataError(
                    f"{path}: the column {name!r} {why}; a column with one class per image is expected. Name it, [data.columns] label = ..., "
                    f"or say which class each value is: [data] names = {{ ... }}, with '' to leave images out"
                )
            unfit[name] = f"the column {name!r} of {_own_name(path)} is not read as the {role}: it {why}"
    problems += [sentence for name, sentence in unfit.items() if name not in found.values()]
    return found


def require_columns(path: object, columns: Iterable[str], found: Mapping[str, str], values: Values | None = None) -> None:
    """Raises DataError if the image or the label is in none of the columns."""
    columns = tuple(columns)
    for role in NEEDED:
        if role not in found:
            flags = [name for name in columns if values is not None and _is_flag(values(name))] if role == "label" else []
            hint = f" The columns {_quoted(flags[:20])} hold 0 and 1: write the class of each image into one column." if len(flags) > 1 else ""
            raise DataError(
                f"{path} has no column for the {role}: expected one named {', '.join(NAMES[role])}; found {_quoted(columns)}. "
                f"Name it: [data.columns] {role} = ...{hint}"
            )


def named_as_label(columns: Iterable[str]) -> list[str]:
    """The columns whose names fit the label, likeliest first."""
    return _candidates(tuple(columns))["label"]


def _chosen_columns(path: object, columns: Sequence[str], chosen: Mapping[str, str | None]) -> dict[str, str]:
    for role, name in chosen.items():
        if name is not None and name not in columns:
            raise DataError(f"{path} has no column {name!r}, which [data.columns] {role} names; its columns are {_quoted(columns)}")
    return {role: name for role, name in chosen.items() if name is not None}


def _candidates(columns: Sequence[str]) -> dict[str, list[str]]:
    """The columns whose names fit each role, likeliest first."""
    by_plain = {_plain(name): name for name in reversed(columns)}
    found = {role: [by_plain[_plain(name)] for name in names if _plain(name) in by_plain] for role, names in NAMES.items()}
    boxes = any(_last_word(name) in _COORDINATES for name in columns)
    if boxes:
        found["label"] = [name for name in found["label"] if _plain(name) != "y"]
    # One letter says little: "a" is an attribute in the form that SubpopBench gave it, with y and split.
    if boxes or not {"y", "split"} <= by_plain.keys():
        found["attribute"] = [name for name in found["attribute"] if _plain(name) != "a"]
    return found


def _why_unfit(role: str, name: str, values: Values, named: Mapping[str, str], names_files: Callable[[str, str], bool]) -> str | None:
    """Why the values of a column do not fit a role, in words; None if they do."""
    if role == "image":
        return None
    texts = [text for text in (read_cell(cell, named) for cell in values(name)) if text is not None]
    different = set(texts)
    if role == "mask":
        # Cells that look like files are meant as such: that none of them is there is an error, which the rows tell.
        is_other = different and not any(_FILE.search(text) for text in different) and not names_files(name, role)
        return f"names no files, but has {_quoted(sorted(different)[:3])}" if is_other else None
    if role == "label":
        return no_classes(texts, named)
    if role == "split" and _plain(name) in _VAGUE_SPLITS and different and not any(is_split(word) for word in different):
        return f"has none of the words for a split, but {_quoted(sorted(different)[:3])}"
    if role == "attribute" and len(different) > max(_MOST_ATTRIBUTES, len(texts) // 10):
        return f"has {len(different)} different values"
    if role == "patient" and len(texts) > len(YES_OR_NO) and {word.lower() for word in different} <= YES_OR_NO:
        return f"has only {_quoted(sorted(different))}"
    return None


def _is_flag(cells: Sequence[object]) -> bool:
    return {read_cell(cell) for cell in cells} <= {"0", "1", "-1", None, "True", "False"}


def _own_name(path: object) -> str:
    return str(path).rpartition("/")[2]


def _last_word(name: str) -> str:
    return (re.findall(r"[a-z_0-9]+", name.lower()) or [""])[-1]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " _-")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
