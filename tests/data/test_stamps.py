"""Object stamps with a plaster: which stamps, groups, splits, plasters and where they are. Against stamps that are drawn here, and the real ones."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.config import DataConfig
from rightreasons.data import open_data, task_defaults
from rightreasons.data.built_in import stamps
from rightreasons.errors import DataError

SIDE = 64
SMALL = {"train": 4, "validation": 3, "test": 3}


def draw_stamp(path, generator, *, colours=1000, side=90):
    """A disc of random colours on nothing."""
    rows, columns = np.mgrid[:side, :side] - side / 2 + 0.5
    pixels = generator.integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[..., :3] = pixels[..., :3] if colours > 3 else 4 * (pixels[..., :1] // 128)
    pixels[..., 3] = np.where(np.hypot(rows, columns) < side / 2 - 2, 255, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder as the package's, with ten discs of each class."""
    folder = tmp_path_factory.mktemp("data") / "stamps"
    generator = np.random.default_rng(0)
    for parts in stamps.FOLDERS.values():
        for part in parts:
            (folder / part).mkdir(parents=True)
    for place in range(10):
        draw_stamp(folder / "animals" / "birds" / f"bird{place}.png", generator)
        draw_stamp(folder / "vehicles" / f"car{place}.png", generator)
    return folder


