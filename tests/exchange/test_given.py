"""Heatmaps and segments that somebody else made: read in every form, checked against the network's input, and used by find."""

import io
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from rightreasons.data import open_data
from rightreasons.data.loading import StoredImages
from rightreasons.errors import DataError, UnreadableImage
from rightreasons.explain.given import GivenHeatmaps, open_heatmaps, open_regions, read_heatmap
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import edit, invoke, write_scripted

MAP = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


def save(path, kind, array=MAP):
    path = path.with_suffix(kind)
    if kind == ".npy":
        np.save(path, array)
    elif kind == ".npz":
        np.savez(path, heatmap=array, other=np.zeros(3))
    elif kind == ".safetensors":
        safetensors.numpy.save_file({"heatmap": array}, path)
    else:
        Image.fromarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".safetensors", ".png"])
def test_every_kind_of_file_has_its_numbers(tmp_path, kind):
    expected = MAP if kind != ".png" else MAP.clip(0, 1)
    assert np.abs(read_heatmap(save(tmp_path / "map", kind)) - expected).max() <= 0.5 / 255


def test_whole_numbers_and_sixteen_bits(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4).reshape(2, 2))
    assert read_heatmap(tmp_path / "a.npy").tolist() == [[0, 1], [2, 3]]
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "b.png")
    assert read_heatmap(tmp_path / "b.png").tolist() == [[0, 1]]
    np.savez(tmp_path / "c.npz", np.ones((2, 2)))
    assert read_heatmap(tmp_path / "c.npz").tolist() == [[1, 1], [1, 1]], "an array alone may be called anything"


def broken(path):
    """Files that hold no heatmap, and why."""
    (path / "torn.npy").write_bytes(b"\x93NUMPY")
    (path / "torn.npz").write_bytes(b"PK")
    (path / "torn.safetensors").write_bytes(b"\x00" * 4)
    (path / "torn.png").write_bytes(b"\x89PNG")
    np.save(path / "words.npy", np.array(["a"]))
    np.save(path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(path / "nan.npy", np.array([[np.nan]]))
    np.savez(path / "two.npz", a=MAP, b=MAP)
    return sorted(path.iterdir())


def test_a_file_without_a_heatmap_is_named(tmp_path):
    said = {}
    for file in broken(tmp_path):
        with pytest.raises(UnreadableImage, match=file.name) as caught:
            read_heatmap(file)
        said[file.name] = str(caught.value)
    assert "not finite" in said["nan.npy"] and "holds 2 arrays (a, b)" in said["two.npz"] and "not numbers" in said["words.npy"]
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="a picture in colours"):
        read_heatmap(tmp_path / "colour.png")


@pytest.fixture
def images(in_memory, generator):
    return StoredImages(in_memory(torch.rand(4, 3, 4, 4, generator=generator), torch.zeros(4)), [2, 0])


@pytest.fixture
def constant(build_seeded):
    return build_seeded(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)))


NAMES = ["a/1.png", "b/1.png", "b/2.png", "rightreasons-000003.png"]


def opened(folder) -> GivenHeatmaps:
    return open_heatmaps(folder.name, root=folder.parent)


def test_heatmaps_lie_as_the_images_do_and_channels_are_summed(tmp_path, images, constant):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    save(tmp_path / "a" / "1", ".npy")
    save(tmp_path / "b" / "2", ".npy", np.stack([MAP, MAP, -MAP]))
    notes = []
    found = opened(tmp_path).read(constant, images, NAMES, notes.append)
    assert torch.equal(found.heatmaps, torch.from_numpy(np.stack([MAP, MAP]))) and notes == []
    assert torch.equal(found.targets, constant(images[:]).argmax(1)) and found.completeness_error.isnan().all()
    (tmp_path / "b" / "2.npy").rename(tmp_path / "2.npy")
    assert torch.equal(opened(tmp_path).read(constant, images, NAMES, notes.append).heatmaps, found.heatmaps), "2 is clear without its folder"


def test_images_in_no_file_go_by_their_number(tmp_path, in_memory, constant):
    images = StoredImages(in_memory(torch.rand(4, 3, 4, 4), torch.zeros(4)), [3])
    save(tmp_path / "3", ".npy")
    assert opened(tmp_path).read(constant, images, NAMES, print).heatmaps[0].tolist() == MAP.tolist()


def test_what_is_missing_or_damaged_is_named_and_left_out(tmp_path, images, constant):
    (tmp_path / "b").mkdir()
    save(tmp_path / "b" / "2", ".npy")
    notes = []
    found = opened(tmp_path).read(constant, images, NAMES, notes.append)
    assert not found.heatmaps[1].any() and "1 of 2 inspected images" in notes[0] and "image 0: there is no a/1" in notes[0]
    (tmp_path / "b" / "2.npy").write_bytes(b"torn")
    with pytest.raises(DataError, match="none of the 2 inspected images has a heatmap in"):
        opened(tmp_path).read(constant, images, NAMES, notes.append)


