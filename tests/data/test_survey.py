"""inspect: what a path is read as, what is wrong with it, and a contact sheet."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.common.progress import Silent
from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.data.assemble import check_classes_read
from rightreasons.data.survey import CAPTION, GAP, ROW, THUMBNAIL, choose_rows, draw_sheet, survey_task
from rightreasons.data.task import Task, TensorImages
from rightreasons.errors import DataError
from rightreasons.records import GroundTruth
from tests.support.helpers import invoke, run, the_error

SPLITS = {"train": 12, "validation": 4, "test": 6}


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures, all different, in three splits; a table tells of groups and patients."""
    random = np.random.default_rng(0)
    lines = ["file,label,split,site,patient"]
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"{split}-{number}.png"
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / name)
            lines.append(f"{name},{('crack', 'whole')[number % 2]},{split},{('Bonn', 'Köln')[number % 3 == 0]},{split}{number // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def survey(folder, *, decode=False):
    task = open_data(DataConfig(path=str(folder), size=16, columns={"attribute": "site"}), root=folder, seed=0)
    return survey_task(task, Silent(), decode=decode), task


def test_counts_by_split_class_and_group(folder):
    told, _ = survey(folder)
    assert told["classes"] == ["crack", "whole"]
    for split, count in SPLITS.items():
        groups = {}
        for number in range(count):
            name = f"{('crack', 'whole')[number % 2]}, {('Bonn', 'Köln')[number % 3 == 0]}"
            groups[name] = groups.get(name, 0) + 1
        counted = told["splits"][split]
        assert counted["images"] == count and counted["classes"] == {"crack": count // 2, "whole": count // 2}
        assert counted["groups"] == groups and counted["patients"] == count // 2
    assert told["sizes"] == {"24x20": sum(SPLITS.values())} and told["images_in_two_splits"] == []
    assert [problem.partition(":")[0] for problem in told["problems"]] == ["few images"] and told["not_read"] == {}


def test_one_image_in_two_splits_is_found_whatever_its_name(folder):
    shutil.copy(folder / "train-3.png", folder / "test-0.png")
    told, _ = survey(folder)
    assert told["images_in_two_splits"] == [["train: train-3.png", "test: test-0.png"]]
    assert any("in more than one split" in problem and "train-3.png" in problem for problem in told["problems"])


def test_one_image_under_two_labels_is_found(folder):
    shutil.copy(folder / "train-3.png", folder / "train-8.png")
    shutil.copy(folder / "train-5.png", folder / "train-7.png")
    told, _ = survey(folder)
    assert told["images_under_two_labels"] == [["train: train-3.png", "train: train-8.png"]] and told["images_in_two_splits"] == []
    (problem,) = (problem for problem in told["problems"] if "under two labels" in problem)
    assert "train-3.png (whole) and train-8.png (crack) in train" in problem


def test_a_folder_of_which_nothing_can_be_decoded_says_why(folder):
    for path in folder.glob("*.png"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"none of the 12 images asked for could be read; the first, train-0.png: \w+"):
        survey(folder, decode=True)


@pytest.mark.parametrize(("rows", "inverted"), [(0, False), (5, False), (14, True)])
def test_masks_that_look_inverted_are_told_once(folder, rows, inverted):
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    mask = np.zeros((20, 24), np.uint8)
    mask[:rows] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "labels.csv").write_text("\n".join([lines[0] + ",mask", *(f"{line},mask.png" for line in lines[1:])]), encoding="utf-8")
    told = [problem for problem in survey(folder, decode=True)[0]["problems"] if "are they inverted?" in problem]
    assert len(told) == inverted and all("(the middle one of 22 looked at 70%)" in problem for problem in told)


def test_a_broken_file_is_found_when_everything_is_decoded(folder):
    whole = (folder / "train-5.png").read_bytes()
    (folder / "train-5.png").write_bytes(whole[: len(whole) // 2])
    assert survey(folder)[0]["left_out"] == {}, "its header is whole"
    assert set(survey(folder, decode=True)[0]["left_out"]) == {"train-5.png"}


def cut_off(folder, names):
    """Leaves the headers of these pictures whole, and takes the rest of their pixels."""
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])


def test_what_cannot_be_decoded_is_not_counted(folder):
    cut_off(folder, [f"test-{number}.png" for number in (0, 2, 4, 1)])
    assert survey(folder)[0]["splits"]["test"]["classes"] == {"crack": 3, "whole": 3}
    told, task = survey(folder, decode=True)
    counted = told["splits"]["test"]
    assert counted["images"] == 2 and counted["classes"] == {"crack": 0, "whole": 2}
    assert counted["groups"] == {"whole, Köln": 1, "whole, Bonn": 1} and counted["patients"] == 2
    assert "the test split has no readable image of class 'crack': each class needs some in each split" in told["problems"]
    assert [row.count for row in choose_rows(task) if row.split == "test"] == [1, 1]
    assert told["splits"]["train"]["images"] == SPLITS["train"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_class_without_one_picture_that_can_be_decoded_is_refused_before_work(folder, split):
    """Its headers are whole: accuracy would otherwise be that of the other class."""
    pictures = [f"{split}-{number}.png" for number in range(0, SPLITS[split], 2)]
    cut_off(folder, pictures[1:])
    task = survey(folder)[1]
    check_classes_read(task)
    assert not task.skipped, "one of each class is decoded, and no more"
    cut_off(folder, pictures[:1])
    words = f"the {split} split has no readable image of class 'crack': each class needs some in each split. The first, {pictures[0]}: "
    with pytest.raises(DataError, match=re.escape(words)):
        check_classes_read(survey(folder)[1])


def test_the_contact_sheet_shows_every_group_of_every_split(folder):
    _, task = survey(folder)
    rows = choose_rows(task)
    assert [(row.split, row.name) for row in rows] == [(split, name) for split in SPLITS for name in sorted(set(task.truth[split].groups))]
    for row in rows:
        assert {task.truth[row.split].groups[index] for index in row.indices} == {row.name}
        assert len(row.indices) == min(row.count, ROW) == len(set(row.indices))
    sheet = Image.open(io.BytesIO(draw_sheet(task, rows)))
    assert sheet.size == (ROW * (THUMBNAIL + GAP) + GAP, len(rows) * (CAPTION + THUMBNAIL + GAP) + GAP)


def test_masks_are_tinted_and_the_rest_is_as_it_is():
    images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    truth = GroundTruth(["a, tag", "b, none"], lambda index: mask if index == 0 else None)
    split = TensorImages(images, torch.tensor([0, 1]))
    task = Task("drawn", ("a", "b"), {"train": split}, "", {"train": truth})
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(task, choose_rows(task)))))
    top = GAP + CAPTION
    assert sheet[top + 10, GAP + 10].tolist() == [177, 50, 50] and sheet[top + 90, GAP + 10].tolist() == [100, 100, 100]
    below = top + CAPTION + THUMBNAIL + GAP
    assert sheet[below + 10, GAP + 10].tolist() == [100, 100, 100]


