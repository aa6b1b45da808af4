"""Every form of folder is read without an option, and says of each image what was written."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.data.loading import read_all
from tests.support import folders


def open_folder(root, **options):
    return open_data(DataConfig.model_validate({"path": str(root), **options}), root=root, seed=0)


def check(task, made, classes, attributes=None, *, exact=True, grey=False):
    """Class by class, split by split: as many as written, with their pixels, attributes and masks."""
    assert task.classes == tuple(sorted(classes.values(), key=task.classes.index)) and set(task.classes) == set(classes.values())
    for split in ("train", "validation", "test"):
        mine = [picture for picture in made if picture.split == split]
        batch = read_all(task.splits[split], range(len(task.splits[split])))
        assert Counter(batch.labels.tolist()) == Counter(task.classes.index(classes[picture.bolt]) for picture in mine)
        expected = {}
        for picture in mine:
            image = picture.image.convert("L") if grey else picture.image
            pixels = torch.from_numpy(np.asarray(image).copy())
            expected[task.classes.index(classes[picture.bolt]), picture.tag] = expected.get(
                (task.classes.index(classes[picture.bolt]), picture.tag), []
            ) + [pixels[None] if grey else pixels.permute(2, 0, 1)]
        for row, (image, label) in enumerate(zip(batch.images, batch.labels.tolist(), strict=True)):
            close = [  # tag and distance of every picture of this class
                (tag, (image * 255 - pixels).abs().mean().item())
                for (known, tag), several in expected.items()
                if known == label
                for pixels in several
            ]
            tag, distance = min(close, key=lambda pair: pair[1])
            assert distance < (0.51 if exact else 12), f"{split} {row}: no picture that was written looks like it"
            if attributes is not None:
                assert task.truth[split].groups[int(batch.indices[row])] == f"{task.classes[label]}, {attributes[tag]}"


@pytest.mark.parametrize(
    ("write", "classes", "attributes", "exact"),
    [
        (folders.write_class_folders, {True: "bolt", False: "nut"}, None, True),
        (folders.write_spuco, {True: "small_dogs", False: "big_dogs"}, {True: "indoor", False: "outdoor"}, True),
        (folders.write_waterbirds, {True: "waterbird", False: "landbird"}, {True: "water", False: "land"}, False),
        (folders.write_subpopbench, {True: "1", False: "0"}, {True: "1", False: "0"}, True),
        (folders.write_celeba, {True: "Blond_Hair", False: "not Blond_Hair"}, {True: "Male", False: "not Male"}, False),
        (folders.write_parquet, {True: "scratch", False: "sound"}, None, True),
        (folders.write_huggingface, {True: "scratch", False: "sound"}, None, True),
    ],
)
def test_read_as_it_was_written(tmp_path, write, classes, attributes, exact):
    made = write(tmp_path)
    task = open_folder(tmp_path)
    check(task, made, classes, attributes, exact=exact)
    assert not task.skipped and (task.truth == {}) == (attributes is None)


def test_spuco_with_numbers_for_names(tmp_path):
    """SpuCoImageFolder's own example: class and spurious folders are numbers."""
    made = folders.write_spuco(tmp_path, names=("0", "1"), places=("0", "1"))
    check(open_folder(tmp_path), made, {True: "0", False: "1"}, {True: "0", False: "1"})


def test_kaggles_celeba(tmp_path):
    made = folders.write_celeba(tmp_path, kaggle=True)
    check(open_folder(tmp_path), made, {True: "Blond_Hair", False: "not Blond_Hair"}, {True: "Male", False: "not Male"}, exact=False)


def test_masks_of_a_table(tmp_path):
    made = folders.write_subpopbench(tmp_path)
    task = open_folder(tmp_path)
    tagged = [picture.tag for picture in made if picture.split == "test"]
    assert len(tagged) == len(task.splits["test"])
    for row, tag in enumerate(tagged):
        mask = task.truth["test"].mask(row)
        assert (mask is not None) == tag
        if tag:
            assert torch.equal(mask, torch.from_numpy(np.asarray(made[0].mask).copy() > 0) | mask) and mask.sum() == 16


def test_a_table_of_a_clinic(tmp_path):
    folders.write_table(tmp_path)
    task = open_folder(
        tmp_path,
        columns={"image": "Datei", "label": "Befund", "patient": "Fall"},
        names={"o.B.": "normal", "Pneumonie": "pneumonia", "unklar": ""},
        size=16,
    )
    assert task.classes == ("normal", "pneumonia") and sum(len(part) for part in task.splits.values()) == 67
    assert any("1 rows of labels.csv have no image or no label" in problem for problem in task.problems)
    assert task.skipped == {"IMG 9999": "named in the table, and not there"}
    patients = [{entry.patient for entry in part.entries} for part in task.splits.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])


