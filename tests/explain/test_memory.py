"""Memory that does not follow from the size of the images, and work that is saved as it goes."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rightreasons.common.progress import Silent, Terminal, describe_seconds
from rightreasons.common.seeds import seeded
from rightreasons.config import parse_config
from rightreasons.critic.pictures import _depth
from rightreasons.data.loading import StoredImages
from rightreasons.explain import evidence as inspection
from rightreasons.explain.segment import segment_heatmaps
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import measured

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import memory


def test_find_on_large_images_stays_within_its_bound(tmp_path):
    """12 images of 1024 px beside 12 of 128 px, which is what python and the libraries take. The segments alone once took 1.5 GiB more."""
    peaks = {}
    for side in (128, 1024):
        config = memory.write_project(tmp_path / str(side), side=side, images=12, baselines=2)
        peaks[side], _ = memory.measure_find(config, tmp_path / f"{side}/run", measured())
        assert not list((tmp_path / f"{side}/run").glob("*part*")), "nothing half done is left behind"
    assert peaks[1024] - peaks[128] < 1.2


def test_segments_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    heatmaps = torch.randn(5, 40, 56, generator=seeded(0, "heatmaps")).cumsum(1).cumsum(2)
    whole = segment_heatmaps(heatmaps, components="auto", smooth=0.05, peak_share=0.15, restarts=1, generator=seeded(0, "segment"))
    monkeypatch.setattr("rightreasons.explain.segment.BLOCK", 5 * 56 * 6 * 7)  # assigned seven rows at a time
    strips = segment_heatmaps(heatmaps, components="auto", smooth=0.05, peak_share=0.15, restarts=1, generator=seeded(0, "segment"))
    assert (whole.segments != strips.segments).double().mean() < 1e-3 and whole.segments.dtype == torch.int8
    torch.testing.assert_close(whole.shares, strips.shares)


def test_segments_by_colour_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    heatmaps = torch.randn(3, 40, 56, generator=seeded(0, "heatmaps")).cumsum(1).cumsum(2)
    images = torch.rand(3, 3, 40, 56, generator=seeded(0, "images"))
    settings = {"images": images, "components": 4, "smooth": 0.05, "peak_share": 0.15, "restarts": 1}
    whole = segment_heatmaps(heatmaps, **settings, generator=seeded(0, "segment"))
    monkeypatch.setattr("rightreasons.explain.segment.BLOCK", 3 * 56 * 4 * 7)  # assigned seven rows at a time
    strips = segment_heatmaps(heatmaps, **settings, generator=seeded(0, "segment"))
    assert (whole.segments != strips.segments).double().mean() < 1e-3
    torch.testing.assert_close(whole.shares, strips.shares)


def test_depth_is_the_number_of_erosions():
    mask = torch.rand(23, 31, generator=seeded(0, "mask")) > 0.1
    left, depth = torch.nn.functional.pad(mask.float(), (1, 1, 1, 1))[None, None], torch.zeros(1, 1, 25, 33)
    while left.any():
        depth += left
        left = -torch.nn.functional.max_pool2d(-left, 3, 1, 1)
    assert (_depth(mask.int() - 1)[mask] == depth[0, 0, 1:-1, 1:-1].numpy()[mask]).all()


@pytest.fixture
def project(tmp_path, in_memory, build_seeded):
    network = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)))
    data = in_memory(torch.rand(9, 1, 4, 4, generator=seeded(0, "images")), torch.arange(9) % 2)
    tables = {
        "data": {"path": "x"}, "model": {"source": "x"}, "critic": {"lvlm": "scripted:x"}, "attribute": {"baselines": 3, "chunk": 2},
        "classes": {"a": {"description": "The bar."}, "b": {"description": "The disc."}},
    }  # fmt: skip
    return network, data, parse_config(tables, source="test"), RunFolder(tmp_path)


class Killed(BaseException):
    pass


def test_a_stop_loses_one_part_of_the_heatmaps_and_changes_nothing(project, monkeypatch):
    network, data, config, folder = project
    images = StoredImages(data, torch.arange(9))
    whole = inspection.explain_images(network, images, data, config)
    explain, explained = inspection.attribute_images, []

    def kill_at_the_third(model, part, *rest, **options):
        if len(part) == 2 and len(explained) == 2:
            raise Killed
        explained.append(len(part))
        return explain(model, part, *rest, **options)

    monkeypatch.setattr(inspection, "_tell_long_work", lambda *given: None)
    monkeypatch.setattr(inspection, "attribute_images", kill_at_the_third)
    with pytest.raises(Killed):
        inspection._attribute(network, data, images, None, config, folder, Silent())
    assert sum(len(part.targets) for part in folder.load_attribution_parts()) == 4 and folder.load_attribution() is None
    monkeypatch.setattr(inspection, "attribute_images", lambda *given, **options: explained.append(0) or explain(*given, **options))
    resumed = inspection._attribute(network, data, images, None, config, folder, Silent())
    assert explained == [2, 2, 0, 0, 0], "the four that were saved are not explained again"
    assert torch.equal(resumed.heatmaps, whole.heatmaps) and torch.equal(resumed.targets, whole.targets)
    assert torch.equal(folder.load_attribution().heatmaps, whole.heatmaps)
    folder.drop_attribution_parts()
    assert [path.name for path in folder.path.iterdir()] == ["heatmaps.safetensors"]


def with_points(config, points):
    return config.model_copy(update={"segment": config.segment.model_copy(update={"points": points})})


def test_colours_are_used_if_the_configuration_says_so(project, monkeypatch):
    network, data, config, folder = project
    images, given = StoredImages(data, torch.arange(9)), []
    cut = inspection.segment_heatmaps
    monkeypatch.setattr(inspection, "segment_heatmaps", lambda *heatmaps, **options: given.append(options["images"]) or cut(*heatmaps, **options))
    attribution = inspection.explain_images(network, images, data, config)
    for points in ("place", "place+colour"):
        inspection._segment(network, images, attribution, None, with_points(config, points), folder, Silent())
    assert given == [None, images] and config.segment.points == "place"


def test_a_run_that_was_segmented_keeps_its_segments(project):
    """Whatever the points are by now: the verdicts are on the segments that were cut."""
    network, data, config, folder = project
    with folder.locked():
        first, again = (
            inspection.gather_evidence(with_points(config, points), folder, network, data, data, ("a", "b"), Silent(), root=folder.path).segmentation
            for points in ("place", "place+colour")
        )
    assert torch.equal(first.segments, again.segments) and torch.equal(first.shares, again.shares)


def test_long_work_is_told_of_before_it_starts(project, monkeypatch):
    network, data, config, folder = project
    clock = iter(range(0, 4000, 100))  # every look at the clock is 100 s after the last
    monkeypatch.setattr("rightreasons.explain.evidence.time.perf_counter", lambda: float(next(clock)))
    reporter = Silent()
    inspection._tell_long_work(network, data.images[:1], data.images[:3], config, 100, reporter)
    assert len(reporter.notes) == 1
    assert "about 50 min on cpu (100 images, 3 baselines each): fewer [attribute] baselines" in reporter.notes[0]
    monkeypatch.undo()
    quick = Silent()
    inspection._tell_long_work(network, data.images[:1], data.images[:3], config, 100, quick)
    assert quick.notes == []


def test_lengths_of_time_in_words():
    assert [describe_seconds(value) for value in (12.0, 360.0, 79_200.0)] == ["12 s", "6 min", "22 h"]


def test_a_bar_says_what_is_elapsed_and_what_is_left():
    from rich.console import Console

    reporter = Terminal()
    reporter._console = Console(force_terminal=True, width=120, record=True, highlight=False)
    with reporter.stage("align") as advance:
        advance(0, 6)
    begun = reporter._console.export_text()
    assert "0/6 0:00:00 elapsed" in begun and "left" not in begun and "?" not in begun
    with reporter.stage("align") as advance:
        for done in range(4):
            advance(done, 6)
    assert re.search(r"3/6 0:00:00 elapsed, \d:\d\d:\d\d left", reporter._console.export_text())
