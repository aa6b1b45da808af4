"""Which column of a table is what: the values of a column go before its name, and what is not clear is refused."""

from __future__ import annotations

import pytest

from rightreasons.data.formats.columns import match_columns
from rightreasons.errors import DataError
from tests.support.folders import noise, read, total


def fill(root, header: str, row, count: int = 40) -> None:
    """``count`` pictures and a table with a row, or several, for each."""
    lines = [header]
    for number in range(count):
        noise(root / "images" / f"p{number:03d}.png")
        made = row(number)
        lines += [made] if isinstance(made, str) else made
    (root / "labels.csv").write_text("\n".join(lines))


def test_y_beside_x_is_where_a_box_begins(tmp_path):
    """RSNA's pneumonia challenge: a row for each box, and one without a box for each healthy image. The label is Target."""

    def row(number: int) -> list[str]:
        name = f"p{number:03d}"
        return [f"{name},{100 + box},{50 + number % 4},20,20,1" for box in range(1 + number % 3)] if number % 2 else [f"{name},,,,,0"]

    fill(tmp_path, "patientId,x,y,width,height,Target", row)
    task = read(tmp_path)
    assert task.classes == ("0", "1") and total(task) == 40 and "label 'Target'" in task.told
    assert any("repeat an image" in problem for problem in task.problems)


@pytest.mark.parametrize("header", ["filename,x,y,w,h", "filename,xmin,y,xmax,ymax", "Image Index,Finding Label,Bbox [x,y,w,h],,,"])
def test_a_table_of_boxes_has_no_label(header):
    """The last is NIH ChestX-ray14's BBox_List_2017.csv."""
    assert "label" not in match_columns("table.csv", header.split(","))


def test_y_and_a_of_the_published_forms_are_label_and_attribute():
    assert match_columns("metadata.csv", ["id", "filename", "split", "y", "a"]).items() >= {"label": "y", "attribute": "a", "split": "split"}.items()
    assert match_columns("labels.csv", ["file", "y"])["label"] == "y"
    assert "attribute" not in match_columns("labels.csv", ["file", "label", "a"])


def test_several_boxes_of_one_image_that_disagree(tmp_path):
    fill(tmp_path, "filename,xmin,ymin,xmax,ymax,class", lambda number: [f"p{number:03d}.png,1,1,5,5,{name}" for name in ("cat", "dog")])
    with pytest.raises(DataError, match="two rows name .* with the label 'cat' and 'dog': one row per image"):
        read(tmp_path)


def test_numbers_with_fractions_are_no_label(tmp_path):
    fill(tmp_path, "file,label,class", lambda number: f"p{number:03d},{number * 0.37:.2f},{'ab'[number % 2]}")
    task = read(tmp_path)
    assert task.classes == ("a", "b") and any("column 'label' of labels.csv is not read as the label" in problem for problem in task.problems)
    with pytest.raises(DataError, match=r"column 'label' has numbers with fractions, such as 0.37.*\[data.columns\] label"):
        read(tmp_path, columns={"label": "label"})


def test_several_classes_in_one_cell_are_refused_unless_named(tmp_path):
    """NIH ChestX-ray14's Finding Labels."""
    findings = ["Effusion", "No Finding", "Effusion|Mass"]
    fill(tmp_path, "Image Index,Finding Labels", lambda number: f"p{number:03d}.png,{findings[number % 3]}", 60)
    with pytest.raises(DataError, match=r"'Finding Labels' has several classes in one cell in 20 of 60 rows, such as .*\[data\] names"):
        read(tmp_path)
    task = read(tmp_path, names={"Effusion": "ill", "No Finding": "sound", "Effusion|Mass": ""})
    assert task.classes == ("ill", "sound") and total(task) == 40


@pytest.mark.parametrize("word", ["nan", "NA", "None", "N/A", "<NA>", "null", ""])
def test_words_for_a_missing_label_are_no_class(tmp_path, word):
    fill(tmp_path, "file,label", lambda number: f"p{number:03d}.png,{('a', 'b', 'a', 'b', word)[number % 5]}")
    task = read(tmp_path)
    assert task.classes == ("a", "b") and total(task) == 32
    told = next(problem for problem in task.problems if "8 rows of labels.csv have no image or no label" in problem)
    assert (repr(word) in told) == bool(word)
    if word:
        assert read(tmp_path, names={"a": "a", "b": "b", word: "c"}).classes == ("a", "b", "c")


