"""ISIC's skin lesions: the challenges' ground truth, with lists of artifacts and their masks where somebody made them.

    ISIC_2019_Training_GroundTruth.csv      image,MEL,NV,BCC,...       one 1 a row (2018, 2019)
    ISIC_2020_Training_GroundTruth.csv      image_name,patient_id,...,benign_malignant,target
    *Metadata*.csv                          image,...,lesion_id        whose photographs stay in one split (optional)
    ISIC_2019_Training_Input/*.jpg          the photographs, in whatever folder
    artifacts.json, or a table              which photographs show plasters, rulers, hairs, ink (optional)
    masks/ARTIFACT/ISIC_0000001.png         where (optional)

An artifact list is JSON, ``{"band_aid": ["ISIC_0000001", ...], ...}`` or band_aid.json with the list alone, or a table with a column of 0 and 1 for
each artifact; of an artifact without a list, its masks say which photographs show it. Masks of the lesion
itself, which the challenges call ``ISIC_..._segmentation.png``, are none of a shortcut, and are never read.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from rightreasons.config import DataConfig
from rightreasons.data.cells import read_cell
from rightreasons.data.formats.columns import NAMES, match_columns
from rightreasons.data.formats.table import Table, read_header, read_table
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.tree import Tree, is_image
from rightreasons.errors import DataError

IMAGE_COLUMNS = ("image", "image_name", "isic_id", "image_id")
# The diagnoses of the challenges' tables.
DIAGNOSES = frozenset({"MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK"})
FEWEST_DIAGNOSES = 2
# Columns by which a table with the diagnosis in words is ISIC's, whatever its name: the archive's own, 2020's train.csv, HAM10000's metadata.
OWN_COLUMNS = (frozenset({"isic_id"}), frozenset({"image_name", "benign_malignant"}), frozenset({"image_id", "dx"}))
WORDED = ("benign_malignant", "diagnosis", "dx", "diagnosis_1", "target")
# The names of artifacts in the lists that people made.
ARTIFACTS = frozenset({
    "band_aid", "plaster", "patch", "patches", "colored_patch", "color_calibration_chart", "ruler", "hair", "hairs", "ink", "skin_marker", "pen_mark",
    "gel_border", "gel_bubble", "gel_bubbles", "dark_corner", "dark_corners", "vignette", "reflection", "others",
})  # fmt: skip
LESION = "_segmentation"


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether there is a ground-truth table as the challenges have it; their images begin with ISIC."""
    return _find_truth(tree) is not None and any(posixpath.basename(name).startswith("ISIC") for name in tree.images())


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every photograph of the ground truth. [data.columns] attribute names the artifact that groups are made by; without it: any, or none.

    Raises DataError for a table of another form, an artifact that no list has, or where no photograph is there.
    """
    found = _find_truth(tree)
    if found is None:
        raise DataError(
            f"{tree.root} has no ground-truth table of ISIC: one with a column {' or '.join(IMAGE_COLUMNS)} and the diagnoses is expected"
        )
    table = read_table(tree.path(found))
    image_column = _image_column(table.columns)
    assert image_column is not None  # by which the table was found
    labels, told = _read_labels(table, config)
    unknown = sum(label is None for label in labels)
    artifacts = _artifacts_of_masks(tree) | _read_artifacts(tree, found)
    chosen = config.columns.attribute
    if chosen is not None and chosen not in artifacts:
        raise DataError(f"[data.columns] attribute = {chosen!r}: no artifact list has it; there are {', '.join(sorted(artifacts)) or 'none'}")
    owners, splits = _read_owners(tree, table), _splits_of(table, config)
    masks = _find_masks(tree, [chosen] if chosen is not None else sorted(artifacts))
    entries, missing = [], []
    for row, (image, label) in enumerate(zip(table.column(image_column), labels, strict=True)):
        if label is None:
            continue
        name = _find_photograph(tree, image, table, row)
        if name is None:
            missing.append(image)
            continue
        key = _stem(image)
        carried = [artifact for artifact in sorted(artifacts) if key in artifacts[artifact]]
        entries.append(
            Entry(
                name,
                label,
                splits[row] if splits else None,
                owners.get(image),
                _attribute(carried, chosen) if artifacts else None,
                tuple(artifact if artifact in carried else f"no {artifact}" for artifact in sorted(artifacts)),
                masks.get(key),
                tree.files[name],
            )
        )
    if not entries:
        raise DataError(f"{table.path} names {len(missing)} photographs, such as {missing[0]}, and none of them is below {tree.root}")
    classes = (_match(table.columns).diagnoses or None) if config.columns.label is None else None
    problems = [f"{len(missing)} of {len(labels)} photographs of {found} are not there, such as {missing[0]}"] if missing else []
    if unknown:
        problems.append(f"{unknown} of {len(labels)} rows of {found} have no diagnosis and are left out")
    lists = f", artifacts {', '.join(sorted(artifacts))}, {len(masks)} masks" if artifacts else ""
    return Listing(
        "isic", f"ISIC: {found} ({told}){lists}", entries, tree.path, classes=classes,
        carries=(chosen or "artifact") if artifacts else None,
        other_attributes=tuple(sorted(artifacts)), problems=problems,
        left_out=tree.left_out | dict.fromkeys(missing, "named in the ground truth, and not there"),
        read=frozenset(name for name in tree.files if name.count("/") < 2 and name.lower().endswith((".csv", ".json"))),
    )  # fmt: skip


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are diagnoses, in order; or the one that has them in words."""

    diagnoses: tuple[str, ...]
    worded: str | None


