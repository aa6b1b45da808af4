"""Segments of the picture: regions are a partition, and the largest shares of the positive effect are kept, recomputed here with loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rightreasons.config import SegmentConfig
from rightreasons.errors import ConfigError, ModelError
from rightreasons.explain.segment import segment_regions, smooth_heatmaps
from rightreasons.explain.segmenters import open_segmenter
from rightreasons.explain.segmenters.grid import CELLS
from rightreasons.explain.segmenters.sam import lay_masks
from tests.cli.test_config import parse

PICTURE_METHODS = ("grid", "slic", "felzenszwalb")


def open_named(method: str, root: Path = Path(), **changes):
    if method in ("slic", "felzenszwalb"):
        pytest.importorskip("skimage", reason="comes with the extra 'segmenters'")
    segmenter = open_segmenter(SegmentConfig(method=method, **changes), root=root)
    assert segmenter is not None
    return segmenter


def two_halves(channels: int = 3, height: int = 24, width: int = 32):
    """A picture that is dark at the left and bright at the right."""
    picture = torch.full((channels, height, width), 0.1)
    picture[:, :, width // 2 :] = 0.9
    return picture


def heatmaps(count: int = 3, height: int = 24, width: int = 32):
    return torch.randn(count, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", PICTURE_METHODS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_pixel_has_one_region(method, channels):
    regions = open_named(method)(two_halves(channels))
    assert regions.shape == (24, 32) and regions.dtype == torch.int64
    assert sorted(regions.unique().tolist()) == list(range(int(regions.max()) + 1))


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_regions_follow_the_picture(method):
    """An edge as sharp as this one no region crosses."""
    regions = open_named(method)(two_halves())
    assert not set(regions[:, :16].unique().tolist()) & set(regions[:, 16:].unique().tolist())


def test_the_cells_of_the_grid():
    cells = open_named("grid")(torch.zeros(1, 24, 32))
    assert len(cells.unique()) == CELLS**2 and {int((cells == cell).sum()) for cell in cells.unique()} == {24 * 32 // CELLS**2}
    for row in range(24):
        for column in range(32):
            assert cells[row, column] == (row // 3) * CELLS + column // 4


def test_the_largest_shares_are_kept():
    maps, most, peak_share = heatmaps(), 5, 0.15
    regions = open_named("grid")(torch.zeros(1, 24, 32))
    found = segment_regions(maps, [regions] * 3, components=most, smooth=0.05, peak_share=peak_share)
    smoothed = smooth_heatmaps(maps, 0.05)
    for row in range(3):
        sums: dict[int, float] = {}
        for y in range(24):
            for x in range(32):
                sums[int(regions[y, x])] = sums.get(int(regions[y, x]), 0.0) + max(0.0, float(smoothed[row, y, x]))
        largest = sorted(sums, key=lambda region: -sums[region])[:most]
        total = sum(sums.values())
        torch.testing.assert_close(found.shares[row], torch.tensor([sums[region] / total for region in largest]), atol=1e-5, rtol=0)
        for segment, region in enumerate(largest):
            inside = regions == region
            assert (found.segments[row] == segment).equal(inside)
            peak = max(0.0, float(smoothed[row][inside].max()))
            assert found.effect[row][inside].equal((smoothed[row] > 0)[inside] & (smoothed[row] >= peak_share * peak)[inside])
        outside = ~torch.isin(regions, torch.tensor(largest))
        assert (found.segments[row][outside] == -1).all() and not found.effect[row][outside].any()
        assert found.shares[row].sum() < 1


def test_shares_sum_to_one_where_all_regions_are_kept():
    halves = (torch.arange(32) >= 16).long().expand(24, 32)
    found = segment_regions(heatmaps(), [halves] * 3, components=4)
    torch.testing.assert_close(found.shares.sum(1), torch.ones(3))
    assert (found.segments >= 0).all() and [found.count(row) for row in range(3)] == [2, 2, 2]
    assert (found.shares[:, 2:] == 0).all() and (found.shares[:, 0] >= found.shares[:, 1]).all()


def test_maps_without_positive_effect_have_no_segments():
    maps = torch.stack([-torch.ones(24, 32) + 0.1 * heatmaps()[0].clamp(-1, 1), torch.ones(24, 32), torch.full((24, 32), float("nan"))])
    found = segment_regions(maps, [torch.zeros(24, 32, dtype=torch.int64)] * 3, components=2)
    assert found.outcomes == ("no-positive-effect", "constant", "not-finite")
    assert (found.segments == -1).all() and not found.effect.any() and not found.shares.any()


def test_more_regions_than_a_byte_counts():
    """A superpixel's number may be large; a segment's is not."""
    regions = torch.arange(24 * 32).view(24, 32)
    maps = torch.zeros(1, 24, 32)
    maps[0, 20, 30], maps[0, 1, 1] = 3.0, 1.0
    found = segment_regions(maps, [regions], components=2)
    assert found.segments[0, 20, 30] == 0 and found.segments[0, 1, 1] == 1 and (found.segments >= 0).sum() == 2
    assert found.shares[0].tolist() == [0.75, 0.25]


def test_smaller_masks_lie_on_top():
    large, small = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    large[:3], small[1:2, 1:2] = True, True
    for masks in ([small, large], [large, small]):
        regions = lay_masks(masks, large.shape)
        assert regions[1, 1] == 2 and (regions[:3] > 0).all() and (regions[3] == 0).all() and (regions == 1).sum() == 11


def test_sam_from_a_folder(tmp_path):
    """A SAM of random weights, written and read as people have them. Its masks mean nothing; that they become a partition is what is tested."""
    transformers = pytest.importorskip("transformers", reason="comes with the extra 'models'")
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "output_channels": 8}
    vision |= {"mlp_dim": 8, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 4}
    decoder = {"hidden_size": 8, "mlp_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8, "iou_head_depth": 2}
    prompt = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SamModel(transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    model.save_pretrained(tmp_path / "sam")
    sizes = {"size": {"longest_edge": 32}, "pad_size": {"height": 32, "width": 32}, "mask_size": {"longest_edge": 8}}
    transformers.SamImageProcessor(**sizes, mask_pad_size={"height": 8, "width": 8}).save_pretrained(tmp_path / "sam")
    regions = open_named("sam", tmp_path, weights="sam")(two_halves())
    assert regions.shape == (24, 32) and regions.min() >= 0
    found = segment_regions(heatmaps(1), [regions], components=3)
    assert 0 < found.shares.sum() <= 1 + 1e-6


def test_sam_without_weights_says_what_to_do(tmp_path):
    pytest.importorskip("transformers", reason="comes with the extra 'models'")
    with pytest.raises(ModelError, match="Nothing is downloaded"):
        open_named("sam", tmp_path, weights="no/such-model")


def test_ppeps_wgm_is_none_of_these():
    assert open_segmenter(SegmentConfig(), root=Path()) is None


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        ({"method": "sam"}, "weights"),
        ({"method": "slic", "weights": "somewhere"}, "weights"),
        ({"method": "grid", "components": "auto"}, "components"),
        ({"method": "watershed"}, "method"),
    ],
)
def test_settings_that_do_not_fit(segment, words):
    with pytest.raises(ConfigError, match=words):
        parse(segment=segment)
