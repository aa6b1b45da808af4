"""Every metric against scikit-learn, or against loops."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from rightreasons.data.loading import Batch, read_batches
from rightreasons.errors import DataError, ModelError
from rightreasons.networks.predictions import Predictions, predict_labels
from rightreasons.records import GroundTruth, GroupScore, Scores, truly_spurious
from rightreasons.repair.swap import swap_flip_rate
from rightreasons.scoring import metrics
from rightreasons.scoring.scores import read_scores, score


def batch(images, labels) -> Batch:
    return Batch(torch.arange(len(images)), images, torch.as_tensor(labels))


@pytest.fixture
def labels_and_groups(generator):
    labels = torch.randint(3, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.6, labels, torch.randint(3, (200,), generator=generator))
    places = torch.randint(2, (200,), generator=generator)
    return labels, predicted, [f"{label}/{place}" for label, place in zip(labels.tolist(), places.tolist(), strict=True)]


def test_predictions_are_the_model_s_in_order(tiny_mlp, tiny_dataset):
    from scipy.stats import entropy

    predictions = predict_labels(tiny_mlp, read_batches(tiny_dataset, batch_size=7))
    logits = tiny_mlp(tiny_dataset.images).detach()
    assert predictions.indices.tolist() == list(range(24))
    assert torch.equal(predictions.labels, tiny_dataset.labels)
    assert torch.equal(predictions.predicted, logits.argmax(1))
    assert predictions.entropy.numpy() == pytest.approx(entropy(logits.softmax(1).numpy(), axis=1), abs=1e-5)
    assert torch.equal(predictions.correct, logits.argmax(1) == tiny_dataset.labels)


def test_dropout_and_batch_statistics_play_no_part(tiny_dataset, build_seeded):
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))).train()
    one, other = (predict_labels(model, read_batches(tiny_dataset, batch_size=size)) for size in (4, 24))
    torch.testing.assert_close(one.entropy, other.entropy)


def test_group_metrics_equal_sklearn(labels_and_groups):
    from sklearn.metrics import accuracy_score, recall_score

    labels, predicted, groups = labels_and_groups
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))  # indices need not be in order
    predictions = Predictions(order, labels[order], predicted[order], torch.rand(200), torch.rand(200))
    train_counts = {name: 10 * (position + 1) for position, name in enumerate(sorted(set(groups)))}
    scores = metrics.score_predictions(predictions, GroundTruth(groups, lambda index: None), train_counts)
    # Within the images of one group, a group's accuracy is the recall of (predicted = label) over groups.
    right = [group if correct else "wrong" for group, correct in zip(groups, (labels == predicted).tolist(), strict=True)]
    names = sorted(set(groups))
    recalls = recall_score(groups, right, labels=names, average=None)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert {name: group.accuracy for name, group in scores.groups.items()} == pytest.approx(dict(zip(names, recalls, strict=True)))
    assert {name: group.count for name, group in scores.groups.items()} == {name: groups.count(name) for name in names}
    assert scores.worst_group_accuracy == pytest.approx(min(recalls))
    assert scores.average_group_accuracy == pytest.approx(recall_score(groups, right, labels=names, average="macro"))
    weights = [train_counts[name] for name in names]
    assert scores.weighted_group_accuracy == pytest.approx(sum(w * r for w, r in zip(weights, recalls, strict=True)) / sum(weights))
    assert scores.mean_entropy == pytest.approx(predictions.entropy.mean().item())


def test_weighted_by_their_own_counts_the_average_is_the_accuracy(labels_and_groups):
    labels, predicted, names = labels_and_groups
    groups = metrics.group_scores(labels == predicted, names)
    averages = metrics.average_groups(groups, {name: group.count for name, group in groups.items()})
    assert averages.weighted == pytest.approx((labels == predicted).double().mean().item())


def test_without_truth_there_are_no_group_metrics(labels_and_groups):
    labels, predicted, _ = labels_and_groups
    scores = metrics.score_predictions(Predictions(torch.arange(200), labels, predicted, torch.zeros(200), torch.ones(200)), None)
    assert scores.worst_group_accuracy is scores.average_group_accuracy is scores.weighted_group_accuracy is scores.mu_align is None
    assert scores.groups == {}


def test_an_empty_group_is_left_out_with_a_warning():
    groups = {"a": GroupScore(0.5, 10), "b": GroupScore(0.9, 20)}
    with pytest.warns(UserWarning, match="'c'"):
        averages = metrics.average_groups(groups, {"a": 30, "b": 10, "c": 60})
    assert (averages.worst, averages.average, averages.weighted) == (0.5, pytest.approx(0.7), pytest.approx((30 * 0.5 + 10 * 0.9) / 40))


def test_groups_unknown_to_training_have_no_weight():
    groups = {"a": GroupScore(0.5, 10), "b": GroupScore(0.9, 20)}
    assert metrics.average_groups(groups, {"a": 3}).weighted == pytest.approx(0.5)
    with pytest.warns(UserWarning, match="'z'"):
        assert metrics.average_groups(groups, {"z": 3}).weighted is None
    assert metrics.average_groups(groups, {"a": 0, "b": 0, "empty in both": 0}).weighted is None


def test_shortcut_attribution_by_hand(generator):
    """Equations 9 and 9b with loops; an image without attribution or without a mask is left out of all three."""
    heatmaps = torch.randn(6, 4, 5, generator=generator)
    masks = torch.rand(6, 4, 5, generator=generator) > 0.6
    heatmaps[1], masks[2], masks[4] = 0, False, True
    shares, areas = [], []
    for n in range(6):
        inside = total = area = 0.0
        for y in range(4):
            for x in range(5):
                total += abs(heatmaps[n, y, x].item())
                inside += abs(heatmaps[n, y, x].item()) * int(masks[n, y, x])
                area += int(masks[n, y, x]) / 20
        if total > 0 and area > 0:
            shares.append(inside / total)
            areas.append(area)
    told = metrics.measure_shortcut(heatmaps, masks)
    assert (told.mu_align, told.left_out) == (pytest.approx(1 - sum(shares) / len(shares)), 2)
    assert told.floor == pytest.approx(1 - sum(areas) / len(areas))
    assert told.lift == pytest.approx(sum(share / area for share, area in zip(shares, areas, strict=True)) / len(shares))


def test_shortcut_attribution_at_its_ends():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[:, 0] = True
    assert metrics.measure_shortcut(masks.float(), masks) == metrics.ShortcutAttribution(0.0, 0.75, 4.0, 0)
    assert metrics.measure_shortcut((~masks).float(), masks) == metrics.ShortcutAttribution(1.0, 0.75, 0.0, 0)
    nothing = metrics.ShortcutAttribution(None, None, None, 1)
    assert metrics.measure_shortcut(torch.zeros(1, 4, 4), masks) == nothing
    assert metrics.measure_shortcut(torch.full((1, 4, 4), torch.nan), masks) == nothing
    assert metrics.measure_shortcut(torch.ones(1, 4, 4), ~masks & masks) == nothing


def test_an_even_map_has_its_floor_and_a_lift_of_one(generator):
    """Whatever the masks, its sign and its scale; and no map's lift depends on its scale."""
    masks = torch.rand(7, 6, 5, generator=generator) > 0.7
    for value in (1.0, -3.0, 1e-4):
        even = metrics.measure_shortcut(torch.full((7, 6, 5), value), masks)
        assert even.lift == pytest.approx(1) and even.mu_align == pytest.approx(even.floor)
    assert metrics.spurious_lift(torch.full((7, 6, 5), 2.0), masks) == pytest.approx(1)
    heatmaps = torch.randn(7, 6, 5, generator=generator)
    assert metrics.measure_shortcut(heatmaps, masks).lift == pytest.approx(metrics.measure_shortcut(5 * heatmaps, masks).lift)