def test_the_command(folder):
    result = run("inspect", folder, "--out", folder / "look", "--json")
    told = json.loads(result.stdout)
    assert told["read_as"].startswith("a table of labels: labels.csv") and told["splits"]["train"]["patients"] == 6
    sheet = folder / "look" / "contact-sheet.png"
    assert told["contact_sheet"] == str(sheet) and sheet.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600 and stat.S_IMODE(sheet.parent.stat().st_mode) == 0o700
    for person in (invoke("inspect", folder, "--out", folder / "look"), invoke("inspect", folder / "labels.csv", "--out", folder / "look")):
        assert person.exit_code == 0 and "crack" in person.stdout and "12 of 6 patients" in person.stdout and "contact-sheet.png" in person.stdout


def test_several_sizes_are_told_and_no_error(folder):
    Image.new("RGB", (50, 40)).save(folder / "train-0.png")
    told = json.loads(invoke("inspect", folder, "--out", folder / "look", "--json").stdout)
    assert told["sizes"] == {"24x20": 21, "50x40": 1} and any("[data] size" in problem for problem in told["problems"])


def test_a_configuration_gives_its_own_reading(folder):
    config = folder / "mine.toml"
    config.write_text('[data]\npath = "."\ncolumns = { label = "site" }\nnames = { "Bonn" = "one", "Köln" = "other" }\n')
    told = json.loads(invoke("inspect", config, "--out", folder / "look", "--json").stdout)
    assert told["classes"] == ["one", "other"]
    config.write_text("[model]\nsource = 'x'\n")
    assert "no table [data]" in the_error(invoke("inspect", config, "--out", folder / "look"))
    config.write_text('[data]\npath = "."\ncolumns = { lable = "site" }\n')
    assert "data.columns.lable" in the_error(invoke("inspect", config, "--out", folder / "look"))


def test_a_built_in_task_and_a_path_that_is_none(tmp_path):
    told = json.loads(invoke("inspect", "decoy-mnist:packaged", "--out", tmp_path, "--json").stdout)
    assert told["splits"]["train"]["images"] == 3500 and "patch agrees" in next(iter(told["splits"]["train"]["groups"]))
    assert "does not exist" in the_error(invoke("inspect", tmp_path / "absent", "--out", tmp_path))