@pytest.fixture
def use_drawn(drawn, monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", str(drawn.parent))
    monkeypatch.setattr(stamps, "OBJECTS", SMALL)
    monkeypatch.setattr(stamps, "COUNTS", {"animal": 10, "thing": 10})
    # Nothing is kept that would depend on what is set here, and what is drawn a second time is drawn anew.
    monkeypatch.setattr(stamps, "_compose_splits", stamps._compose_splits.__wrapped__)
    stamps._read_stamps.cache_clear()
    yield drawn
    stamps._read_stamps.cache_clear()


@pytest.fixture
def task(use_drawn):
    return stamps.open_task((), size=SIDE, seed=0)


def test_the_plaster_goes_with_the_class_in_training_and_not_in_the_test(task):
    def counts(split):
        return Counter(task.truth[split].groups)

    assert counts("train") == {"animal, no plaster": 15, "animal, plaster": 1, "thing, plaster": 15, "thing, no plaster": 1}
    assert counts("validation") == {"animal, no plaster": 17, "animal, plaster": 1, "thing, plaster": 17, "thing, no plaster": 1}
    assert counts("balanced validation") == counts("test") == dict.fromkeys(counts("train"), 9)
    assert len(task.unbiased_train) == len(task.splits["train"]) == 32
    for split, data in task.splits.items():
        truth = task.truth[split]
        assert [name.split(", ")[0] for name in truth.groups] == [task.classes[label] for label in data.labels]
        assert [name.endswith(", plaster") for name in truth.groups] == truth.spurious.tolist()


def test_the_splits_share_no_object(task):
    shown = {split: set(task.truth[split].clusters) for split in task.splits}
    assert shown["validation"] == shown["balanced validation"]
    assert len(shown["train"]) == 8 and len(shown["validation"]) == len(shown["test"]) == 6
    assert not shown["train"] & shown["validation"] and not shown["train"] & shown["test"] and not shown["validation"] & shown["test"]
    assert set(Counter(task.truth["train"].clusters).values()) == {4}


def test_a_picture_with_another_plaster_is_the_same_picture(task):
    """Outside of both masks (and their soft edge) the pictures of correlated and balanced splits agree; inside of one they do not."""
    one, other = task.splits["validation"], task.splits["balanced validation"]
    truths = [task.truth[split] for split in ("validation", "balanced validation")]
    empty, differing = torch.zeros(SIDE, SIDE, dtype=torch.bool), 0
    for row in range(len(one)):
        first, second = (empty if (mask := truth.mask(row)) is None else mask for truth in truths)
        assert [bool(first.any()), bool(second.any())] == [bool(truth.spurious[row]) for truth in truths]
        changed = (one.images[row].int() - other.images[row].int()).abs().amax(0) > 0
        if first.any() == second.any():
            assert not changed.any()
            continue
        differing += 1
        near = torch.nn.functional.max_pool2d((first | second)[None, None].float(), 3, 1, 1)[0, 0].bool()
        assert not (changed & ~near).any()
        assert changed[first | second].float().mean() > 0.9
    assert differing > 5


def test_a_plaster_lies_whole_in_the_picture_and_never_on_the_object():
    generator = torch.Generator().manual_seed(0)
    picture = Image.new("RGBA", (80, 50), (10, 200, 30, 255))
    for _ in range(20):
        state = generator.get_state()
        _, _, cover, _ = stamps._compose(picture, SIDE, generator)
        # The same draws again, up to where the object lay when a plaster fitted.
        generator.set_state(state)
        stamps._draw_ground(SIDE, generator)
        alpha = stamps._place_object(picture, SIDE, generator)[1]
        assert not ((cover > 0) & (alpha > 0)).any()
        area = (cover / 255).sum() / SIDE**2
        length, width = (sum(span) / 2 for span in stamps.PLASTER)
        assert area == pytest.approx(length * width - (1 - np.pi / 4) * width**2, rel=0.35)


def test_in_the_variant_a_mark_lies_across_the_object_with_the_same_correlation(use_drawn):
    task, plain = stamps.open_task(("overlay",), size=SIDE, seed=0), stamps.open_task((), size=SIDE, seed=0)
    assert task.name == "stamps:overlay" and task.classes == plain.classes
    assert Counter(task.truth["train"].groups) == {"animal, no mark": 15, "animal, mark": 1, "thing, mark": 15, "thing, no mark": 1}
    assert len(set(Counter(task.truth["test"].groups).values())) == 1
    one, other = task.splits["train"], task.unbiased_train
    truth, changed = task.truth["train"], 0
    for row in range(len(one)):
        mask = truth.mask(row)
        assert (mask is not None) == bool(truth.spurious[row])
        if mask is not None and 0.3 < (mask.nonzero()[:, 0].float().mean() / SIDE).item() < 0.7:
            assert 0.005 < mask.float().mean() < 0.12
        changed += not torch.equal(one.images[row], other.images[row])
    assert changed > 5


def test_a_few_are_a_fourth_of_the_objects_for_a_try(use_drawn, monkeypatch):
    monkeypatch.setattr(stamps, "OBJECTS", {"train": 4, "validation": 3, "test": 1})
    task = stamps.open_task(("few", "overlay"), size=32, seed=0)
    assert task.name == "stamps:few:overlay" and len(set(task.truth["train"].clusters)) == 2, "one of each class"
    assert {split: len(data) for split, data in task.splits.items()} == {"train": 8, "validation": 12, "balanced validation": 12, "test": 12}
    assert Counter(task.truth["test"].groups) == {"animal, no mark": 3, "animal, mark": 3, "thing, mark": 3, "thing, no mark": 3}


def test_marks_cross_the_drawn_object():
    picture = Image.new("RGBA", (80, 50), (10, 200, 30, 255))
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        state = generator.get_state()
        _, _, _, mask = stamps._compose_marked(picture, SIDE, generator)
        generator.set_state(state)
        stamps._draw_ground(SIDE, generator)
        alpha = stamps._place_object(picture, SIDE, generator)[1]
        assert (mask & (alpha > 0.5)).sum() > 0.25 * mask.sum()


def test_an_expert_names_the_shortcut_of_each_variant():
    words = [stamps.defaults(variant)["classes"]["animal"]["irrelevant"] for variant in ((), ("overlay",))]
    assert "Plasters" in words[0] and "pen strokes" in words[1] and "Plasters" not in words[1]


def test_seeds_draw_other_pictures_and_the_same_seed_the_same(use_drawn):
    one, again, other = (stamps.open_task((), size=32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.splits["train"].images, again.splits["train"].images)
    assert not torch.equal(one.splits["train"].images, other.splits["train"].images)
    assert set(one.truth["test"].clusters) != set(other.truth["test"].clusters)
    assert one.manifest == other.manifest


def test_only_photographs_are_taken(use_drawn):
    generator = np.random.default_rng(1)
    added = {
        "animals/cartoon/drawn.png": {},
        "animals/toys/bear.png": {},
        "animals/bird0_mirror.png": {},
        "animals/traced.png": {},
        "animals/few.png": {"colours": 2},
        "animals/small.png": {"side": 70},
        "medical/bandage_adhesive.png": {},
    }
    for name, options in added.items():
        draw_stamp(use_drawn / name, generator, **options)
    (use_drawn / "animals" / "traced.svg").write_text("<svg/>")
    Image.new("RGB", (90, 90)).save(use_drawn / "animals" / "opaque.png")
    try:
        assert len(stamps._read_stamps(use_drawn)) == 20
    finally:
        for path in (use_drawn / name for name in (*added, "animals/traced.svg", "animals/opaque.png")):
            path.unlink()


def test_a_palette_with_a_transparent_entry_is_read_as_what_it_shows(tmp_path):
    draw_stamp(tmp_path / "rgba.png", np.random.default_rng(2))
    with Image.open(tmp_path / "rgba.png") as opened:
        transparent = np.asarray(opened)[..., 3] == 0
    indices = np.where(transparent, 255, np.arange(transparent.size).reshape(transparent.shape) % 255).astype(np.uint8)
    palette = Image.fromarray(indices).convert("P")
    colours = [(4 * (index % 64), 60 * (index // 64), 7) for index in range(256)]
    palette.putpalette([value for colour in colours for value in colour])
    palette.save(tmp_path / "palette.png", transparency=255)
    picture = stamps._read_photograph(tmp_path / "palette.png")
    assert picture.mode == "RGBA" and picture.size == (86, 86)
    visible = np.asarray(picture)[..., 3] > 0
    assert visible.sum() == (~transparent).sum()
    expected = np.array(colours, np.uint8)[indices][2:-2, 2:-2]
    assert (np.asarray(picture)[..., :3][visible] == expected[visible]).all()


def test_colours_are_counted_in_64_levels_of_each_channel():
    pixels = np.random.default_rng(3).integers(0, 256, (3000, 3), dtype=np.uint8)
    assert stamps._count_colours(pixels) == len({tuple(colour) for colour in (pixels // 4).tolist()}) > 2000
    assert stamps._count_colours(pixels[:1].repeat(9, 0)) == 1


def test_too_few_stamps_are_an_error_and_other_counts_a_warning(use_drawn, monkeypatch):
    monkeypatch.setattr(stamps, "COUNTS", {"animal": 11, "thing": 10})
    with pytest.warns(UserWarning, match="'animal': 10"):
        stamps.open_task((), size=32, seed=0)
    stamps._read_stamps.cache_clear()
    monkeypatch.setattr(stamps, "OBJECTS", {"train": 9, "validation": 1, "test": 1})
    with pytest.raises(DataError, match="10 of class animal and 10 of class thing"):
        stamps.open_task((), size=32, seed=0)


def test_a_broken_file_is_named(use_drawn):
    path = use_drawn / "animals" / "broken.png"
    path.write_bytes(b"no picture")
    try:
        with pytest.raises(DataError, match=r"broken\.png"):
            stamps._read_stamps(use_drawn)
    finally:
        path.unlink()


def test_a_folder_without_stamps_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RIGHTREASONS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="RIGHTREASONS_DATA"):
        stamps.open_task((), size=None, seed=0)


def test_where_the_package_cannot_be_had_what_to_do_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("RIGHTREASONS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stamps, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"apt-get is not installed.*apt-get install tuxpaint-stamps-default.*RIGHTREASONS_DATA"):
        stamps.open_task((), size=None, seed=0)


def test_unknown_variants_are_named():
    with pytest.raises(DataError, match="photographs"):
        stamps.open_task(("photographs",), size=None, seed=0)


def test_the_expert_says_what_matters_and_what_does_not():
    """The plaster is called irrelevant for either class, and what matters is said of each class in words of its own that do not name it."""
    said = task_defaults("stamps")["classes"]
    assert set(said) == {"animal", "thing"} and len({words["description"] for words in said.values()}) == 2
    for words in said.values():
        assert "plaster" in words["irrelevant"].lower() and "plaster" not in words["description"].lower()
    assert "head" in said["animal"]["description"] and "tool" in said["thing"]["description"]


def test_the_real_stamps(tmp_path):
    try:
        stamps._find_or_fetch()
    except DataError as error:
        pytest.skip(str(error))
    task = open_data(DataConfig(path="stamps"), root=tmp_path, seed=0)
    assert {split: len(data) for split, data in task.splits.items()} == {"train": 560, "validation": 168, "balanced validation": 168, "test": 432}
    assert task.splits["train"].images.shape[1:] == (3, 128, 128)
    assert Counter(task.truth["train"].groups)["thing, plaster"] == 266
    assert all(len(set(task.truth[split].clusters)) == 2 * count for split, count in stamps.OBJECTS.items())