def test_spurious_lift_by_hand(generator):
    """Only positive effect counts, and only the images with a spurious segment and any such effect."""
    heatmaps = torch.randn(5, 3, 4, generator=generator)
    masks = torch.rand(5, 3, 4, generator=generator) > 0.5
    heatmaps[3], masks[1] = -1, False
    lifts = []
    for heatmap, mask in zip(heatmaps.tolist(), masks.tolist(), strict=True):
        cells = [(max(value, 0), flag) for row, flags in zip(heatmap, mask, strict=True) for value, flag in zip(row, flags, strict=True)]
        total, area = sum(value for value, _ in cells), sum(flag for _, flag in cells) / 12
        if total > 0 and area > 0:
            lifts.append(sum(value * flag for value, flag in cells) / total / area)
    assert len(lifts) == 3
    assert metrics.spurious_lift(heatmaps, masks) == pytest.approx(sum(lifts) / 3)
    assert metrics.spurious_lift(-torch.ones(2, 3, 4), masks[:2]) is None


def test_spurious_share_by_hand(generator):
    heatmaps = torch.randn(5, 3, 4, generator=generator)
    masks = torch.rand(5, 3, 4, generator=generator) > 0.5
    heatmaps[3], masks[1] = -1, False  # no positive effect: left out; no spurious segment: a share of zero
    shares = []
    for heatmap, mask in zip(heatmaps.tolist(), masks.tolist(), strict=True):
        total = sum(max(v, 0) for row in heatmap for v in row)
        inside = sum(max(v, 0) * m for row, flags in zip(heatmap, mask, strict=True) for v, m in zip(row, flags, strict=True))
        if total > 0:
            shares.append(inside / total)
    assert len(shares) == 4
    assert metrics.spurious_share(heatmaps, masks) == pytest.approx(sum(shares) / 4)
    assert metrics.spurious_share(-torch.ones(2, 3, 4), masks[:2]) is None