def test_dicom_with_a_table(tmp_path):
    made = folders.write_dicom(tmp_path)
    task = open_folder(tmp_path)
    assert task.classes == ("effusion", "normal") and "patient 'patient_id'" in task.told
    pixels = {}
    for picture in made:
        pixels.setdefault(picture.bolt, []).append(torch.from_numpy(np.asarray(picture.image.convert("L")).copy()).float())
    for part in task.splits.values():
        batch = read_all(part, range(len(part)))
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            assert min((image[0] * 255 - known).abs().max().item() for known in pixels[label == 0]) < 1.5


def test_isic(tmp_path):
    made = folders.write_isic(tmp_path)
    names = dict.fromkeys(("MEL", "BCC", "SCC"), "malignant") | dict.fromkeys(("NV", "BKL", "DF", "VASC"), "benign") | {"AK": "", "UNK": ""}
    task = open_folder(tmp_path, names=names, columns={"attribute": "band_aid"})
    kept = [picture for number, picture in enumerate(made) if picture.bolt or number // 2 % 4 != 3]
    assert sum(len(part) for part in task.splits.values()) == len(kept) and set(task.classes) == {"malignant", "benign"}
    groups = Counter(name for truth in task.truth.values() for name in truth.groups)
    assert groups == Counter(f"{'benign' if p.bolt else 'malignant'}, {'band_aid' if p.tag else 'no band_aid'}" for p in kept)
    for split, truth in task.truth.items():
        assert set(truth.other_groups) == {"band_aid", "ruler"}
        for row in range(len(task.splits[split])):
            mask = truth.mask(row)
            assert (mask is not None) == bool(truth.spurious[row]) and (mask is None or int(mask.sum()) == 16), "the plaster's, not the lesion's"
    lesions = [{entry.patient for entry in part.entries} for part in task.splits.values()]
    assert len(set.union(*lesions)) == sum(map(len, lesions)) == 20


@pytest.mark.parametrize("written", ["list of names", "bias table", "masks alone"])
def test_isic_2020_as_kaggle_has_it(tmp_path, written):
    """train.csv says nothing of ISIC in its name; artifacts come in any of the forms that people made."""
    ids = [f"ISIC_{number:07d}" for number in range(40)]
    for folder in ("train", "masks/ruler"):
        (tmp_path / folder).mkdir(parents=True)
    lines = ["image_name,patient_id,benign_malignant,target"]
    for number, name in enumerate(ids):
        Image.new("RGB", (12, 9), (number, 0, 0)).save(tmp_path / "train" / f"{name}.jpg")
        lines.append(f"{name},IP_{number},{('benign', 'malignant')[number % 2]},{number % 2}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    carriers = ids[::3]
    if written == "list of names":
        (tmp_path / "ruler.json").write_text(json.dumps([f"{name}.jpg" for name in carriers]))
    elif written == "bias table":
        (tmp_path / "isic_bias.csv").write_text("\n".join(["image;ruler", *(f"{name}.jpg;{int(name in carriers)}" for name in ids)]))
    else:
        for name in carriers:
            Image.new("L", (12, 9), 255).save(tmp_path / "masks" / "ruler" / f"{name}_mask.png")
    task = open_folder(tmp_path)
    assert task.classes == ("benign", "malignant")
    assert Counter(group for truth in task.truth.values() for group in truth.groups) == Counter(
        f"{('benign', 'malignant')[number % 2]}, {'artifact' if number % 3 == 0 else 'no artifact'}" for number in range(40)
    )
    assert sum(truth.mask(row) is not None for truth in task.truth.values() for row in range(len(truth.groups))) == (
        len(carriers) if written == "masks alone" else 0
    )


def test_knees(tmp_path):
    made = folders.write_knees(tmp_path)
    task = open_folder(tmp_path, names={"0": "healthy", "1": "", "2": "arthrosis", "3": "arthrosis", "4": "arthrosis"})
    check(task, [p for p in made if p.bolt or p.number // 2 % 3 != 2], {True: "arthrosis", False: "healthy"}, grey=True)
    assert any("auto_test" in problem for problem in task.problems)


def test_no_truth_in_a_dataset(tmp_path):
    folders.write_subpopbench(tmp_path)
    for part in open_folder(tmp_path).splits.values():
        assert all(entry.attribute is None and entry.mask is None and entry.attributes == () for entry in part.entries)
