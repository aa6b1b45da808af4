"""The columns of a table that are not used and look as if they should be: whose an image is, a split, folds, or another label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rightreasons.data.cells import no_classes, read_cell
from rightreasons.data.formats.columns import YES_OR_NO, Values, named_as_label
from rightreasons.data.splits import find_splits, is_split, split_words

# Words for a person, or for one visit of a person; alone, or before one of the words for a name or number.
_PERSONS = frozenset("patient pat pt subject participant person donor case animal mrn pid study exam visit accession specimen".split())
_NUMBERS = frozenset("id ids no nr num number name key code uid uuid instance".split())
# Fewer different values than this are groups of a study, or sites.
FEWEST_PERSONS = 4
_FOLDS = frozenset("fold folds kfold cv".split())
# A column that is called so has splits only if its values are words for them.
_VAGUE_SPLITS = frozenset("phase stage usage use mode type dataset data purpose role cohort part split subset partition set".split())


def tell_unused(
    columns: Iterable[str], found: Mapping[str, str], chosen: Mapping[str, str | None], values: Values, named: Mapping[str, str], *, has_split: bool
) -> list[str]:
    """A sentence on columns that no role has and that look like a patient, a split, folds or a label; none where there are none.

    Of a role that has a column by the user's word (``chosen``) nothing is said, nor of patients and splits where a column has them already;
    ``has_split`` says that something else tells the splits.
    """
    told = []
    for name in columns:
        if name in found.values() or not name:
            continue
        if "patient" not in found and _is_patient(name, values):
            told.append(f"{name!r} looks like whose an image is ([data.columns] patient = {name!r} keeps the images of one together)")
        elif "split" not in found and not has_split and (why := _why_split(name, values)):
            told.append(f"{name!r} {why}")
        elif chosen.get("label") is None and name in named_as_label(columns) and _is_other_label(values(name), values(found["label"]), named):
            told.append(f"{name!r} fits as the label as well ([data.columns] label = {name!r} takes it instead of {found['label']!r})")
    return [f"not used: {'; '.join(told)}"] if told else []


def _is_patient(name: str, values: Values) -> bool:
    """Whether a column is called after persons or their visits, and several images share a value of many."""
    words = set(split_words(name))
    if not words & _PERSONS or not words <= _PERSONS | _NUMBERS:
        return False
    cells = _texts(values(name))
    return FEWEST_PERSONS <= len(set(cells)) < len(cells)


def _why_split(name: str, values: Values) -> str | None:
    """Why a column looks like a split, in words; None if it does not."""
    words = set(split_words(name))
    if words & _FOLDS:
        return "looks like folds (a column 'split' with the words train, validation and test says what is held out)"
    if find_splits(name) and _is_flag(_texts(values(name))):
        return "looks like a split (a column 'split' with the words train, validation and test is read as one)"
    different = {text.lower() for text in _texts(values(name))} if words & _VAGUE_SPLITS else set()
    if len(different) > 1 and all(is_split(word) and not word.isdigit() for word in different):
        return f"looks like a split ([data.columns] split = {name!r} takes it)"
    return None


def _is_other_label(cells: Sequence[object], labels: Sequence[object], named: Mapping[str, str]) -> bool:
    """Whether a column has one class per image, of two or more, and says something else than the labels in other words."""
    texts = _texts(cells)
    if len(set(texts)) < 2 or no_classes(texts, named) is not None:
        return False
    pairs = {(read_cell(cell), read_cell(label)) for cell, label in zip(cells, labels, strict=True)}
    return not len(pairs) == len({cell for cell, _ in pairs}) == len({label for _, label in pairs})


def _is_flag(texts: Sequence[str]) -> bool:
    return len(set(texts)) == 2 and {text.lower() for text in texts} <= YES_OR_NO


def _texts(cells: Sequence[object]) -> list[str]:
    return [text for text in map(read_cell, cells) if text is not None]