class Corner(nn.Module):
    """Reads one pixel: class 1 where it is bright."""

    def __init__(self, y: int, x: int) -> None:
        super().__init__()
        self.y, self.x = y, x

    def forward(self, images):
        return torch.stack([torch.zeros(len(images)), images[:, 0, self.y, self.x] - 0.5], 1)


@pytest.fixture
def cornered():
    """Ten images whose top left pixel tells the label, and a mask on it."""
    labels = torch.arange(10) % 2
    images = torch.full((10, 1, 4, 4), 0.2)
    images[:, 0, 0, 0] = labels.float()
    masks = torch.zeros(10, 4, 4, dtype=torch.bool)
    masks[:, 0, 0] = True
    return batch(images, labels), masks


def test_swap_flip_rate_of_a_model_that_reads_the_corner_alone_and_of_one_that_never_does(cornered, generator):
    images, masks = cornered
    assert swap_flip_rate(Corner(0, 0), images, images, masks, generator) == 1
    assert swap_flip_rate(Corner(3, 3), images, images, masks, generator) == 0


def test_swap_flip_rate_leaves_out_hosts_without_a_donor_of_another_class(cornered, generator):
    images, masks = cornered
    masks[images.labels == 1] = False  # donors of class 0 alone: hosts of class 1 alone
    hosts = batch(images.images.clone(), images.labels)
    hosts.images[1, 0, 0, 0] = 0.0  # the one host of class 1 that looks like class 0 already
    assert swap_flip_rate(Corner(0, 0), hosts, images, masks, generator) == pytest.approx(4 / 5)
    assert swap_flip_rate(Corner(0, 0), hosts, images, masks & False, generator) is None
    only = batch(hosts.images[::2], hosts.labels[::2])
    assert swap_flip_rate(Corner(0, 0), only, images, masks, generator) is None