def _find_truth(tree: Tree) -> str | None:
    """The table with image and diagnosis, the challenges' own first."""
    fits = []
    for name in _tables(tree):
        try:
            columns = read_header(tree.path(name))
        except DataError:
            continue  # no table that can be read: another one may be
        if _image_column(columns) is not None and (_match(columns).diagnoses or (_match(columns).worded and _is_isic(name, columns))):
            fits.append(name)
    return next((name for name in fits if "groundtruth" in name.lower().replace("_", "")), fits[0] if fits else None)


def _tables(tree: Tree) -> list[str]:
    return [name for name in tree.files if name.count("/") < 2 and name.lower().endswith(".csv")]


def _is_isic(name: str, columns: tuple[str, ...]) -> bool:
    return "isic" in name.lower() or any(own <= set(columns) for own in OWN_COLUMNS)


def _image_column(columns: tuple[str, ...]) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in columns), None)


def _match(columns: tuple[str, ...]) -> _Columns:
    diagnoses = tuple(name for name in columns if name in DIAGNOSES)
    return _Columns(diagnoses if len(diagnoses) >= FEWEST_DIAGNOSES else (), next((name for name in WORDED if name in columns), None))


def _read_labels(table: Table, config: DataConfig) -> tuple[list[str | None], str]:
    """The diagnosis of each row, None if it has none, and in words which columns told it."""
    columns = _match(table.columns)
    worded = config.columns.label or (None if columns.diagnoses else columns.worded)
    if worded is not None:
        return [read_cell(cell, config.names) for cell in table.column(worded)], f"label {worded!r}"
    cells = [table.column(name) for name in columns.diagnoses]
    labels: list[str | None] = []
    for row, values in enumerate(zip(*cells, strict=True)):
        set_ = [name for name, value in zip(columns.diagnoses, values, strict=True) if _is_one(value, table, row)]
        if len(set_) != 1:
            raise DataError(f"{table.where(row)}: one diagnosis is expected to be 1, and {', '.join(set_) or 'none'} is")
        labels.append(set_[0])
    return labels, f"diagnoses {', '.join(columns.diagnoses)}"


def _is_one(cell: str, table: Table, row: int) -> bool:
    try:
        value = float(cell or 0)
    except ValueError as error:
        raise DataError(f"{table.where(row)}: {cell!r} is neither 0 nor 1") from error
    return value >= 0.5


