"""The suspects' list and its files: what they say is what the run says, and other programs read them."""

import contextlib
import csv
import io
import json
import stat

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from rightreasons.cli.suspects import tell_suspects
from rightreasons.common.progress import Silent
from rightreasons.data.loading import StoredImages
from rightreasons.data.mask_files import read_mask
from rightreasons.errors import MissingExtra
from rightreasons.pipeline.exchange import suspects as room
from rightreasons.pipeline.exchange.suspect_files import COLUMNS, check_formats, write_suspects
from rightreasons.pipeline.exchange.suspects import find_suspects, measure_strength
from rightreasons.repair.propagate import Spread
from tests.support.helpers import invoke
from tests.support.review import copy_run

# pycocotools itself is behind NumPy 2 here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def written(exchanged, tmp_path_factory):
    out = tmp_path_factory.mktemp("suspects") / "out"
    formats = [part for name in ("csv", "parquet", "masks", "coco", "label-studio") for part in ("--as", name)]
    result = invoke("suspects", exchanged / "run", *formats, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout)


def rows_of(folder):
    with (folder / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_training_image_is_listed_by_its_file(written, loaded):
    folder, said = written
    rows = rows_of(folder)
    assert tuple(rows[0]) == COLUMNS
    assert sorted(int(row["image"]) for row in rows) == list(range(len(loaded.train.entries))) and said["images"] == len(rows)
    assert {int(row["image"]): row["filepath"] for row in rows} == {index: entry.name for index, entry in enumerate(loaded.train.entries)}
    assert all(row["label"] == row["filepath"].split("/")[-2] for row in rows)
    found = [int(row["image"]) for row in rows if row["found_by"]]
    assert set(found) == set(loaded.selection.indices.tolist()) and said["marked"] == len(found), "a network without feature maps spreads nothing"
    assert [bool(row["found_by"]) for row in rows] == sorted((bool(row["found_by"]) for row in rows), reverse=True), "suspects come first"
    assert (
        said["recall"] is None
        and said["precision"] is None
        and said["judged_spurious"] == len(found)
        and all(row["probability"] == "" for row in rows)
    )


def test_where_only_inspected_images_can_be_listed_the_first_sentence_says_so(exchanged, loaded, tmp_path):
    said = invoke("suspects", exchanged / "run", "--out", tmp_path / "out")
    assert said.exit_code == 0, said.stderr
    count, images = len(loaded.selection), len(loaded.train.entries)
    lines = said.stdout.splitlines()
    assert lines[0].startswith(f"{count} of the {count} inspected images have something that was judged spurious. The other {images - count} ")
    assert "could not be searched" in lines[0] and "Filter it by found_by: verdict" in said.stdout


def test_the_place_is_the_mask_s(written, loaded):
    folder, _ = written
    masks = dict(zip(loaded.selection.indices.tolist(), loaded.masks, strict=True))
    for row in rows_of(folder):
        if not row["found_by"]:
            assert not any(row[key] for key in ("x", "y", "width", "height", "area", "place", "mask", "strength"))
            continue
        mask = masks[int(row["image"])].numpy()
        columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        expected = [columns[0] / 16, lines[0] / 16, (columns[-1] + 1 - columns[0]) / 16, (lines[-1] + 1 - lines[0]) / 16, mask.mean()]
        assert [float(row[key]) for key in ("x", "y", "width", "height", "area")] == pytest.approx(expected, abs=1e-5)
        with Image.open(folder / row["mask"]) as picture:
            assert np.array_equal(read_mask(picture, lossy=False), mask), "a mask as this package reads masks"


@torch.no_grad()
def test_the_strength_is_the_fall_of_the_answer_s_probability(loaded, generator):
    images = StoredImages(loaded.train, loaded.selection.indices)[:3]
    masks, others = loaded.masks[:3], torch.rand(2, *images.shape[1:], generator=generator)
    found = measure_strength(loaded.model, images, masks, others)
    for row in range(3):
        before = loaded.model(images[row : row + 1]).softmax(1)[0]
        answer = int(before.argmax())
        falls = []
        for other in others:
            swapped = images[row].clone()
            swapped[:, masks[row]] = other[:, masks[row]]
            falls.append(float(before[answer] - loaded.model(swapped[None]).softmax(1)[0, answer]))
        assert int(found.answers[row]) == answer
        assert float(found.fall[row]) == pytest.approx(sum(falls) / 2, abs=1e-5)


def test_parquet_has_the_rows_of_the_csv_with_types(written):
    folder, _ = written
    table = pyarrow.parquet.read_table(folder / "suspects.parquet")
    assert tuple(table.column_names) == COLUMNS
    for ours, text in zip(table.to_pylist(), rows_of(folder), strict=True):
        assert {key: "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in ours.items()} == text


def test_pycocotools_reads_the_masks(written, loaded):
    folder, _ = written
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "coco.json")
    masks = dict(zip(loaded.selection.indices.tolist(), loaded.masks, strict=True))
    spurious = coco.getCatIds(catNms=["spurious"])
    assert set(coco.getImgIds()) == set(masks)
    for index, mask in masks.items():
        own = [coco.annToMask(each) for each in coco.loadAnns(coco.getAnnIds(imgIds=[index], catIds=spurious))]
        assert np.array_equal(np.any(own, 0), mask.numpy())
        assert coco.loadImgs([index])[0]["file_name"] == loaded.train.entries[index].name
    for each in coco.loadAnns(coco.getAnnIds()):
        assert each["id"] > 0 and each["area"] == coco.annToMask(each).sum()
        left, top, width, height = each["bbox"]
        assert coco.annToMask(each)[top : top + height, left : left + width].sum() == each["area"]
    marks: list[dict] = list(map(dict, coco.loadAnns(coco.getAnnIds())))  # the stubs of pycocotools know no attributes
    named = {(each["attributes"]["segment"], coco.loadCats([each["category_id"]])[0]["name"]) for each in marks}
    assert named == {("S1", "spurious"), ("S2", "relevant"), ("S3", "unsure")}


def test_the_files_are_their_owner_s_alone(written):
    folder, said = written
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 == stat.S_IMODE((folder / "masks").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert set(said["files"]) == {str(folder / name) for name in ("suspects.csv", "suspects.parquet", "masks", "coco.json", "label-studio.json")}


def test_where_the_features_tell_images_that_nobody_inspected_are_listed(loaded, tmp_path, monkeypatch):
    """The probe is tested in test_propagate; here its scores are made by hand."""
    others = sorted(set(range(len(loaded.train.entries))) - set(loaded.selection.indices.tolist()))

    def corners(model, dataset, inspected, spurious, relevant, clear, *, progress):
        scores = torch.full((len(dataset), 4, 4), -1e3)
        scores[others[:3], 3, 3] = torch.tensor([3.0, 1.0, 2.0])
        return Spread(scores, 0.9, precision=0.75)

    monkeypatch.setattr(room, "spread_verdicts", corners)
    found = find_suspects(loaded, Silent())
    written = write_suspects(found, tmp_path / "out", ["csv", "coco", "label-studio"], address="", reporter=Silent())
    assert written.marked == len(loaded.selection) + 3 and found.recall == 0.9 and found.precision == 0.75
    told = tell_suspects(found, written.images, written.marked)
    assert f"{found.judged} of the {len(loaded.selection)} inspected images have something that was judged spurious, and in 3 of the other" in told
    assert "75% of the inspected images in which it finds something have it" in told and "false alarms: look at every image" in told
    rows = [row for row in rows_of(tmp_path / "out") if row["found_by"] == "spread"]
    assert [int(row["image"]) for row in rows] == [others[0], others[2], others[1]], "the most probable first"
    assert [float(row["probability"]) for row in rows] == pytest.approx(torch.tensor([3.0, 2.0, 1.0]).sigmoid().tolist(), abs=1e-5)
    assert {row["place"] for row in rows} == {"bottom right"} and all(float(row["x"]) > 0.5 for row in rows)
    tasks = json.loads((tmp_path / "out" / "label-studio.json").read_text())
    (task,) = [task for task in tasks if task["data"]["number"] == others[0]]
    assert task["predictions"][0]["score"] == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-5)
    annotation = next(each for each in json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"] if each["image_id"] == others[0])
    assert "segment" not in annotation["attributes"] and annotation["attributes"]["found_by"] == "spread"


def test_label_studio_gets_tasks_with_pre_annotations(written, loaded):
    """The keys that its documentation asks for: data, predictions, and in each result from_name, to_name, type, sizes and the brush's value."""
    folder, _ = written
    tasks = json.loads((folder / "label-studio.json").read_text())
    config = (folder / "label-studio.xml").read_text()
    assert len(tasks) == len(loaded.selection)
    for task in tasks:
        assert task["data"]["image"].startswith("/data/local-files/?d=") and task["data"]["image"].endswith(task["data"]["file"])
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            assert result["type"] == "brushlabels" and result["value"]["format"] == "rle"
            assert f'name="{result["from_name"]}"' in config and f'name="{result["to_name"]}" value="$image"' in config
            assert f'value="{result["value"]["brushlabels"][0]}"' in config
            assert (result["original_width"], result["original_height"], result["image_rotation"]) == (16, 16, 0)


def test_bad_input_is_one_error(exchanged, run, monkeypatch):
    def refused(*arguments):
        result = invoke("suspects", *arguments)
        assert result.exit_code == 1 and result.stdout == "", result.output
        return " ".join(result.stderr.split())

    assert "--as xlsx: expected one of csv, parquet, masks, coco, label-studio" in refused(exchanged / "run", "--as", "xlsx")
    assert "is not a run folder" in refused(exchanged)
    lines = (run / "verdicts.jsonl").read_text().replace('"spurious"', '"relevant"')
    (run / "verdicts.jsonl").write_text(lines)
    assert "nothing is judged spurious" in refused(run)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"rightreasons\[parquet\]"):
        check_formats(["parquet"])


def test_the_default_is_a_table_in_the_run_folder(exchanged, tmp_path):
    run = copy_run(exchanged, tmp_path / "copy")
    result = invoke("suspects", run)
    assert result.exit_code == 0 and "are not to be forwarded" in " ".join(result.stdout.split())
    assert [path.name for path in (run / "suspects").iterdir()] == ["suspects.csv"]
