"""Whose images belong together is read from folders and names; splits keep them together, and what cannot be kept is told."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.support.folders import names_of, noise, read, write_rows


def shared(task, who) -> set[str]:
    """Who has images in more than one split, by ``who(name)``."""
    seen = defaultdict(set)
    for split, names in names_of(task).items():
        for name in names:
            seen[who(name)].add(split)
    return {person for person, splits in seen.items() if len(splits) > 1 and person}


@pytest.mark.parametrize(
    ("form", "who"),
    [
        ("{0}/p{1:02d}/{2}.png", lambda name: name.split("/")[1]),
        ("{0}/images/A-{1:02d}/study/{2}.png", lambda name: name.split("/")[2]),
        ("{0}/patient{1:05d}/study1/view{2}.png", lambda name: name.split("/")[1]),
        ("{0}/sub-{1:02d}/anat/{2}.png", lambda name: name.split("/")[1]),
        ("{0}/person{1}_bacteria_{2}.png", lambda name: name.split("/")[1].split("_")[0]),
        ("{0}/P{1:03d}_{2}.png", lambda name: name.split("/")[1].split("_")[0]),
        ("{0}/{1:08d}_{2:03d}.png", lambda name: name.split("/")[1].split("_")[0]),
    ],
)
def test_patients_in_paths_stay_together(tmp_path, form, who):
    """The forms are those of CheXpert, BIDS, Kermany's chest X-rays and NIH ChestX-ray14 among others."""
    for number, name in enumerate(("ill", "sound")):
        for image in range(60):
            noise(tmp_path / form.format(name, 20 * number + image // 6, image))
    task = read(tmp_path)
    assert not shared(task, who) and "with all images of a patient in one split" in task.told
    assert all(9 - 3 <= len(task.splits[split]) <= 2 * 9 + 6 for split in ("validation", "test"))
    assert not any(str(tmp_path) in problem or "p0" in problem for problem in task.problems)


def test_two_eyes_of_one_person(tmp_path):
    for number in range(40):
        for side in ("left", "right"):
            noise(tmp_path / "AB"[number % 2] / f"{number}_{side}.png")
    assert not shared(read(tmp_path), lambda name: name.rpartition("_")[0])


def test_only_some_classes_name_their_patients(tmp_path):
    """Kermany's chest X-rays: NORMAL has numbers of its own kind."""
    for number in range(60):
        noise(tmp_path / "NORMAL" / f"IM-{number:04d}-0001.png", tmp_path / "PNEUMONIA" / f"person{number // 3}_virus_{number}.png")
    assert not shared(read(tmp_path), lambda name: name.split("/")[1].split("_")[0] if "person" in name else "")


def test_patients_in_the_paths_of_a_table(tmp_path):
    """CheXpert has the patient in Path alone."""
    rows = []
    for number in range(60):
        name = f"train/patient{number // 3:05d}/study1/view{number % 3}_frontal.png"
        noise(tmp_path / name)
        rows.append([f"CheXpert-v1.0-small/{name}", number // 3 % 2])
    write_rows(tmp_path / "train.csv", "Path,label", rows)
    assert not shared(read(tmp_path), lambda name: name.split("/")[1])


def test_given_splits_that_share_patients_are_told(tmp_path):
    for number in range(60):
        split = "test" if number % 3 == 0 else "train"
        noise(tmp_path / split / "ill" / f"patient{number // 6:02d}" / f"{number}.png")
        noise(tmp_path / split / "sound" / f"patient{number // 6 + 20:02d}" / f"{number}.png")
    problems = read(tmp_path).problems
    assert any(problem.startswith("20 patients have images in more than one split, such as 'patient00'") for problem in problems)


@pytest.mark.parametrize("folders", [("siteA", "siteB"), ("one", "two", "three")])
def test_few_folders_within_classes_are_told(tmp_path, folders):
    """Too few to be kept apart: images are drawn one by one."""
    for name in ("cat", "dog"):
        for number in range(30):
            noise(tmp_path / name / folders[number % len(folders)] / f"{number}.png")
    task = read(tmp_path)
    assert "class by class" in task.told
    assert any("folders within classes have images in more than one split" in problem for problem in task.problems)


def test_too_few_patients_are_split_and_told(tmp_path):
    for name in ("cat", "dog"):
        for number in range(30):
            noise(tmp_path / name / f"patient{number // 15 + 10 * (name == 'dog')}_{number}.png")
    task = read(tmp_path)
    assert any("is too few to keep apart: splits are made image by image" in problem for problem in task.problems)


@pytest.mark.parametrize(
    "form", ["{0}/{1}.png", "{0}/img_{1:04d}.png", "{0}/IMG_2019_{1}.png", "{0}/2019_{1:04d}.png", "{0}/{0}.{1}.png", "{0}/images/{1}.png"]
)
def test_names_that_tell_nothing(tmp_path, form):
    for name in ("cat", "dog"):
        noise(*(tmp_path / form.format(name, number) for number in range(40)))
    task = read(tmp_path)
    assert "class by class" in task.told and not any("patient" in problem for problem in task.problems)


@pytest.mark.parametrize(("form", "part"), [("slice{2:02d}_scan{1:03d}.png", "scan000"), ("{3}_{2}.png", "anna")])
def test_a_part_that_several_names_share_is_told_and_changes_no_split(tmp_path, form, part):
    people = "anna bert carl dora emil fred gina hans ida jan".split()
    for image in range(60):
        noise(tmp_path / "ab"[image // 6 % 2] / form.format(0, image // 6, image % 6, people[image // 6]))
    task = read(tmp_path)
    assert "class by class" in task.told
    (told,) = (problem for problem in task.problems if "share a part of their names" in problem)
    assert f"such as {part!r} in a/" in told and "name it in a table with the columns filename, label and patient" in told


@pytest.mark.parametrize("form", ["{0}.{1}.png", "IMG_2020_{1:04d}.png", "{0}_{1:04d}.png", "{1}.png"])
def test_names_that_are_counted_within_a_class_share_no_part(tmp_path, form):
    for number, name in enumerate(("cat", "dog")):
        for image in range(20):
            noise(tmp_path / name / form.format(name, 100 * number * ("IMG" in form) + image))
    assert not any("share a part" in problem for problem in read(tmp_path).problems)