def _read_owners(tree: Tree, truth: Table) -> dict[str, str]:
    """Of an image, the patient (else the lesion) that some table names."""
    for role in ("patient_id", "lesion_id"):
        for name in _tables(tree):
            try:
                columns = read_header(tree.path(name))
            except DataError:
                continue  # as above
            image = _image_column(columns)
            if image is not None and role in columns:
                table = truth if tree.path(name) == truth.path else read_table(tree.path(name))
                return {key: owner for key, owner in zip(table.column(image), table.column(role), strict=True) if read_cell(owner)}
    return {}


def _splits_of(table: Table, config: DataConfig) -> list[str | None]:
    column = match_columns(table.path, table.columns, {"split": config.columns.split}).get("split")
    return [read_cell(cell) for cell in table.column(column)] if column is not None else []


def _read_artifacts(tree: Tree, truth: str) -> dict[str, set[str]]:
    """Which images each artifact is on, by its name."""
    found: dict[str, set[str]] = {}
    for name in tree.files:
        if name.count("/") < 2 and name.lower().endswith(".json"):
            found |= _read_json_list(tree, name)
    for name in _tables(tree):
        if name == truth:
            continue
        try:
            columns = read_header(tree.path(name))
        except DataError:
            continue  # as above
        image, named = _image_column(columns) or next((column for column in NAMES["image"] if column in columns), None), ARTIFACTS & set(columns)
        if image is not None and named:
            table = read_table(tree.path(name))
            images = [_stem(cell) for cell in table.column(image)]
            for artifact in named:
                cells = table.column(artifact)
                found[artifact] = {key for row, key in enumerate(images) if _is_one(cells[row], table, row)}
    return found


def _read_json_list(tree: Tree, name: str) -> dict[str, set[str]]:
    """A JSON file that is a list of artifacts; nothing of one that is not."""
    try:
        stored = json.loads(tree.path(name).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{tree.path(name)} is not JSON that can be read ({error}): a list of artifacts is {{'band_aid': ['ISIC_0000001', ...]}}"
        ) from error
    if isinstance(stored, list) and _stem(name) in ARTIFACTS:
        stored = {_stem(name): stored}
    if not isinstance(stored, Mapping) or not all(
        isinstance(images, list) and all(isinstance(key, str) for key in images) for images in stored.values()
    ):
        return {}
    return {str(artifact): {_stem(key) for key in images} for artifact, images in stored.items()}


def _artifacts_of_masks(tree: Tree) -> dict[str, set[str]]:
    """Which images each artifact is on by its masks alone, for whoever drew those and wrote no list."""
    found: dict[str, set[str]] = {}
    for name in filter(is_image, tree.files):
        artifact = posixpath.basename(posixpath.dirname(name))
        if artifact in ARTIFACTS and _is_mask(name) and LESION not in name:
            found.setdefault(artifact, set()).add(_stem(name).removesuffix("_mask"))
    return found


def _find_masks(tree: Tree, artifacts: list[str]) -> dict[str, str]:
    """Of an image, the mask of an artifact: a file of its name in a folder of the artifact's."""
    found: dict[str, str] = {}
    for name in tree.files:
        stem = _stem(name)
        if is_image(name) and posixpath.basename(posixpath.dirname(name)) in artifacts and LESION not in stem:
            found.setdefault(stem.removesuffix("_mask"), name)
    return found


def _find_photograph(tree: Tree, image: str, table: Table, row: int) -> str | None:
    """The photograph, among files of the same name that are masks."""
    photographs = [name for name in tree.named(_stem(image)) if is_image(name) and not _is_mask(name)]
    if len(photographs) > 1:
        raise DataError(f"{table.where(row)} names {image!r}, which may be {photographs[0]} or {photographs[1]}: keep one of them")
    return photographs[0] if photographs else None


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _is_mask(name: str) -> bool:
    return any(word in part.lower() for part in name.split("/")[:-1] for word in ("mask", "groundtruth", "artifact")) or LESION in name


def _attribute(carried: list[str], chosen: str | None) -> str:
    if chosen is not None:
        return chosen if chosen in carried else f"no {chosen}"
    return "artifact" if carried else "no artifact"