def test_swap_flip_rate_changes_no_image(cornered, generator):
    images, masks = cornered
    before = images.images.clone()
    swap_flip_rate(Corner(0, 0), images, images, masks, generator)
    assert torch.equal(images.images, before)


def test_truly_spurious_by_hand(generator):
    segments = torch.randint(3, (6, 6), generator=generator)
    effect = torch.rand(6, 6, generator=generator)
    mask = torch.rand(6, 6, generator=generator) > 0.5
    mask[segments == 0] = True
    mask[segments == 2] = False
    expected = []
    for j in range(3):
        inside = outside = 0.0
        for y in range(6):
            for x in range(6):
                if segments[y, x] == j:
                    inside, outside = (inside + effect[y, x].item(), outside) if mask[y, x] else (inside, outside + effect[y, x].item())
        expected.append(inside > outside)
    assert truly_spurious(segments, effect, mask).tolist() == expected
    assert expected[0]
    assert not expected[2]


def test_exactly_half_or_nothing_is_not_truly_spurious():
    segments = torch.tensor([[0, 0, 1, 1]])
    mask = torch.tensor([[True, False, True, True]])
    assert truly_spurious(segments, torch.tensor([[1.0, 1, 0, 0]]), mask).tolist() == [False, False]
    assert truly_spurious(segments, torch.ones(1, 4), None).tolist() == [False, False]


def test_an_image_without_segments_has_no_truly_spurious_ones():
    assert truly_spurious(torch.full((2, 2), -1), torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)).tolist() == []


def test_verdict_agreement_equals_sklearn(generator):
    from sklearn.metrics import accuracy_score, precision_score, recall_score

    truths = (torch.rand(100, generator=generator) > 0.6).tolist()
    values = [["spurious", "relevant", "unsure"][i] for i in torch.randint(3, (100,), generator=generator).tolist()]
    pairs = [(truth, value == "spurious") for truth, value in zip(truths, values, strict=True) if value != "unsure"]
    truth, says = zip(*pairs, strict=True)
    agreement = metrics.verdict_agreement(values, truths)
    assert agreement.accuracy == pytest.approx(accuracy_score(truth, says))
    assert agreement.spurious_recall == pytest.approx(recall_score(truth, says))
    assert agreement.core_recall == pytest.approx(recall_score(truth, says, pos_label=False))
    assert agreement.spurious_precision == pytest.approx(precision_score(truth, says))
    assert agreement.unsure == 100 - len(pairs)


def test_verdict_agreement_where_a_rate_has_nothing_to_count():
    assert metrics.verdict_agreement([], []) == metrics.VerdictAgreement(None, None, None, 0)
    assert metrics.verdict_agreement(["unsure"], [True]) == metrics.VerdictAgreement(None, None, None, 1)
    only = metrics.verdict_agreement(["relevant"], [False])
    assert only.spurious_precision is None
    assert (only.accuracy, only.spurious_recall, only.core_recall, only.unsure) == (1.0, None, 1.0, 0)
    assert only.spurious_recall_interval is None and only.core_recall_interval == only.accuracy_interval == metrics.wilson_interval(1, 1)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (87, 100), (1, 1000)])
def test_wilson_interval_solves_its_equation(successes, trials):
    """Its ends are the rates p at which the observed one lies z standard errors away: (rate - p)^2 = z^2 p (1 - p) / n."""
    rate, z = successes / trials, 1.959963984540054
    low, high = metrics.wilson_interval(successes, trials)
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert (rate - end) ** 2 == pytest.approx(z * z * end * (1 - end) / trials, abs=1e-12)


