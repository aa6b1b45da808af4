"""Masks and thumbnails that lie among the images, and images whose suffix does not say so."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rightreasons.data.beside import looks_like_mask
from rightreasons.errors import DataError
from tests.support.folders import names_of, noise, read, spot, total, write_rows


def files(task) -> list[str]:
    return [name for split in names_of(task).values() for name in split]


@pytest.mark.parametrize(
    "mask",
    ["{0}/{0} ({1})_mask.png", "{0}/{0} ({1})_mask_1.png", "{0}/{0} ({1})-GT.png", "{0}/{0} ({1})_segmentation.png", "{0}/mask_{0} ({1}).png",
     "{0}/{0} ({1})_ground_truth.png", "{0}/masks/{0} ({1}).png", "{0}/Ground Truth/{1}.bmp", "masks/{0}/{0} ({1}).png", "masks/{0}-{1}.png",
     "{0}_masks/{1}.png"],
)  # fmt: skip
def test_masks_are_no_images(tmp_path, mask):
    """The first is BUSI's form, the seventh that of COVID-19 Radiography."""
    for name in ("benign", "malignant"):
        for number in range(10):
            noise(tmp_path / name / f"{name} ({number}).png")
            spot(tmp_path / mask.format(name, number))
    task = read(tmp_path)
    assert task.classes == ("benign", "malignant") and total(task) == 20 and not any("mask" in name.lower() for name in files(task))
    assert task.not_read == {"masks and other drawings on images": 20}
    assert any("20 masks" in problem and "columns filename, label and mask" in problem for problem in task.problems)


@pytest.mark.parametrize(
    ("image", "mask"),
    [("{0}/images/{1}.png", "{0}/masks/{1}.png"), ("images/{0}/{1}.png", "masks/{0}/{1}.png"),
     ("{0}/JPEGImages/{1}.jpg", "{0}/SegmentationClass/{1}.png"), ("{0}/images/{1}.png", "{0}/labels/{1}.png")],
)  # fmt: skip
def test_a_folder_of_images_beside_one_of_masks(tmp_path, image, mask):
    """The place says what they are, though these masks do not look like masks."""
    for name in ("cat", "dog"):
        for number in range(10):
            noise(tmp_path / image.format(name, number), tmp_path / mask.format(name, number))
    task = read(tmp_path)
    assert task.classes == ("cat", "dog") and total(task) == 20 and task.not_read == {"masks and other drawings on images": 20}


def test_splits_with_images_and_masks(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(10):
                noise(tmp_path / split / "images" / name / f"{number}.png", tmp_path / split / "masks" / name / f"{number}.png")
    task = read(tmp_path)
    assert task.classes == ("cat", "dog") and len(task.splits["test"]) == 20 and total(task) == 40


def test_images_and_masks_without_classes(tmp_path):
    for number in range(10):
        noise(tmp_path / "train" / "images" / f"{number}.png")
        spot(tmp_path / "train" / "masks" / f"{number}.png")
    with pytest.raises(DataError, match="1 class folder.*10 files are masks and no images of a class: a table with the columns"):
        read(tmp_path)


def test_a_folder_called_masks_whose_pictures_are_none_is_asked_about(tmp_path):
    for name in ("cat", "dog", "masks"):
        noise(*(tmp_path / name / f"{number}.png" for number in range(10)))
    with pytest.raises(DataError, match=r"'masks' beside 'cat', 'dog' may hold masks of their images or be a class.*\[data\] names"):
        read(tmp_path)
    assert read(tmp_path, names={"cat": "cat", "dog": "dog", "masks": "a mask"}).classes == ("cat", "dog", "a mask")
    assert read(tmp_path, names={"cat": "cat", "dog": "dog", "masks": ""}).classes == ("cat", "dog")


@pytest.mark.parametrize("classes", [("with_mask", "without_mask"), ("mask", "no_mask"), ("Mask", "Non Mask"), ("gas mask", "hat")])
def test_people_with_and_without_a_mask(tmp_path, classes):
    for name in classes:
        noise(*(tmp_path / name / f"{number}.png" for number in range(10)))
    assert set(read(tmp_path).classes) == set(classes) and total(read(tmp_path)) == 20


def test_one_name_with_two_suffixes(tmp_path):
    """The kind that looks like masks is left out; of two that look alike it is told."""
    for name in ("cat", "dog"):
        for number in range(10):
            noise(tmp_path / name / f"{number}.jpg")
            spot(tmp_path / name / f"{number}.png")
    assert total(read(tmp_path)) == 20 and all(name.endswith(".jpg") for name in files(read(tmp_path)))
    for name in ("cat", "dog"):
        noise(*(tmp_path / name / f"{number}.png" for number in range(10)))
    task = read(tmp_path)
    assert total(task) == 40 and any("20 images have the name of another but for the suffix" in problem for problem in task.problems)


def test_a_table_means_the_image_and_its_mask_column_the_mask(tmp_path):
    for number in range(20):
        noise(tmp_path / "images" / f"{number}.png")
        spot(tmp_path / "masks" / f"{number}.png")
    write_rows(tmp_path / "labels.csv", "file,label,mask", [[f"{n}.png", "ab"[n % 2], f"{n}.png" if n < 5 else ""] for n in range(20)])
    task = read(tmp_path)
    assert all(name.startswith("images/") for name in files(task)) and task.not_read == {"masks and other drawings on images": 15}
    masked = [truth.mask(row) for split, truth in task.truth.items() for row in range(len(task.splits[split]))]
    assert sum(mask is not None for mask in masked) == 5


def test_thumbnails(tmp_path):
    for name in ("cat", "dog"):
        for number in range(10):
            noise(tmp_path / name / f"{number}.png", tmp_path / name / f"{number}_thumb.png", tmp_path / name / "thumbs" / f"{number}.jpg")
    task = read(tmp_path)
    assert total(task) == 20 and task.not_read == {"thumbnails": 40}


def test_images_without_the_suffix_of_one(tmp_path):
    """The first bytes tell: JPEG as .jfif, and PNG without a suffix. A DICOMDIR begins as DICOM does, and is a list."""
    for name in ("cat", "dog"):
        for number in range(5):
            noise(tmp_path / name / "x.png")
            (tmp_path / name / f"{number}").write_bytes((tmp_path / name / "x.png").read_bytes())
            with Image.open(tmp_path / name / "x.png") as image:
                image.save(tmp_path / name / f"{number}.jfif", "JPEG")
            (tmp_path / name / "x.png").unlink()
        (tmp_path / name / "notes").write_text("not an image")
        (tmp_path / name / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    task = read(tmp_path)
    assert total(task) == 20 and not task.skipped and task.not_read == {"text files": 2, "other files": 2}


def test_what_looks_like_a_mask(tmp_path):
    random = np.random.default_rng(0)
    square = np.zeros((64, 64), np.uint8)
    square[10:30, 5:40] = 255
    pictures = {
        "binary.png": (square, True), "lossy.jpg": (square, True), "labels.png": (random.integers(0, 12, (64, 64), dtype=np.uint8), True),
        "colours.png": (np.stack([square, square // 2, 255 - square], -1), True),
        "photo.png": (random.integers(0, 255, (64, 64, 3), dtype=np.uint8), False),
        "ramp.png": (np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), False),
        "dark.png": (np.where(random.random((64, 64)) < 0.9, 0, random.integers(0, 255, (64, 64))).astype(np.uint8), False),
    }  # fmt: skip
    for name, (pixels, expected) in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
        assert looks_like_mask(tmp_path / name) is expected, name
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert not looks_like_mask(tmp_path / "broken.png")
