"""The weighted mixture against scikit-learn, torch.distributions and slow loops; segments as a partition."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from rightreasons.explain import mixture
from rightreasons.explain.em import expand_points, expect, gather_points, maximise, pack, unpack
from rightreasons.explain.mixture import Mixture, coefficients
from rightreasons.explain.segment import COLOUR_WEIGHT, scale_colours, segment_heatmaps, smooth_heatmaps

SMALLEST = 1e-4


def draw(*shape, seed: int = 0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(centres, count: int = 60, width: float = 0.06, seed: int = 0):
    """Points around each centre."""
    noise = torch.randn(len(centres), count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.tensor(centres, dtype=torch.float64)[:, None] + width * noise).flatten(0, 1)


def even(points):
    return torch.full((1, len(points)), 1 / len(points), dtype=points.dtype)


def blobs(centres, height: int = 32, width: int = 32, sigma: float = 2.5, noise: float = 0.0):
    """A heatmap with a round bump at each (y, x), and noise of either sign."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    heatmap = sum(torch.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * sigma**2)) for a, b in centres)
    return heatmap + noise * torch.randn(height, width, generator=torch.Generator().manual_seed(0))


def fit_mixture(weights, points, means, **settings):
    """From one start."""
    return mixture.fit_mixture(weights, points, means[:, None], **settings)


def responsibilities(fitted, points):
    """r_ij: how far pixel i belongs to component j; sums to one over the components."""
    return (expand_points(points) @ coefficients(fitted).mT).softmax(2)


def assert_same(one: Mixture, other: Mixture, tolerance: float = 1e-8):
    for name in ("weights", "means", "covariances", "objective"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=tolerance)


