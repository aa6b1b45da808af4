"""What people get wrong in a table of labels: it is read all the same, or one error says what came, what was expected and where.

Here belongs a slip in a table, its columns, its file names or its masks. A file that is odd in itself is a case of test_messy_folder.py (through the
command) and of test_decode.py (on its own); a mistake outside of the data one of tests/cli/test_bad_input.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.errors import DataError
from tests.support.helpers import invoke, the_error

HEADER = "filename,label,split"


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, two classes in each split, and nothing that says so."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path


def rows(**changes: str) -> list[str]:
    """One row an image; ``changes`` has other rows by their number (r3)."""
    made = [f"images/{number:02d}.png,{('crack', 'whole')[number % 2]},{('train', 'val', 'test')[number // 2 % 3]}" for number in range(12)]
    for key, row in changes.items():
        made[int(key[1:])] = row
    return made


def write(folder, lines: list[str], header: str = HEADER, name: str = "labels.csv", *, end: str = "\n", encoding: str = "utf-8") -> None:
    (folder / name).write_bytes(end.join([header, *lines, ""]).encode(encoding))


def read(folder, **options):
    return open_data(DataConfig.model_validate({"path": str(folder), **options}), root=folder, seed=0)


def sizes(task) -> dict[str, int]:
    return {split: len(part) for split, part in task.splits.items()}


EVEN = {"train": 4, "validation": 4, "test": 4}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_however_a_spreadsheet_writes_it(folder, encoding, end, delimiter):
    lines = [line.replace(",", delimiter).replace("crack", "Riß") for line in rows()]
    write(folder, lines, HEADER.replace(",", delimiter), end=end, encoding=encoding)
    task = read(folder)
    assert task.classes == ("Riß", "whole") and sizes(task) == EVEN


def test_quotes_and_line_ends_within_a_cell(folder):
    write(folder, [f'"{line.split(",")[0]}","the ""big"", {line.split(",")[1]}\none",{line.split(",")[2]}' for line in rows()])
    assert read(folder).classes == ('the "big", crack\none', 'the "big", whole\none')


@pytest.mark.parametrize("label", ["1.0", "1", "-1", "Röntgen 'normal'", "猫"])
def test_labels_of_any_kind(folder, label):
    write(folder, [line.replace("crack", label) for line in rows()])
    assert set(read(folder).classes) == {label.removesuffix(".0"), "whole"}


def test_names_without_suffix_or_folder_or_with_one_too_many(folder):
    short = [line.replace("images/", "").replace(".png", "") for line in rows()]
    write(folder, short)
    assert sizes(read(folder)) == EVEN
    write(folder, [f"{folder.name}/{line}" for line in rows()])
    assert sizes(read(folder)) == EVEN
    write(folder, [line.replace("/", "\\") for line in rows()])
    assert sizes(read(folder)) == EVEN


def test_several_tables_named_after_the_splits(folder):
    for split in ("train", "val", "test"):
        write(folder, [line.rpartition(",")[0] for line in rows() if line.endswith(split)], "filename,label", f"{split}.csv")
    assert sizes(read(folder)) == EVEN


def test_a_row_that_repeats_another_and_one_that_is_empty(folder):
    write(folder, [*rows(), rows()[0], "", ",,", "images/03.png,,test"])
    task = read(folder)
    assert sizes(task) == EVEN and any("repeat" in problem for problem in task.problems)
    assert any("1 rows of labels.csv have no image or no label" in problem for problem in task.problems)


def test_a_file_that_is_not_there_is_named_and_the_rest_is_read(folder):
    write(folder, [*rows(), "images/99.png,crack,train"])
    task = read(folder)
    assert sizes(task) == EVEN and "images/99.png" in task.skipped and any("1 of 13 rows" in problem for problem in task.problems)


@pytest.mark.parametrize(
    ("lines", "header", "words"),
    [
        (rows(), "filename,diagnose,split", ["labels.csv", "no column for the label", "diagnosis", "'diagnose'", "[data.columns] label"]),
        (rows(), "name of it,label,split", ["labels.csv", "no column for the image", "filename", "'name of it'", "[data.columns] image"]),
        (rows(r3="images/03.png,whole,holdout"), HEADER, ["'holdout'", "train", "validation", "test", "line 5"]),
        (rows(r3="images/03.png,whole,"), HEADER, ["1 of 12 images have no split"]),
        ([line for line in rows() if not ("whole" in line and "test" in line)], HEADER, ["test split", "'whole'"]),
        ([line.replace("whole", "crack") for line in rows()], HEADER, ["1 class(es)", "'crack'", "at least two"]),
        (rows(r3="../secret.png,whole,val"), HEADER, ["line 5", "../secret.png", "outside of"]),
        (rows(r3="/etc/passwd,whole,val"), HEADER, ["line 5", "/etc/passwd", "outside of"]),
        (rows(r3="C:\\images\\03.png,whole,val"), HEADER, ["line 5", "another machine"]),
        (rows(r3="images/03.png,whole"), HEADER, ["line 5", "2 cells", "3 columns"]),
        ([*rows(), "images/03.png,crack,val"], HEADER, ["images/03.png", "label", "'whole' and 'crack'"]),
        ([line.replace("images", "pictures") for line in rows()], HEADER, ["no image file that is there", "pictures/00.png"]),
        (rows(), "filename,label,label", ["two columns 'label'"]),
        ([], HEADER, ["labels.csv", "no rows"]),
        ([f"images/{number:02d}.png,kind{number},train" for number in range(12)], HEADER, ["validation split"]),
    ],
)
def test_one_clear_error(folder, lines, header, words):
    write(folder, lines, header)
    said = the_error(invoke("inspect", folder, "--out", folder / "look"))
    for word in words:
        assert word in said, said


def test_text_in_another_encoding_is_told_with_its_line(folder):
    write(folder, [line.replace("crack", "Riß") if number == 2 else line for number, line in enumerate(rows())], encoding="latin-1")
    with pytest.raises(DataError, match=r"labels.csv, line 4: not in UTF-8 .*CSV UTF-8"):
        read(folder)


def test_a_name_that_two_files_have(folder):
    (folder / "more").mkdir()
    (folder / "more" / "03.png").write_bytes((folder / "images" / "03.png").read_bytes())
    write(folder, [line.replace("images/", "") for line in rows()])
    with pytest.raises(DataError, match=r"line 5 names '03.png', which may be images/03.png or more/03.png"):
        read(folder)


def test_a_link_that_leaves_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    (folder / "images" / "03.png").rename(outside)
    (folder / "images" / "03.png").symlink_to(outside)
    write(folder, rows())
    task = read(folder)
    assert task.skipped["images/03.png"] == "a link out of the folder" and sum(sizes(task).values()) == 11


def test_masks_of_another_size(folder):
    Image.new("L", (12, 9), 255).save(folder / "same.png")
    Image.new("L", (24, 18), 255).save(folder / "twice.png")
    Image.new("L", (9, 12), 255).save(folder / "turned.png")
    lines = [f"{line},{'same.png' if number == 0 else 'twice.png' if number == 1 else ''}" for number, line in enumerate(rows())]
    write(folder, lines, f"{HEADER},mask")
    truth = read(folder).truth["train"]
    assert truth.mask(0).shape == truth.mask(1).shape == (9, 12) and truth.mask(0).all() and truth.mask(2) is None
    write(folder, [lines[0].replace("same", "turned"), *lines[1:]], f"{HEADER},mask")
    with pytest.raises(DataError, match=r"turned.png has 9x12 pixels and its image images/00.png 12x9"):
        read(folder)
    write(folder, [lines[0].replace("same", "absent"), *lines[1:]], f"{HEADER},mask")
    with pytest.raises(DataError, match=r"line 2 names the mask 'absent.png'"):
        read(folder)


def test_names_and_columns_that_do_not_fit(folder):
    write(folder, rows())
    with pytest.raises(DataError, match=r"\[data\] names has 'krack', which is no label of the data; the labels are 'crack', 'whole'"):
        read(folder, names={"krack": "bad", "whole": "good"})
    with pytest.raises(DataError, match=r"\[data\] names has no name for 'whole'"):
        read(folder, names={"crack": "bad"})
    with pytest.raises(DataError, match=r"no column 'lable', which \[data.columns\] label names; its columns are 'filename'"):
        read(folder, columns={"label": "lable"})
    with pytest.raises(DataError, match=r"\[data\] table = 'other.csv': there is no such file"):
        read(folder, table="other.csv")
    with pytest.raises(DataError, match=r"outside of"):
        read(folder, table=f"../{folder.name}x/labels.csv")
    write(folder, rows(), name="again.csv")
    with pytest.raises(DataError, match=r"several tables of labels \(again.csv, labels.csv\): name one"):
        read(folder)
    assert sizes(read(folder, table="labels.csv")) == EVEN


def test_images_and_nothing_that_says_what_they_are(folder):
    for path in (folder / "images").iterdir():
        path.rename(folder / path.name)
    (folder / "images").rmdir()
    with pytest.raises(DataError, match=r"12 images, such as 00.png, 0 class folders and no table of labels"):
        read(folder)
    with pytest.raises(DataError, match="is a file"):
        read(folder / "00.png")


def test_one_patient_in_two_splits_is_told(folder):
    write(folder, [f"{line},P{number % 5}" for number, line in enumerate(rows())], f"{HEADER},patient")
    assert any("patients have images in more than one split" in problem for problem in read(folder).problems)


@pytest.mark.parametrize("named", [False, True])
def test_folders_of_patients_with_tables_whose_label_is_none_of_the_known(folder, named):
    """As CheXpert lies: train/patient and valid/patient, with a column for each finding."""
    for split, table in (("train", "train.csv"), ("valid", "valid.csv")):
        lines = []
        for number in range(24):
            path = folder / split / f"{split}{number:02d}" / "view.png"
            path.parent.mkdir(parents=True)
            Image.new("L", (9, 9), number).save(path)
            lines.append(f"{folder.name}/{path.relative_to(folder)},{number % 2}.0")
        write(folder, lines, "Path,Cardiomegaly", table)
    if named:
        assert sizes(read(folder, columns={"label": "Cardiomegaly"}))["validation"] == 24
    else:
        with pytest.raises(DataError, match=r"labels are in train.csv and valid.csv, name their column: \[data.columns\] label") as caught:
            read(folder)
        assert len(str(caught.value)) < 500


def test_a_folder_one_too_high_is_told_the_right_one(folder):
    with pytest.raises(DataError, match=r"1 class folder\(s\) \['images'\].* name that folder: .*/images"):
        read(folder)


@pytest.mark.parametrize("window", [(5, 1), (5, 5)])
def test_a_window_whose_ends_are_the_wrong_way_round(folder, window):
    with pytest.raises(ValueError, match="black comes before white"):
        read(folder, window=window)


def test_parquet_that_is_not_there(folder):
    with pytest.raises(DataError, match="has no Parquet file"):
        read(folder, format="parquet")


def test_too_few_patients_for_splits_that_are_made(folder):
    write(folder, [f"{line.rpartition(',')[0]},P{number // 6}" for number, line in enumerate(rows())], "filename,label,patient")
    with pytest.raises(DataError, match="validation split has no readable image .* needs images of three patients"):
        read(folder)


@pytest.mark.parametrize("flat", [False, True])
def test_labels_in_a_spreadsheet(folder, flat):
    (folder / "labels.xlsx").write_bytes(b"PK\x03\x04")
    if flat:
        for path in (folder / "images").iterdir():
            path.rename(folder / path.name)
        (folder / "images").rmdir()
    with pytest.raises(DataError, match=r"if the labels are in labels.xlsx, save it as CSV UTF-8 \(.csv\): spreadsheets are not read"):
        read(folder)
