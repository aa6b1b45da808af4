"""Marks of other programs: what their documented files say reaches the run, round trips change nothing, and what is unclear is refused."""

import json
import zipfile

import pytest
import torch
import torch.nn.functional as F

from rightreasons.common.progress import Silent
from rightreasons.data.annotations.read import read_annotations
from rightreasons.data.annotations.run_lengths import from_coco, to_runs
from rightreasons.data.names import Names, list_names, read_number
from rightreasons.errors import ConfigError, DataError
from rightreasons.pipeline.exchange import take
from rightreasons.pipeline.exchange.suspect_files import at_own_size, write_suspects
from rightreasons.pipeline.exchange.suspects import find_suspects
from rightreasons.pipeline.exchange.take import import_annotations, read_labels
from rightreasons.records import HUMAN, settle_verdicts
from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import invoke, read_lines

BY = ("--by", "Dr Ann")


def taken(run, file, *arguments):
    result = invoke("import", run, file, *BY, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(run, file, *arguments, by=BY) -> str:
    before = {path.name: path.read_bytes() for path in run.glob("*.jsonl")}
    result = invoke("import", run, file, *by, *arguments)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("error: ") == 1, result.output
    assert {path.name: path.read_bytes() for path in run.glob("*.jsonl")} == before, "nothing is written"
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def training(loaded):
    """The files of the training images."""
    return list_names(loaded.train)


@pytest.fixture(scope="module")
def names(loaded, training):
    """The files of the inspected images, by number."""
    return {index: training[index] for index in loaded.selection.indices.tolist()}


def forget(run):
    """Calls every segment relevant, so that no mask is left."""
    lines = [line | {"value": "relevant"} for line in read_lines(run / "verdicts.jsonl")]
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not load_run(RunFolder(run)).found


@pytest.fixture
def exported(loaded, tmp_path):
    """The suspects' COCO and tasks."""
    write_suspects(find_suspects(loaded, Silent()), tmp_path / "out", ["coco", "label-studio"], address="http://here/", reporter=Silent())
    return tmp_path / "out"


def test_suspects_to_coco_and_back_are_the_same_masks(exported, run, loaded):
    forget(run)
    said = taken(run, exported / "coco.json")
    assert said == {"format": "COCO", "verdicts": 18, "drawings": 0, "left_out": {}}
    again = load_run(RunFolder(run))
    assert torch.equal(again.masks, loaded.masks) and torch.equal(again.protected, loaded.protected)
    given = [verdict for verdict in again.verdicts if verdict.source == HUMAN]
    assert {(verdict.by, verdict.origin) for verdict in given} == {("Dr Ann", "COCO: coco.json")} and all(verdict.at for verdict in given)


def test_masks_alone_become_drawings_with_the_same_pixels(exported, run, loaded):
    """As a tool leaves them that keeps no attributes."""
    forget(run)
    content = json.loads((exported / "coco.json").read_text())
    for annotation in content["annotations"]:
        del annotation["attributes"]
    (run / "plain.json").write_text(json.dumps(content))
    said = taken(run, run / "plain.json")
    assert said["verdicts"] == 0 and said["drawings"] == 6 and said["left_out"] == {"pixels that are called unsure": 6}
    again = load_run(RunFolder(run))
    assert torch.equal(again.masks, loaded.masks)
    assert {(drawing.by, drawing.origin) for drawing in again.drawings} == {("Dr Ann", "COCO: plain.json")}


def test_masks_of_larger_files_come_back_whole(exported, run, loaded):
    """Files of three times the network's side: each pixel is nine."""
    forget(run)
    content = json.loads((exported / "coco.json").read_text())
    for image in content["images"]:
        image["height"], image["width"] = 48, 48
    for annotation in content["annotations"]:
        small = from_coco(annotation["segmentation"]["counts"], (16, 16))
        large = small.repeat_interleave(3, 0).repeat_interleave(3, 1)
        annotation["segmentation"] = {"size": [48, 48], "counts": to_runs(large.T.flatten())}
    (run / "large.json").write_text(json.dumps(content))
    assert taken(run, run / "large.json")["verdicts"] == 18
    assert torch.equal(load_run(RunFolder(run)).masks, loaded.masks)


@pytest.mark.parametrize("size", [(40, 56), (16, 25), (11, 13)])
def test_masks_of_other_sizes_come_back_within_a_pixel(exported, run, loaded, size):
    """Files whose sides are no multiples of the network's 16: as they are exported, and back."""
    forget(run)
    content = json.loads((exported / "coco.json").read_text())
    for image in content["images"]:
        image["height"], image["width"] = size
    for annotation in content["annotations"]:
        small = from_coco(annotation["segmentation"]["counts"], (16, 16))
        annotation["segmentation"] = {"size": list(size), "counts": to_runs(at_own_size(small, size).T.flatten())}
        del annotation["attributes"]
    (run / "other.json").write_text(json.dumps(content))
    assert taken(run, run / "other.json")["drawings"] == 6
    again = load_run(RunFolder(run)).masks
    near = F.max_pool2d(torch.cat([again, loaded.masks])[None].float(), 3, 1, 1)[0].bool()
    assert not (loaded.masks & ~near[: len(again)]).any() and not (again & ~near[len(again) :]).any()


def test_label_studio_s_corrected_tasks_come_back(exported, run, loaded):
    """Its export has the corrected regions in annotations; one S1 was called relevant, and one region was redrawn elsewhere."""
    forget(run)
    tasks = json.loads((exported / "label-studio.json").read_text())
    for task in tasks:
        result = task.pop("predictions")[0]["result"]
        dropped = {"result": [], "was_cancelled": True, "updated_at": "2026-01-03T00:00:00Z"}
        old = {"result": [], "updated_at": "2026-01-01T00:00:00Z"}
        task["annotations"] = [{"result": result, "completed_by": 1, "updated_at": "2026-01-02T00:00:00Z"}, old, dropped]
    first, second = (task["annotations"][0]["result"] for task in tasks[:2])
    flipped = next(each for each in first if each["meta"]["text"] == ["S1"])
    flipped["value"]["brushlabels"] = ["relevant"]
    redrawn = next(each for each in second if each["meta"]["text"] == ["S1"])
    redrawn |= {"type": "rectanglelabels", "value": {"x": 75, "y": 75, "width": 25, "height": 25, "rotation": 0, "rectanglelabels": ["spurious"]}}
    (run / "export.json").write_text(json.dumps(tasks))
    said = taken(run, run / "export.json")
    assert (said["format"], said["verdicts"], said["drawings"]) == ("Label Studio", 17, 1)
    again, numbers = load_run(RunFolder(run)), [task["data"]["number"] for task in tasks]
    settled, row_of = settle_verdicts(again.verdicts), {index: row for row, index in enumerate(again.selection.indices.tolist())}
    assert settled[numbers[0], 0].value == "relevant" and settled[numbers[2], 0].value == "spurious"
    corner = torch.zeros(16, 16, dtype=torch.bool)
    corner[12:, 12:] = True
    assert torch.equal(again.masks[row_of[numbers[1]]], corner)
    for number in numbers[2:]:
        assert torch.equal(again.masks[row_of[number]], loaded.masks[row_of[number]])


# The form of its documentation: tasks with data, annotations, and results with from_name, to_name, type, sizes and a value in per cent.
LABEL_STUDIO = """[{
  "id": 1, "created_at": "2021-03-09T21:52:49.513742Z", "project": 83,
  "data": {"image": "http://localhost:8080/data/upload/1/0a1b2c3d-NAME"},
  "annotations": [{"id": "1001", "was_cancelled": false, "ground_truth": false, "completed_by": 10, "result": [
    {"from_name": "S1", "id": "a", "to_name": "image", "type": "choices", "value": {"choices": ["Unsure"]}},
    {"from_name": "tag", "id": "b", "to_name": "img", "type": "rectanglelabels", "original_width": 160, "original_height": 160, "image_rotation": 0,
     "value": {"x": 0, "y": 0, "width": 25, "height": 25, "rotation": 0, "rectanglelabels": ["Sticker"]}},
    {"from_name": "tag", "id": "c", "to_name": "img", "type": "polygonlabels", "original_width": 160, "original_height": 160, "image_rotation": 0,
     "value": {"points": [[50, 50], [100, 50], [100, 100], [50, 100]], "polygonlabels": ["Part"]}},
    {"from_name": "tag", "id": "d", "to_name": "img", "type": "ellipselabels", "original_width": 160, "original_height": 160, "image_rotation": 0,
     "value": {"x": 50, "y": 50, "radiusX": 5, "radiusY": 5, "rotation": 0, "ellipselabels": ["Dust"]}},
    {"from_name": "overall", "id": "e", "to_name": "image", "type": "choices", "value": {"choices": ["spurious"]}},
    {"from_name": "text", "id": "f", "to_name": "image", "type": "textarea", "value": {"text": ["..."]}}
  ]}],
  "predictions": []
}]"""


def test_label_studio_s_documented_export(run, names, training):
    """Verdicts by choices named after segments, shapes by their labels, and an image that was uploaded and got a prefix."""
    number, name = next((number, name) for number, name in names.items() if len(Names(training).find(name.split("/")[-1])) == 1)
    (run / "ls.json").write_text(LABEL_STUDIO.replace("NAME", name.split("/")[-1]))
    said = taken(run, run / "ls.json", "--label", "Sticker=spurious", "--label", "part=relevant", "--label", "DUST=skip")
    assert said["verdicts"] == said["drawings"] == 1
    assert said["left_out"] == {"a label that is skipped": 2, "a mark without an area that names no segment": 1}
    again = load_run(RunFolder(run))
    assert settle_verdicts(again.verdicts)[number, 0].value == "unsure"
    (drawing,) = again.drawings
    assert drawing.index == number and bool(drawing.painted[:4, :4].all()) and drawing.painted.sum() == 16
    assert bool(drawing.erased[8:, 8:].all()) and drawing.erased.sum() == 64


# The form of CVAT's documentation, version 1.1, for images.
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><name>segmentation</name><mode>annotation</mode><labels><label><name>spurious</name></label></labels></task></meta>
  <image id="0" name="FIRST" width="32" height="16">
    <box label="plate" occluded="0" xtl="0.00" ytl="0.00" xbr="8.00" ybr="4.00" z_order="1" source="manual"></box>
    <mask label="plate" source="manual" occluded="0" rle="3, 2, 5, 2" left="20" top="8" width="6" height="2" z_order="0"></mask>
    <polyline label="scratch" points="1,1;2,2" occluded="0" z_order="2"></polyline>
  </image>
  <image id="1" name="SECOND" width="16" height="16">
    <polygon label="part" source="manual" occluded="0" points="2.00,3.00;6.00,3.00;6.00,8.00;2.00,8.00" z_order="0"></polygon>
    <ellipse label="plate" cx="12.00" cy="12.00" rx="3.00" ry="3.00" occluded="0" z_order="0"></ellipse>
    <tag label="relevant" source="manual"><attribute name="segment">S1</attribute></tag>
    <tag label="Spurious" source="manual"><attribute name="segment">S3</attribute></tag>
    <tag label="good_frame" source="manual"></tag>
  </image>
  <image id="2" name="elsewhere/other.png" width="16" height="16"><box label="plate" xtl="0" ytl="0" xbr="8" ybr="8"></box></image>
</annotations>
"""


def test_cvat_s_documented_xml_also_in_its_zip(run, names):
    (first, first_name), (second, second_name) = list(names.items())[:2]
    text = CVAT.replace("FIRST", first_name).replace("SECOND", second_name)
    with zipfile.ZipFile(run / "task.zip", "w") as archive:
        archive.writestr("images/x.png", b"")
        archive.writestr("annotations.xml", text)
    (draw,) = (region.draw for region in read_annotations(run / "task.zip").regions if region.where.endswith("<mask> number 2"))
    assert draw is not None
    mask = draw()
    assert mask.nonzero().tolist() == [[8, 23], [8, 24], [9, 24], [9, 25]], "runs go row by row inside the box"
    said = taken(run, run / "task.zip", "--label", "plate=spurious", "--label", "part=relevant")
    assert said["format"] == "CVAT" and said["verdicts"] == 2 and said["drawings"] == 2
    assert said["left_out"] == {"a label that is skipped": 2, "an image that the run did not inspect": 1}
    again = load_run(RunFolder(run))
    settled = settle_verdicts(again.verdicts)
    assert (settled[second, 0].value, settled[second, 2].value) == ("relevant", "spurious")
    drawings = {drawing.index: drawing for drawing in again.drawings}
    assert bool(drawings[first].painted[:4, :4].all()), "32 pixels across are the network's 16"
    part, disc = drawings[second].erased, drawings[second].painted
    assert bool(part[3:8, 2:6].all()) and part.sum() == 20 and bool(disc[12, 12]) and not bool(disc[8, 8])


def test_a_box_alone_is_coco_too(run, names):
    number, name = next(iter(names.items()))
    images = [{"id": 7, "file_name": name, "width": 16, "height": 16}]
    content = {"images": images, "categories": [{"id": 1, "name": "spurious"}], "annotations": []}
    boxed = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
    outlined = {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [[8, 8, 12, 8, 12, 10, 8, 10]]}
    content["annotations"] = [boxed, outlined]
    (run / "boxes.json").write_text(json.dumps(content))
    assert taken(run, run / "boxes.json")["drawings"] == 1
    painted = load_run(RunFolder(run)).drawings[0].painted
    assert painted.sum() == 12 + 8 and bool(painted[2:6, 1:4].all()) and bool(painted[8:10, 8:12].all())


def test_marks_on_a_picture_that_lies_on_its_side_are_refused(run, names, monkeypatch):
    """As a program gives them that does not apply EXIF's rotation: stretched to the image they would lie elsewhere."""
    monkeypatch.setattr(take, "own_size", lambda dataset, index: (16, 25))
    mark = {"segmentation": [], "bbox": [0, 0, 4, 4]}
    file = run / "marks.json"
    file.write_text(coco(image={"width": 16, "height": 25}, mark=mark).replace("NAME", next(iter(names.values()))))
    said = refused(run, file)
    assert "annotation 5" in said and "the mark is on a picture of 16 x 25 pixels" in said and "has 25 x 16: mark it in a program" in said
    file.write_text(coco(image={"width": 50, "height": 32}, mark=mark).replace("NAME", next(iter(names.values()))))
    assert taken(run, file)["drawings"] == 1


def coco(**changes):
    """A file with one mark, and something wrong with it."""
    image = {"id": 1, "file_name": "NAME", "width": 16, "height": 16} | changes.pop("image", {})
    mark = {"id": 5, "image_id": 1, "category_id": 1, "segmentation": {"size": [16, 16], "counts": [0, 256]}} | changes.pop("mark", {})
    return json.dumps({"images": [image], "categories": [{"id": 1, "name": "spurious"}], "annotations": [mark]} | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither JSON nor XML"),
        ("{", "neither JSON nor XML"),
        ("{}", "JSON of another form: expected COCO's instances"),
        ("[1]", "JSON of another form"),
        ("<html></html>", "its root is <html>"),
        ("<annotations>", "it is not XML"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations>&a;</annotations>', "DOCTYPE or entities"),
        ("<annotations><track/></annotations>", "CVAT for images 1.1"),
        ('<annotations><image name="a" width="16"/></annotations>', "<image> has height = None; expected a number"),
        (coco(mark={"category_id": 9}), "annotation 5 has category_id = 9, which the file does not define"),
        (coco(image={"width": 1.5}), "1.5 x 16 pixels; expected whole numbers"),
        (coco(image={"width": 10**6, "height": 10**6}), "more than the 134 megapixels"),
        (coco(mark={"segmentation": {"size": [16, 16], "counts": [1, 2]}}), "annotation 5, image NAME: the runs cover 3 pixels"),
        (coco(mark={"segmentation": {"size": [8, 8], "counts": [64]}}), "runs for [8, 8] pixels, and the image has [16, 16]"),
        (coco(mark={"segmentation": [[1, 2, 3]]}), "annotation 5, image NAME"),
        (coco(categories=[{"id": 1, "name": "ruler"}]), "what the label 'ruler' stands for. Say it, such as --label 'ruler=spurious'"),
        (coco(annotations=[]), "has nothing for this run (it has no marks)"),
        (coco(image={"file_name": "nowhere.png"}), "has nothing for this run (an image that the run did not inspect: 1)"),
        ('[{"id": 3, "data": {"text": "x"}, "annotations": [{"result": []}]}]', "task 3 names no image"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_that_names_the_place(run, text, said, names):
    (run / "marks").write_text(text.replace("NAME", next(iter(names.values()))))
    name = next(iter(names.values()))
    assert said.replace("NAME", name) in refused(run, run / "marks")


def test_other_bad_input(run, tmp_path, names):
    (run / "good.json").write_text(coco().replace("NAME", next(iter(names.values()))))
    assert "cannot read" in refused(run, tmp_path / "none.json")
    assert "add --by NAME" in refused(run, run / "good.json", by=())
    assert "'odd' is not a verdict" in refused(run, run / "good.json", "--label", "ruler=odd")
    (run / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "is not text in UTF-8" in refused(run, run / "bytes")
    with zipfile.ZipFile(run / "two.zip", "w") as archive:
        archive.writestr("a.xml", CVAT)
        archive.writestr("b.json", "{}")
    assert "has 2 files of marks" in refused(run, run / "two.zip")
    for text in ("ruler", "=spurious"):
        with pytest.raises(ConfigError, match="--label"):
            read_labels([text])
    two = json.dumps({"type": "choices", "from_name": "S1", "value": {"choices": ["spurious", "relevant"]}})
    (run / "two.json").write_text(f'[{{"data": {{"image": "{next(iter(names.values()))}"}}, "annotations": [{{"result": [{two}]}}]}}]')
    assert "S1 is called both spurious and relevant" in refused(run, run / "two.json")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert "is not a run folder" in " ".join(invoke("import", fresh, run / "good.json", *BY).stderr.split())


def test_a_verdict_of_an_import_is_traced_and_old_lines_still_read(exported, run):
    before = read_lines(run / "verdicts.jsonl")
    assert all("origin" not in line for line in before)
    taken(run, exported / "coco.json")
    lines = read_lines(run / "verdicts.jsonl")
    assert lines[: len(before)] == before and {line["origin"] for line in lines[len(before) :]} == {"COCO: coco.json"}


def test_an_image_is_found_by_what_it_is_called():
    names = Names(["train/bolt/05.png", "train/nut/05.png", "train/nut/07.png"])
    assert names.find("train/nut/05.png") == [1] == names.find("nut/05.png") == names.find("/home/ann/images/train/nut/05.png")
    assert names.find("05.png") == [0, 1], "not clear"
    assert names.find("validation/nut/05.png") == [], "a file of that name in another split"
    assert names.find("0a1b2c3d-07.png") == [2] == names.find("upload/1/0a1b2c3d-07.png")
    assert names.find("07.jpg") == names.find("") == []


def test_images_that_lie_in_no_file_go_by_number(in_memory):
    dataset = in_memory(torch.rand(3, 1, 4, 4), torch.zeros(3))
    assert list_names(torch.utils.data.Subset(dataset, [2, 0])) == ["rightreasons-000002.png", "rightreasons-000000.png"]
    assert [read_number(name) for name in ("rightreasons-000012.png", "folder/rightreasons-1234567.png", "image-000012.png")] == [12, 1234567, None]


def test_two_images_of_one_name_are_not_guessed(run, training):
    with pytest.raises(DataError, match="training images are called"):
        known = Names(training)
        twice = next(name.split("/")[-1] for name in training if len(known.find(name.split("/")[-1])) > 1)
        (run / "twice.json").write_text(coco().replace("NAME", twice))
        import_annotations(RunFolder(run), run / "twice.json", by="Dr Ann", labels={})