# The mixture


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("steps", [1, 7, 60])
def test_em_equals_sklearn_step_by_step(steps):
    from sklearn.mixture import GaussianMixture

    points = clouds([(0.2, 0.3), (0.6, 0.7), (0.7, 0.3)], width=0.12)
    means = points[[0, 70, 130]]
    start = points.var(0, correction=0).mean() / 3 + SMALLEST
    theirs = GaussianMixture(
        3,
        weights_init=[1 / 3] * 3,
        means_init=means.numpy(),
        precisions_init=(torch.eye(2) / start).expand(3, 2, 2).numpy(),
        reg_covar=SMALLEST,
        max_iter=steps,
        tol=0,
    ).fit(points.numpy())
    ours = step_by_step(points, means, start, steps)
    torch.testing.assert_close(ours.weights[0], torch.tensor(theirs.weights_), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.means[0], torch.tensor(theirs.means_), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.covariances[0], torch.tensor(theirs.covariances_), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(responsibilities(ours, points)[0], torch.tensor(theirs.predict_proba(points.numpy())), atol=1e-5, rtol=1e-5)


def step_by_step(points, means, start, steps: int) -> Mixture:
    """Plain EM of points of equal weight from round components of one variance."""
    shares = torch.full((1, 1, len(means)), 1 / len(means), dtype=points.dtype)
    round_ = {(0, 0): shares * 0 + start, (1, 0): shares * 0, (1, 1): shares * 0 + start}
    parameters, cloud = pack(shares, means.T[:, None, None], round_), gather_points(even(points), points)
    objective = shares
    for _ in range(steps):
        moments, objective = expect(parameters, cloud)
        parameters = maximise(moments, [SMALLEST] * 2)
    weights, centres, covariances = unpack(parameters[:, :, 0])
    return Mixture(weights, centres.movedim(0, -1), covariances.movedim((0, 1), (-2, -1)), objective[:, 0])


def test_leaps_reach_no_less_than_as_many_plain_steps():
    """Clouds that overlap, where EM crawls: the leaps go up, and are ahead of plain steps."""
    points = clouds([(0.4, 0.4), (0.5, 0.55), (0.6, 0.45)], width=0.12)
    means = points[[0, 70, 130]]
    start = points.var(0, correction=0).mean() / 3 + SMALLEST
    gains = []
    for steps in (30, 90):
        leaping = fit_mixture(even(points), points, means[None], smallest_variance=SMALLEST, iterations=steps, tolerance=0.0).objective
        gains.append((leaping - step_by_step(points, means, start, steps).objective).item())
    assert min(gains) > 0 and max(gains) > 1e-3


def test_em_goes_on_while_the_means_move_though_the_shares_do_not():
    """Two mirrored clouds with mirrored seeds: each half has its half of the effect from the first step on."""
    half = clouds([(0.25, 0.5)], width=0.05)
    points = torch.cat([half, 1 - half])
    seeds = torch.tensor([[[0.48, 0.5], [0.52, 0.5]]], dtype=torch.float64)
    fitted = fit_mixture(even(points), points, seeds, smallest_variance=SMALLEST)
    torch.testing.assert_close(fitted.means[0], torch.stack([half.mean(0), 1 - half.mean(0)]), atol=1e-3, rtol=0)


def test_responsibilities_and_objective_by_hand():
    points, weights = draw(30, 2), draw(1, 30, seed=1)
    weights /= weights.sum()
    fitted = fit_mixture(weights, points, points[None, [3, 14, 25]], smallest_variance=SMALLEST, iterations=300, tolerance=1e-9)
    normals = [MultivariateNormal(mean, covariance) for mean, covariance in zip(fitted.means[0], fitted.covariances[0], strict=True)]
    ours, objective = responsibilities(fitted, points)[0], 0.0
    for i, point in enumerate(points):
        joint = [share.item() * math.exp(normal.log_prob(point)) for share, normal in zip(fitted.weights[0], normals, strict=True)]
        objective += weights[0, i].item() * math.log(sum(joint))
        assert ours[i].tolist() == pytest.approx([density / sum(joint) for density in joint], abs=1e-6)
    assert fitted.objective.item() == pytest.approx(objective, abs=1e-5)


def test_the_objective_never_falls():
    points, weights = draw(50, 2), draw(2, 50, seed=1)
    weights /= weights.sum(1, keepdim=True)
    seeds = torch.stack([points[[0, 10, 20]], points[[5, 15, 25]]])
    climb = torch.stack(
        [fit_mixture(weights, points, seeds, smallest_variance=1e-9, iterations=steps, tolerance=0.0).objective for steps in range(1, 25)]
    )
    assert (climb.diff(dim=0) > -1e-9).all()


def test_weight_w_equals_w_copies():
    points = clouds([(0.3, 0.3), (0.6, 0.7)], count=10, width=0.1)
    times = torch.arange(len(points)) % 4 + 1
    copies = points.repeat_interleave(times, 0)
    seeds = points[None, [0, 15]]
    weighted = fit_mixture((times.double() / times.sum())[None], points, seeds, smallest_variance=SMALLEST)
    assert_same(weighted, fit_mixture(even(copies), copies, seeds, smallest_variance=SMALLEST))


def test_zero_weight_is_inert():
    points = clouds([(0.3, 0.3), (0.6, 0.7)], count=10, width=0.1)
    more = torch.cat([points, draw(25, 2)])
    padded = torch.cat([even(points), torch.zeros(1, 25, dtype=torch.float64)], 1)
    seeds = points[None, [0, 15]]
    assert_same(
        fit_mixture(even(points), points, seeds, smallest_variance=SMALLEST), fit_mixture(padded, more, seeds, smallest_variance=SMALLEST), 1e-10
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_component_s_weight_is_its_share_of_the_effect(seed):
    """pi_j = sum_i p_i r_ij where EM stops."""
    points, weights = draw(100, 2, seed=seed), draw(1, 100, seed=seed + 50) ** 4
    weights /= weights.sum()
    fitted = fit_mixture(weights, points, points[None, :4], smallest_variance=SMALLEST, iterations=2000)
    shares = torch.einsum("ip,ipc->ic", weights, responsibilities(fitted, points))
    torch.testing.assert_close(fitted.weights, shares, atol=1e-4, rtol=0)


def test_permuted_seeds_permute_the_result():
    points = clouds([(0.2, 0.3), (0.6, 0.7), (0.7, 0.3)], width=0.12)
    order = [2, 0, 1]
    one = fit_mixture(even(points), points, points[None, [0, 70, 130]], smallest_variance=SMALLEST)
    other = fit_mixture(even(points), points, points[None, [130, 0, 70]], smallest_variance=SMALLEST)
    assert_same(Mixture(one.weights[:, order], one.means[:, order], one.covariances[:, order], one.objective), other)


def test_a_batch_is_as_good_as_one_at_a_time():
    points, weights = draw(64, 2), draw(5, 64, seed=1) ** 3
    weights /= weights.sum(1, keepdim=True)
    seeds = torch.stack([points[[i, i + 20, i + 40]] for i in range(5)])
    together = fit_mixture(weights, points, seeds, smallest_variance=SMALLEST)
    for i in range(5):
        alone = fit_mixture(weights[i : i + 1], points, seeds[i : i + 1], smallest_variance=SMALLEST)
        assert_same(Mixture(*(getattr(together, name)[i : i + 1] for name in ("weights", "means", "covariances", "objective"))), alone, 1e-10)


def test_single_precision_is_enough_for_a_narrow_segment_in_a_large_image():
    """At 256 pixels a lone pixel has a variance of 4e-6, and one coordinate's square is near 1."""
    heatmap = blobs([(250, 250), (250, 245)], 256, 256, sigma=0.8) + 0.2 * blobs([(60, 60)], 256, 256, sigma=30)
    weights = (heatmap / heatmap.sum()).flatten()[None].double()
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    points = ((torch.stack([x.flatten(), y.flatten()], 1) + 0.5) / 256).double()
    seeds = ((torch.tensor([[[250.0, 250], [245, 250], [60, 60]]]) + 0.5) / 256).double()
    exact = fit_mixture(weights, points, seeds, smallest_variance=0.25 / 256**2)
    single = fit_mixture(weights.float(), points.float(), seeds.float(), smallest_variance=0.25 / 256**2)
    torch.testing.assert_close(single.weights.double(), exact.weights, atol=1e-3, rtol=0)
    different = responsibilities(single, points.float()).argmax(2) != responsibilities(exact, points).argmax(2)
    assert (weights * different).sum() < 1e-3


def test_em_in_five_dimensions_equals_sklearn():
    """Places and colours: each image has its own points, and each coordinate its own smallest variance."""
    from sklearn.mixture import GaussianMixture

    points = torch.stack([draw(200, 5, seed=seed) ** (1 + seed) for seed in (1, 2)])
    floor = torch.tensor([1e-4, 1e-4, 1e-3, 1e-3, 1e-3], dtype=torch.float64)
    weights = torch.full((2, 200), 1 / 200, dtype=torch.float64)
    ours = fit_mixture(weights, points, points[:, [0, 70, 130]], smallest_variance=floor, iterations=300, tolerance=1e-9)
    for row in range(2):
        # scikit-learn adds one number to every coordinate: at a fixed point its next step without any gives our moments.
        responsible = responsibilities(ours, points)[row]
        total = responsible.sum(0)
        theirs = GaussianMixture(3, reg_covar=0)
        theirs.weights_, theirs.means_ = ours.weights[row].numpy(), ours.means[row].numpy()
        theirs.precisions_cholesky_ = torch.linalg.cholesky(torch.linalg.inv(ours.covariances[row])).numpy()
        torch.testing.assert_close(responsible, torch.tensor(theirs.predict_proba(points[row].numpy())), atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(ours.weights[row], total / 200, atol=1e-5, rtol=0)
        for component in range(3):
            part = responsible[:, component, None] / total[component]
            mean = (part * points[row]).sum(0)
            covariance = (part * (points[row] - mean)).T @ (points[row] - mean)
            torch.testing.assert_close(ours.means[row, component], mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.covariances[row, component], covariance + torch.diag(floor), atol=1e-5, rtol=0)


# Segments


@pytest.mark.parametrize("components", [1, 3, 5, "auto"])
@pytest.mark.parametrize("shape", [(16, 16), (9, 20), (1, 30), (25, 2)])
def test_segments_partition_the_pixels_and_shares_fall_to_a_sum_of_one(components, shape, generator):
    heatmaps = torch.randn(3, *shape, generator=generator)
    result = segment_heatmaps(heatmaps, components=components, generator=generator)
    assert result.outcomes == ("segmented",) * 3
    for heatmap, segments, effect, shares in zip(heatmaps, result.segments, result.effect, result.shares, strict=True):
        positive = heatmap.clamp_min(0)
        by_hand = [(positive[segments == j].sum() / positive.sum()).item() for j in range(len(shares))]
        assert shares.tolist() == pytest.approx(by_hand, abs=1e-5)
        assert shares.sum().item() == pytest.approx(1, abs=1e-5)
        assert (shares.diff() <= 1e-6).all()
        # Numbered 0, 1, ... without a gap; every pixel has one number, and every number that counts has pixels.
        assert segments.unique().tolist() == list(range(int((shares > 0).sum())))
        assert torch.equal(effect, heatmap > 0)


def test_count_is_the_number_of_segments(generator):
    result = segment_heatmaps(torch.stack([blobs([(8, 8), (24, 24)]), torch.zeros(32, 32)]), components=2, generator=generator)
    assert [result.count(0), result.count(1)] == [2, 0]


def test_planted_blobs_are_recovered(generator):
    centres = [(6, 6), (8, 25), (25, 14)]
    segments = segment_heatmaps(blobs(centres)[None], components=3, generator=generator).segments[0]
    names = [int(segments[centre]) for centre in centres]
    assert sorted(names) == [0, 1, 2]
    wrong, effect = 0.0, blobs(centres)
    for y in range(32):
        for x in range(32):
            nearest = min(range(3), key=lambda j, y=y, x=x: math.dist(centres[j], (y, x)))
            wrong += effect[y, x].item() * (int(segments[y, x]) != names[nearest])
    assert wrong < 0.01 * effect.sum()


def test_auto_finds_as_many_components_as_there_are_blobs(generator):
    heatmaps = torch.stack([blobs([(16, 16)], sigma=4), blobs([(7, 7), (24, 24)]), blobs([(6, 6), (6, 25), (25, 6), (25, 25)])])
    result = segment_heatmaps(heatmaps, components="auto", generator=generator)
    assert result.count(0) <= 2
    assert 2 <= result.count(1) <= 3
    assert result.count(2) >= 4
    assert result.segments[1, 7, 7] != result.segments[1, 24, 24]


def test_the_same_generator_gives_the_same_segments_and_global_state_is_left_alone():
    heatmaps = torch.stack([blobs([(8, 8), (24, 20)], noise=0.2), blobs([(16, 16)], noise=0.2)])
    state = torch.get_rng_state()
    one, other = (segment_heatmaps(heatmaps, components=4, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.segments, other.segments)
    assert torch.equal(torch.get_rng_state(), state)


def one_pixel(*places):
    heatmap = -torch.ones(6, 6)
    for place in places:
        heatmap[place] = 2.0
    return heatmap


DEGENERATE = {
    "all negative": (-torch.rand(6, 6) - 0.1, "no-positive-effect"),
    "all zero": (torch.zeros(6, 6), "no-positive-effect"),
    "constant": (torch.full((6, 6), 0.3), "constant"),
    "a NaN": (one_pixel((2, 2)).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.nan)), "not-finite"),
    "inf": (one_pixel((2, 2)).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.inf)), "not-finite"),
    "-inf": (one_pixel((2, 2)).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(-math.inf)), "not-finite"),
}