def test_another_shape_or_an_unclear_name_stops_the_run(tmp_path, images, constant):
    save(tmp_path / "2", ".npy", np.zeros((8, 8)))
    with pytest.raises(DataError, match=r"2.npy has the shape \(8, 8\); expected \(4, 4\), which is the network's input"):
        opened(tmp_path).read(constant, images, NAMES, print)
    save(tmp_path / "2", ".npy")
    save(tmp_path / "1", ".npy")
    with pytest.raises(DataError, match="could be that of 2 training images, a/1.png among them"):
        opened(tmp_path).read(constant, images, NAMES, print)


def test_a_folder_without_heatmaps_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "has no heatmaps"), ("none", "is no folder with heatmaps")):
        with pytest.raises(DataError, match=said):
            open_heatmaps(name, root=tmp_path)


def test_segments_of_a_file(tmp_path):
    marks = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]},
    ]
    content = {"images": [{"id": 1, "file_name": "b/2.png", "width": 4, "height": 4}], "categories": [{"id": 1, "name": "x"}], "annotations": marks}
    (tmp_path / "marks.json").write_text(json.dumps(content))
    regions = open_regions("marks.json", NAMES, root=tmp_path)
    assert regions.cut(2, (4, 4), (8, 8)).tolist() == [[1, 1, 0, 0], [1, 2, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]]
    assert not regions.cut(0, (4, 4), None).any(), "an image without marks is one region"
    with pytest.raises(DataError, match="no mark with an area on a training image"):
        open_regions("marks.json", ["c/2.png"], root=tmp_path)
    with pytest.raises(DataError, match="2 training images are called"):
        open_regions("marks.json", ["x/b/2.png", "y/b/2.png"], root=tmp_path)


def test_segments_of_a_picture_that_lies_on_its_side_are_refused(tmp_path):
    mark = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    image = {"id": 1, "file_name": "b/2.png", "width": 4, "height": 8}
    (tmp_path / "marks.json").write_text(json.dumps({"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": [mark]}))
    regions = open_regions("marks.json", NAMES, root=tmp_path)
    assert regions.cut(2, (4, 4), (8, 4)).any() and regions.cut(2, (4, 4), (40, 20)).any()
    with pytest.raises(DataError, match=r"annotation 1, image b/2.png: the mark is on a picture of 4 x 8 pixels, .* has 80 x 40: mark it"):
        regions.cut(2, (4, 4), (40, 80))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('method = "given"', "path and method"),
        ('path = "maps"', "path and method"),
        ('computed = "integrated-gradients"', "computed is for method"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(exchanged, tmp_path, change, said):
    config = write_scripted(tmp_path, changes={"baselines = 4": f"baselines = 4\n{change}"})
    result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 1 and said in " ".join(result.stderr.split())


def test_find_with_given_heatmaps_and_segments(exchanged, tmp_path):
    """The same images are inspected as without them; one heatmap is damaged, and one is missing."""
    config = write_scripted(tmp_path, changes={"size = 12": "size = 6"})
    edit(config, "baselines = 4", 'baselines = 4\nmethod = "given"\npath = "maps"')
    edit(config, "components = 3", 'components = 3\nmethod = "given"\nregions = "marks.json"')
    inspected = RunFolder(exchanged / "run").load_selection().indices.tolist()
    names = [f"{name}/{number:02d}.png" for name in ("bolt", "nut") for number in range(40)]
    maps, images, marks = {}, [], []
    random = np.random.default_rng(0)
    for place, name in enumerate(names):
        file = tmp_path / "maps" / name.replace(".png", ".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        maps[name] = random.random((16, 16), dtype=np.float32)
        np.save(file, maps[name])
        images.append({"id": place, "file_name": name, "width": 16, "height": 16})
        marks += [{"id": 2 * place + k, "image_id": place, "category_id": 1, "bbox": [8 * k, 8 * k, 4, 4]} for k in (0, 1)]
    (tmp_path / "marks.json").write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "tag"}], "annotations": marks}))
    entries = open_data(RunFolder(exchanged / "run").config().data, root=tmp_path, seed=0).splits["train"].entries
    torn, missing = (tmp_path / "maps" / entries[index].name.replace(".png", ".npy") for index in inspected[:2])
    torn.write_bytes(b"torn")
    missing.unlink()
    result = invoke("find", config, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    assert "2 of 6 inspected images have no given heatmap that can be used" in " ".join(result.stderr.split())
    folder = RunFolder(tmp_path / "run")
    assert folder.load_selection().indices.tolist() == inspected
    heatmaps, segmentation = folder.load_attribution().heatmaps, folder.load_segmentation()
    for row, index in enumerate(inspected[2:], start=2):
        assert np.array_equal(heatmaps[row].numpy(), maps[entries[index].name])
        numbers = segmentation.segments[row]
        corner, middle = numbers[:4, :4].unique().tolist(), numbers[8:12, 8:12].unique().tolist()
        assert sorted(corner + middle) == [1, 2] and int((numbers == 0).sum()) == 256 - 32, "the rest has more effect than a mark"
    assert segmentation.outcomes[:2] == ("no-positive-effect",) * 2
    metrics = json.loads(result.stdout)
    assert metrics["completeness_error"] is None and metrics["before"]["spurious_share"] is not None
    again = invoke("score", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.stderr


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (40000, 4000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableImage, match="bomb.png"):
        read_heatmap(tmp_path / "bomb.png")
