"""Solar cells with a label plate: groups, splits, plates and where they are."""

import re
from collections import Counter

import pytest
import torch

from rightreasons.config import DataConfig
from rightreasons.data import open_data, small_variant, task_defaults
from rightreasons.data.built_in import solar
from rightreasons.errors import DataError


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return open_data(DataConfig(path="solar"), root=tmp_path_factory.mktemp("solar"), seed=0)


def test_the_tag_goes_with_the_class_in_training_and_not_in_the_test(task):
    def counts(split):
        return Counter(task.truth[split].groups)

    assert counts("train") == {"functional, no tag": 418, "functional, tag": 22, "defective, tag": 418, "defective, no tag": 22}
    assert counts("test") == dict.fromkeys(counts("train"), 100)
    validation, balanced = counts("validation"), counts("balanced validation")
    assert min(validation.values()) == 4 and max(validation.values()) == 71
    assert set(balanced.values()) == {37, 38}
    assert len(task.unbiased_train) == len(task.splits["train"])


def test_the_splits_share_no_cell(task):
    """Plates hide at most a fifth of a cell: two pictures of one cell would still agree in a corner."""
    corners = {}
    for split in ("train", "validation", "test"):
        pictures = task.splits[split].images
        for row in range(len(pictures)):
            centre = pictures[row, 0, 48:80, 48:80].numpy().tobytes()
            assert corners.setdefault(centre, split) == split


def test_masks_are_where_the_plate_is(task):
    """The same cells with other tags: outside of both masks the validation pictures agree, inside of one they do not."""
    one, other = task.splits["validation"], task.splits["balanced validation"]
    empty = torch.zeros(128, 128, dtype=torch.bool)
    for row in range(40):
        masks = [truth if (truth := task.truth[split].mask(row)) is not None else empty for split in ("validation", "balanced validation")]
        tagged = [bool(task.truth[split].spurious[row]) for split in ("validation", "balanced validation")]
        assert [bool(mask.any()) for mask in masks] == tagged
        changed = (one.images[row, 0].int() - other.images[row, 0].int()).abs() > 0
        # A pixel that the plate covers by less than half is changed, and not in the mask.
        near = torch.nn.functional.max_pool2d((masks[0] | masks[1])[None, None].float(), 3, 1, 1)[0, 0].bool()
        assert not (changed & ~near).any()
        if tagged[0] != tagged[1]:
            assert changed[masks[0] | masks[1]].float().mean() > 0.8


def test_the_make_is_a_second_grouping(task):
    makes = Counter(name.split(", ")[1] for name in task.truth["test"].other_groups["make"])
    assert set(makes) == {"mono", "poly"} and sum(makes.values()) == 400


def test_the_texture_variant_has_no_plate_and_no_mask():
    texture = solar.open_task(("texture",), size=None, seed=0)
    counts = Counter(texture.truth["train"].groups)
    assert counts["defective, poly"] / (counts["defective, poly"] + counts["defective, mono"]) == pytest.approx(0.95, abs=0.01)
    assert counts["functional, poly"] / (counts["functional, poly"] + counts["functional, mono"]) == pytest.approx(0.05, abs=0.01)
    assert len(texture.unbiased_train) == len(texture.splits["train"])
    assert all(texture.truth["test"].mask(row) is None for row in range(20))


def test_seeds_draw_other_splits_and_the_same_seed_the_same():
    one, again, other = (solar.open_task(("few",), size=None, seed=seed).splits["train"].images for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_few_are_a_fourth_of_the_cells_for_a_try(task):
    few = solar.open_task(("few",), size=None, seed=0)
    assert {split: len(data) for split, data in few.splits.items()} == {"train": 220, "validation": 36, "balanced validation": 36, "test": 100}
    assert Counter(few.truth["train"].groups) == {"functional, no tag": 104, "functional, tag": 6, "defective, tag": 104, "defective, no tag": 6}
    assert set(Counter(few.truth["test"].groups).values()) == {25} and few.manifest == task.manifest
    assert small_variant("solar:exceptions=0") == "solar:exceptions=0:few" and small_variant("stamps:few") == "stamps:few"
    assert small_variant("photographs") == "photographs" and small_variant("decoy-mnist") == "decoy-mnist:packaged"


def test_unknown_variants_are_named():
    with pytest.raises(DataError, match="texture"):
        solar.open_task(("plates",), size=None, seed=0)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    import sys

    from rightreasons.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    monkeypatch.setattr(solar, "_read_cells", solar._read_cells.__wrapped__)  # what other tests have read is left in its cache
    with pytest.raises(MissingExtra, match=r"rightreasons\[solar\]"):
        solar.open_task((), size=None, seed=0)


def test_the_expert_says_what_matters_and_what_does_not():
    """The plate is called irrelevant for either class, and what matters is said of each class in words of its own that do not name it."""
    said = task_defaults("solar")["classes"]
    assert set(said) == {"functional", "defective"} and len({words["description"] for words in said.values()}) == 2
    for words in said.values():
        assert "plate" in words["irrelevant"] and not {"plate", "label"} & set(re.findall("[a-z]+", words["description"].lower()))
    assert "bright" in said["functional"]["description"] and "crack" in said["defective"]["description"]


@pytest.mark.parametrize(("share", "odd"), [(0, 0), (0.01, 1), (0.2, 22)])
def test_another_share_of_exceptions(tmp_path, share, odd):
    """The share holds in training; the test and the training set without correlation are as they were."""
    task = open_data(DataConfig(path=f"solar:few:exceptions={share}"), root=tmp_path, seed=0)
    counts = Counter(task.truth["train"].groups)
    assert counts["functional, tag"] == counts["defective, no tag"] == odd and counts["functional, no tag"] == counts["defective, tag"] == 110 - odd
    assert set(Counter(task.truth["test"].groups).values()) == {25}


def test_exceptions_of_five_percent_are_the_task_itself(task, tmp_path):
    other = open_data(DataConfig(path="solar:exceptions=0.05"), root=tmp_path, seed=0)
    assert all(other.splits[split].images.equal(task.splits[split].images) for split in task.splits)