@pytest.mark.parametrize("smooth", [0.0, 0.2])
@pytest.mark.parametrize("name", DEGENERATE)
def test_a_degenerate_heatmap_has_a_named_outcome_and_no_segments(name, smooth, generator):
    heatmap, outcome = DEGENERATE[name]
    ordinary = blobs([(3, 3)], 6, 6)
    result = segment_heatmaps(torch.stack([heatmap, ordinary, heatmap]), components=2, smooth=smooth, generator=generator)
    assert result.outcomes == (outcome, "segmented", outcome)
    for row in (0, 2):
        assert (result.segments[row] == -1).all()
        assert not result.effect[row].any()
        assert result.count(row) == 0
    assert (result.segments[1] >= 0).all()


@pytest.mark.parametrize("components", [1, 5, "auto"])
def test_a_few_positive_pixels_are_segmented(components, generator):
    heatmaps = torch.stack([one_pixel((4, 1)), one_pixel((0, 0), (5, 5)), one_pixel((2, 2), (2, 3))])
    result = segment_heatmaps(heatmaps, components=components, generator=generator)
    assert result.outcomes == ("segmented",) * 3
    assert torch.equal(result.effect, heatmaps > 0)
    assert result.shares.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert result.count(0) == 1
    assert (result.segments >= 0).all()
    if components == 5:
        assert result.segments[1, 0, 0] != result.segments[1, 5, 5]