def test_a_class_called_none_is_found_by_its_error(tmp_path):
    fill(tmp_path, "file,label", lambda number: f"p{number:03d}.png,{('None', 'mild')[number % 2]}")
    with pytest.raises(DataError, match=r"1 class\(es\) 'mild'.*'None' counts as missing unless \[data\] names says what it is"):
        read(tmp_path)


def test_a_missing_patient_is_no_great_patient(tmp_path):
    fill(tmp_path, "file,label,patient", lambda number: f"p{number:03d}.png,{'ab'[number % 2]},{'nan' if number % 2 else number // 4}")
    task = read(tmp_path)
    assert any("20 rows of labels.csv have no patient" in problem for problem in task.problems)
    assert {entry.patient for images in task.splits.values() for entry in images.entries} == {None, *map(str, range(10))}


@pytest.mark.parametrize("column", ["set", "subset"])
def test_a_set_that_is_no_split(tmp_path, column):
    fill(tmp_path, f"file,label,{column}", lambda number: f"p{number:03d}.png,{'ab'[number % 2]},{'XY'[number % 2]}")
    task = read(tmp_path)
    assert total(task) == 40 and any(f"'{column}' of labels.csv is not read as the split" in problem for problem in task.problems)


def test_a_patient_yes_or_no_is_no_patient(tmp_path):
    fill(tmp_path, "file,label,patient", lambda number: f"p{number:03d}.png,{'ab'[number % 2]},{number // 2 % 2}")
    assert any("'patient' of labels.csv is not read as the patient" in problem for problem in read(tmp_path).problems)


def test_the_column_that_names_files_that_are_there(tmp_path):
    fill(tmp_path, "filename,image_id,label", lambda number: f"/elsewhere/{number}.dcm,p{number:03d},{'ab'[number % 2]}")
    assert "image 'image_id'" in read(tmp_path).told


def test_a_column_for_each_class(tmp_path):
    fill(tmp_path, "file,cat,dog", lambda number: f"p{number:03d}.png,{number % 2},{1 - number % 2}")
    with pytest.raises(DataError, match="columns 'cat', 'dog' hold 0 and 1: write the class of each image into one column"):
        read(tmp_path)


def test_labels_that_differ_in_case_only_are_told(tmp_path):
    fill(tmp_path, "file,label", lambda number: f"p{number:03d}.png,{('Cat', 'cat', 'dog')[number % 3]}")
    assert any("the labels 'Cat', 'cat' differ in case or spelling only" in problem for problem in read(tmp_path).problems)


def test_a_mask_column_of_yes_and_no_names_no_files(tmp_path):
    fill(tmp_path, "filename,label,mask", lambda number: f"p{number:03d}.png,{'ab'[number % 2]},{'no' if number % 3 else 'yes'}")
    task = read(tmp_path)
    assert total(task) == 40 and not task.truth
    assert "the column 'mask' of labels.csv is not read as the mask: it names no files, but has 'no', 'yes'" in task.problems
    with pytest.raises(DataError, match="line 2 names the mask 'yes', and there is no such file"):
        read(tmp_path, columns={"mask": "mask"})


def test_masks_that_are_not_there_are_no_other_column(tmp_path):
    fill(tmp_path, "filename,label,mask", lambda number: f"p{number:03d}.png,{'ab'[number % 2]},masks/p{number:03d}.png")
    with pytest.raises(DataError, match="line 2 names the mask 'masks/p000.png', and there is no such file"):
        read(tmp_path)


def test_rows_that_disagree_are_told_by_their_lines(tmp_path):
    fill(tmp_path, "filename,label", lambda number: f"p{number % 39:03d}.png,{'ab'[number % 2]}")
    with pytest.raises(DataError, match="labels.csv, lines 2 and 41: two rows name images/p000.png, with the label 'a' and 'b'"):
        read(tmp_path)
    rows = [f"p{number:03d}.png,{'ab'[number % 2]}\n" for number in range(40)]
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "train.csv").write_text("filename,label\n" + "".join(rows[:30]))
    (tmp_path / "test.csv").write_text("filename,label\n" + "".join(rows[29:]).replace("p029.png,b", "p029.png,a"))
    with pytest.raises(DataError, match="test.csv, line 2, and train.csv, line 31: two rows name images/p029.png, with the label 'a' and 'b'"):
        read(tmp_path)