def test_cluster_intervals_resample_whole_objects():
    """Against loops: the same draws of clusters, every image of each counted as often as its cluster was drawn."""
    generator = torch.Generator().manual_seed(0)
    clusters = [f"object {index % 7}" for index in range(40)]
    groups = [("a", "b", "c")[index % 3] for index in range(40)]
    correct = torch.rand(40, generator=generator) < 0.7
    intervals = metrics.cluster_intervals(correct, groups, clusters, torch.Generator().manual_seed(1), draws=200)

    drawn = torch.randint(7, (200, 7), generator=torch.Generator().manual_seed(1)).tolist()
    values = {"accuracy": [], "worst_group_accuracy": [], "average_group_accuracy": []}
    for sample in drawn:
        hits, counts = {}, {}
        for number in sample:
            for row in range(40):
                if clusters[row] == f"object {number}":
                    hits[groups[row]] = hits.get(groups[row], 0) + bool(correct[row])
                    counts[groups[row]] = counts.get(groups[row], 0) + 1
        rates = [hits[group] / counts[group] for group in counts]
        values["accuracy"].append(sum(hits.values()) / sum(counts.values()))
        values["worst_group_accuracy"].append(min(rates))
        values["average_group_accuracy"].append(sum(rates) / len(rates))
    for name, told in values.items():
        assert intervals[name] == pytest.approx(tuple(np.quantile(told, [0.025, 0.975])))


def test_images_of_one_object_are_not_so_many_trials():
    """Ten images each of twenty objects, all right or all wrong: the interval is that of twenty trials, not of two hundred."""
    correct = torch.arange(20).repeat_interleave(10) % 2 == 0
    by_object = [str(index // 10) for index in range(200)]
    wide, narrow = (
        metrics.cluster_intervals(correct, ["all"] * 200, clusters, torch.Generator().manual_seed(0))["accuracy"]
        for clusters in (by_object, [str(index) for index in range(200)])
    )
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * 0.5 / 20**0.5, rel=0.1)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.1)


def test_a_group_that_a_sample_does_not_have_is_left_out_of_it():
    intervals = metrics.cluster_intervals(torch.tensor([True, False]), ["a", "b"], ["x", "y"], torch.Generator().manual_seed(0))
    assert intervals["average_group_accuracy"] == (0, 1) and intervals["worst_group_accuracy"] == (0, 1)


def test_scores_have_intervals_where_images_come_in_clusters():
    predictions = Predictions(torch.tensor([3, 1]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.zeros(2), torch.ones(2))
    truth = GroundTruth(["?", "b", "?", "a"], lambda index: None, clusters=["?", "y", "?", "x"])
    assert metrics.score_predictions(predictions, truth).intervals["accuracy"] == (0, 1)
    assert not metrics.score_predictions(predictions, GroundTruth(truth.groups, truth.mask)).intervals


def test_intervals_are_read_from_metrics_json_as_they_were():
    scores = Scores(0.5, 0.1, groups={"a": GroupScore(0.5, 2)}, intervals={"accuracy": (0.25, 0.75)})
    assert read_scores(json.loads(json.dumps(asdict(scores)))) == scores


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_no_class_has_are_refused_whatever_is_scored(tiny_mlp, tiny_dataset, label):
    tiny_dataset.labels[5] = label
    with pytest.raises(DataError, match=f"image 5 has the label {label}, and there are 3 classes: labels count from 0 to 2"):
        score(tiny_mlp, tiny_dataset)


def test_logits_that_are_not_finite_are_no_score(tiny_mlp, tiny_dataset):
    tiny_dataset.images[7] = float("nan")
    with pytest.raises(ModelError, match=r"logits \(at scoring\) of image 7 are not finite.*the image, which has such pixels itself"):
        score(tiny_mlp, tiny_dataset)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_network_that_squeezes_is_scored_on_a_last_batch_of_any_size(tiny_mlp, in_memory, count):
    class Squeezes(nn.Module):
        def forward(self, x):
            return tiny_mlp(x).squeeze()

    data = in_memory(torch.rand(256 + count, 1, 4, 4), torch.arange(256 + count) % 3)
    assert score(Squeezes(), data) == score(tiny_mlp, data)