def test_an_image_of_one_pixel(generator):
    result = segment_heatmaps(torch.tensor([[[0.5]], [[-0.5]]]), components=3, generator=generator)
    assert result.outcomes == ("segmented", "no-positive-effect")
    assert result.segments.flatten().tolist() == [0, -1]
    assert result.shares[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_the_effect_does_not_matter(scale):
    heatmap = blobs([(8, 8), (24, 20)], noise=0.1)[None]
    one, other = (segment_heatmaps(h, components=3, peak_share=0.1, generator=torch.Generator().manual_seed(1)) for h in (heatmap, heatmap * scale))
    assert other.outcomes == ("segmented",)
    assert (one.segments != other.segments).float().mean() < 0.01
    torch.testing.assert_close(one.shares, other.shares, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_heatmaps_of_another_precision(dtype, generator):
    result = segment_heatmaps(blobs([(8, 8), (24, 20)])[None].to(dtype), components=2, generator=generator)
    assert result.count(0) == 2


def test_negative_pixels_do_not_move_the_segments():
    heatmap = blobs([(8, 8), (24, 20)]) - 0.2
    one, other = (
        segment_heatmaps(h[None], components=2, generator=torch.Generator().manual_seed(1))
        for h in (heatmap, torch.where(heatmap > 0, heatmap, -9.0))
    )
    assert torch.equal(one.segments, other.segments)
    assert torch.equal(one.shares, other.shares)


@pytest.mark.parametrize("peak_share", [0.0, 0.15, 0.5, 1.0])
def test_effect_by_hand(peak_share, generator):
    """Of each segment, the positive pixels from a share of its peak on."""
    heatmap = blobs([(8, 8), (24, 20)], noise=0.1)
    heatmap[20:] *= 0.3  # a weak segment is held to its own peak
    result = segment_heatmaps(heatmap[None], components=2, peak_share=peak_share, generator=generator)
    segments = result.segments[0].tolist()
    peaks = [max(heatmap[y, x].item() for y in range(32) for x in range(32) if segments[y][x] == j) for j in range(2)]
    for y in range(32):
        for x in range(32):
            value = heatmap[y, x].item()
            expected = value > 0 and value >= torch.tensor(peak_share * peaks[segments[y][x]]).item() - 1e-7
            assert bool(result.effect[0, y, x]) == expected


# Colour


def word_on_a_disc(seed: int = 0):
    """An image of a disc with thin half-transparent bars across it, a heatmap as wide as the disc, and where the bars are."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 22**2
    bars = (x % 9 < 2) & ((y - 32).abs() < 7) & ((x - 32).abs() < 27)
    image = torch.where(disc, 0.5, 0.3) * torch.ones(3, 1, 1) + 0.02 * torch.randn(3, 64, 64, generator=generator)
    image[1] += 0.3 * disc
    image = torch.where(bars, 0.5 * image + torch.tensor([0.5, 0.0, 0.0])[:, None, None], image)
    heatmap = 1.0 * disc + 1.0 * bars + 0.1 * torch.randn(64, 64, generator=generator)
    return image, heatmap, bars


def mostly_inside(result, heatmap, mask, smooth):
    """Whether more than half of some segment's effect lies in the mask, and the share of the mask that such segments hold."""
    positive = smooth_heatmaps(heatmap[None], smooth)[0].clamp_min(0)
    held = torch.zeros_like(mask)
    for segment in range(result.count(0)):
        inside = result.segments[0] == segment
        if (positive * inside * mask).sum() > (positive * inside).sum() / 2:
            held |= inside & mask
    return bool(held.any()), (held.sum() / mask.sum()).item()


@pytest.mark.parametrize("seed", range(3))
def test_a_thin_word_across_an_object_is_a_segment_by_colour_and_none_by_place(seed):
    image, heatmap, bars = word_on_a_disc(seed)
    settings = {"components": 5, "smooth": 0.035}
    by_place = segment_heatmaps(heatmap[None], **settings, generator=torch.Generator().manual_seed(seed))
    by_colour = segment_heatmaps(heatmap[None], images=image[None], **settings, generator=torch.Generator().manual_seed(seed))
    assert mostly_inside(by_place, heatmap, bars, 0.035) == (False, 0)
    found, share = mostly_inside(by_colour, heatmap, bars, 0.035)
    assert found and share > 0.9
    assert by_colour.segments.min() == 0 and by_colour.shares.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("components", [2, 4])
def test_an_image_of_one_colour_is_cut_as_by_place_alone(components):
    heatmaps = torch.stack([blobs([(8, 8), (24, 20)], noise=0.1), blobs([(6, 20), (20, 6), (26, 26)], noise=0.1)])
    images = torch.tensor([0.0, 0.7])[:, None, None, None].expand(2, 3, 32, 32)
    one = segment_heatmaps(heatmaps, components=components, generator=torch.Generator().manual_seed(1))
    other = segment_heatmaps(heatmaps, images=images, components=components, generator=torch.Generator().manual_seed(1))
    # A share may differ in its last digit.
    assert (one.segments != other.segments).float().mean() < 0.01
    torch.testing.assert_close(one.shares, other.shares, atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("shape", [(16, 16), (9, 200), (131, 67)])
def test_segments_by_colour_partition_the_pixels(channels, shape, generator):
    images, heatmaps = torch.rand(2, channels, *shape, generator=generator), torch.randn(2, *shape, generator=generator)
    result = segment_heatmaps(heatmaps, images=images, components=3, generator=generator)
    for row in range(2):
        assert result.segments[row].unique().tolist() == list(range(result.count(row)))
        assert result.shares[row].sum().item() == pytest.approx(1, abs=1e-5)


def test_colours_in_another_order_or_upside_down_or_stretched_change_nothing(generator):
    image, heatmap, _ = word_on_a_disc()
    settings = {"components": 4, "smooth": 0.035}
    cut = [
        segment_heatmaps(heatmap[None], images=other[None], **settings, generator=torch.Generator().manual_seed(0))
        for other in (image, image[[2, 0, 1]], 1 - image, 0.2 * image + 0.3)
    ]
    for other in cut[1:]:
        assert (other.segments != cut[0].segments).float().mean() < 0.01


def test_scaled_colours_by_hand(generator):
    images = torch.rand(2, 3, 5, 7, generator=generator) * torch.tensor([1.0, 0.2])[:, None, None, None]
    for image, ours in zip(images, scale_colours(images), strict=True):
        means = [image[channel].mean().item() for channel in range(3)]
        square = sum((image[c, y, x].item() - means[c]) ** 2 for c in range(3) for y in range(5) for x in range(7)) / 105
        for c, y, x in ((0, 0, 0), (1, 4, 6), (2, 2, 3)):
            assert ours[y, x, c].item() == pytest.approx(COLOUR_WEIGHT * (image[c, y, x].item() - means[c]) / math.sqrt(square), abs=1e-5)


def test_of_many_channels_the_principal_axes_are_used(generator):
    """Six channels that are mixtures of two colours: all of their variance is in two of the three axes."""
    mixed = torch.einsum("kc,nkhw->nchw", torch.randn(2, 6, generator=generator), torch.rand(1, 2, 20, 20, generator=generator))
    ours = scale_colours(mixed)
    assert ours.shape == (1, 20, 20, 3)
    deviations = ours.flatten(1, 2).std(1)[0].sort().values
    assert deviations[0] < 1e-3 < deviations[1]
    assert ours.square().mean().sqrt().item() == pytest.approx(COLOUR_WEIGHT, abs=1e-5)


# Smoothing


def test_smoothing_by_hand():
    heatmap = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    sigma = 0.15 * 7
    radius = math.ceil(3 * sigma)
    kernel = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
    ours = smooth_heatmaps(heatmap[None], 0.15)[0]
    for y in range(7):
        for x in range(9):
            total = 0.0
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    if 0 <= y + dy < 7 and 0 <= x + dx < 9:
                        total += kernel[dy + radius] * kernel[dx + radius] * heatmap[y + dy, x + dx].item()
            assert ours[y, x].item() == pytest.approx(total / sum(kernel) ** 2, abs=1e-5)


def test_smoothing_keeps_the_sum_away_from_borders_and_the_sign():
    heatmap = torch.zeros(1, 41, 41)
    heatmap[0, 18:22, 18:22] = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    smoothed = smooth_heatmaps(heatmap, 0.05)
    assert smoothed.sum().item() == pytest.approx(heatmap.sum().item(), abs=1e-5)
    torch.testing.assert_close(smooth_heatmaps(-heatmap, 0.05), -smoothed)
    assert (smooth_heatmaps(heatmap.abs(), 0.05) >= 0).all()
    assert smooth_heatmaps(heatmap, 0.0) is heatmap


def test_smoothing_lets_noise_cancel_before_the_positive_part_is_taken(generator):
    noise = torch.randn(1, 64, 64, generator=generator)
    noise[:, 10:20, 10:20] += 1.0
    for smooth, bounds in ((0.0, (0.02, 0.15)), (0.04, (0.25, 1.0))):
        positive = smooth_heatmaps(noise, smooth).clamp_min(0)
        share = (positive[:, 10:20, 10:20].sum() / positive.sum()).item()
        assert bounds[0] < share < bounds[1]
