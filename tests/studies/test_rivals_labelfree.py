"""Rivals that need no group labels: XRM, AFR and MaskTune by loops, on planted shortcuts, and where they cannot work."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from rightreasons.common.progress import Silent
from rightreasons.common.seeds import seeded
from rightreasons.config import parse_config
from rightreasons.data.loading import read_batches
from rightreasons.data.task import TensorImages
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.head import Features, find_head, read_features, read_head
from rightreasons.networks.predictions import predict_labels
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.studies.methods import METHODS, afr, environments, training
from rightreasons.studies.methods.afr import Setting, draw_folds, objective, train_heads, weigh_images
from rightreasons.studies.methods.dfr import Head
from rightreasons.studies.methods.environments import (
    QUICK,
    Twins,
    draw_settings,
    flip_chance,
    infer_environments,
    rate_setting,
    starts_trained,
    sum_over_classes,
    train_twins,
)
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.mask_tune import MaskedImages, mask_images, mask_peaks
from tests.support.planted import make_bench, plant, worst

RIVALS = ("longer-training", "mask-tune", "xrm", "afr")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The twins in one setting of fewer and longer steps: all ten take longer than a test may."""
    monkeypatch.setattr(environments, "draw_settings", lambda seed: [environments.Setting(0.1, 300)])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("rivals"))


def with_splits(bench, **splits):
    task = bench.run.project.task
    project = replace(bench.run.project, task=replace(task, splits={**task.splits, **splits}))
    return replace(bench, run=replace(bench.run, project=project), reporter=Silent())


def some_features(seed, count=40, classes=3, width=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    values = torch.randn(count, width, generator=generator) + F.one_hot(labels, width)
    return Features(torch.arange(count), labels, values)


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_the_table_says_that_none_is_told_anything():
    assert all(METHODS[name].labels is NoLabels and not METHODS[name].uses_critic for name in RIVALS)
    assert "flip rate" in METHODS["xrm"].selection and "inferred group" in METHODS["xrm"].selection and "inferred group" in METHODS["afr"].selection


@pytest.mark.parametrize("name, epochs", [("longer-training", 48), ("mask-tune", 1), ("xrm", 12)])
def test_how_long_each_trains(bench, monkeypatch, name, epochs):
    """Ours has 12 epochs here."""
    seen = []
    monkeypatch.setattr(training, "train_model", lambda model, *, recipe, **rest: seen.append((recipe.epochs, recipe.learning_rate, recipe.layers)))
    METHODS[name](bench)
    assert seen == [(epochs, 0.03, "all")]


def test_xrm_repairs_a_planted_shortcut(bench):
    before = {key: value.clone() for key, value in bench.run.model.state_dict().items()}
    assert worst(METHODS["xrm"](bench)) > worst(bench.run.model) + 0.2
    assert all(torch.equal(before[key], value) for key, value in bench.run.model.state_dict().items()), "the shortcut model is left as it was"


# XRM


@pytest.mark.parametrize("classes", [2, 5])
def test_the_chance_of_a_flip_by_loops(classes):
    logits = 2 * torch.randn(9, classes, generator=seeded(0))
    for chance, row in zip(flip_chance(logits).tolist(), logits.tolist(), strict=True):
        assert chance == pytest.approx((max(softmax(row)) - 1 / classes) * classes / (classes - 1), abs=1e-6)
    assert flip_chance(torch.zeros(1, classes)).item() == pytest.approx(0, abs=1e-6)
    assert flip_chance(F.one_hot(torch.tensor([1]), classes) * 99.0).item() == pytest.approx(1)


def test_the_loss_of_the_twins_by_loops():
    """The second of three classes has no image, and the third has four times as many as the first."""
    logits = torch.randn(10, 3, generator=seeded(1))
    targets = [0, 0, 2, 2, 2, 2, 2, 2, 2, 2]
    expected = 0.0
    for label in set(targets):
        losses = [-math.log(softmax(row)[label]) for row, target in zip(logits.tolist(), targets, strict=True) if target == label]
        expected += statistics.fmean(losses)
    assert sum_over_classes(logits, torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-5)


def test_the_twins_by_loops():
    """Forty steps on all images at a rate at which labels flip: weights and flip rate."""
    data, steps, rate = some_features(2), 40, 0.5
    own = torch.rand(40, generator=seeded(3)) < 0.5
    twins = train_twins(data, own, 3, environments.Setting(rate, steps), seeded(4))
    generator, heads, running = seeded(4), np.zeros((2, 3, 4)), data.labels.tolist()
    values = data.values.double().numpy()
    for _ in range(steps):
        gradient, answers = np.zeros_like(heads), []
        for i, value in enumerate(values):
            twin = int(own[i])
            chances = softmax((heads[twin] @ value).tolist())
            for label in range(3):
                gradient[twin, label] += (chances[label] - (label == running[i])) * value / running.count(running[i])
            answers.append(softmax((heads[1 - twin] @ value).tolist()))
        heads -= rate * gradient
        drawn = torch.rand(40, generator=generator).tolist()
        for i, answer in enumerate(answers):
            if drawn[i] < (max(answer) - 1 / 3) * 3 / 2:
                running[i] = answer.index(max(answer))
    assert np.allclose(twins.weights.numpy(), heads, atol=1e-3)
    flipped = sum(a != b for a, b in zip(running, data.labels.tolist(), strict=True))
    assert twins.flip_rate == pytest.approx(flipped / 40) and flipped


def test_an_environment_is_what_either_twin_gets_wrong():
    data = some_features(5)
    twins = Twins(torch.randn(2, 3, 4, generator=seeded(6)), 0.1)
    for found, label, value in zip(twins.environments(data).tolist(), data.labels.tolist(), data.values, strict=True):
        assert found == any(int((head @ value).argmax()) != label for head in twins.weights)


def test_a_setting_without_two_environments_of_every_class_counts_nothing():
    labels, both = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
    assert rate_setting(0.3, [(labels, both), (labels, both)], 2) == 0.3
    for poor in ([0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]):
        assert rate_setting(0.3, [(labels, both), (labels, torch.tensor(poor))], 2) == 0.0
        assert rate_setting(0.3, [(labels, torch.tensor(poor)), (labels, both)], 2) == 0.0
    assert rate_setting(0.3, [(labels, both)], 3) == 0.0, "a class without images has no environment"


def test_the_settings_are_the_quick_form_and_draws_from_the_ranges():
    first, *drawn = draw_settings(0)
    assert first == QUICK and len(drawn) == 9 and len(set(drawn)) == 9 and draw_settings(0)[1:] == drawn != draw_settings(1)[1:]
    for setting in drawn:
        assert 1e-5 <= setting.learning_rate <= 1e-3 and 32 <= setting.batch_size <= 128 and 1e-6 <= setting.weight_decay <= 1e-3
        assert (setting.steps, setting.momentum) == (5000, 0.9)


@dataclass(frozen=True)
class Given(Twins):
    """Twins that get every ``every``-th image wrong."""

    every: int

    def environments(self, features):
        return (features.indices % self.every == 0).long()


def test_the_setting_with_the_most_flips_is_taken(bench, monkeypatch):
    """The first flips most and gets everything wrong, so that the third is taken."""
    given = iter([Given(torch.zeros(2, 2, 16), *case) for case in ((0.9, 1), (0.1, 2), (0.2, 3), (0.15, 4))])
    monkeypatch.setattr(environments, "draw_settings", lambda seed: [QUICK] * 4)
    monkeypatch.setattr(environments, "train_twins", lambda *_: next(given))
    groups = infer_environments(bench)
    for found, images in ((groups.train, bench.run.train), (groups.validation, bench.run.validation)):
        assert torch.equal(found, 2 * images.labels + (torch.arange(len(images)) % 3 == 0))


def test_the_twins_find_the_planted_exceptions(bench):
    groups = infer_environments(bench)
    for found, truth in ((groups.train, "train"), (groups.validation, "validation")):
        names = bench.run.project.task.truth[truth].groups
        exception = torch.tensor([name in ("01", "10") for name in names])
        right = (found % 2 == 1) == exception
        assert right[exception].double().mean() > 0.8 and right[~exception].double().mean() > 0.8
        assert (found // 2).tolist() == [int(name[0]) for name in names]


def test_without_exceptions_it_says_that_it_cannot_work(tmp_path):
    bench = with_splits(make_bench(tmp_path, few=0), validation=plant({(0, 0): 40, (1, 1): 40}, 5)[0])
    model = METHODS["xrm"](bench)
    assert any("cannot work here" in note for note in bench.reporter.notes) and any("fine-tuned plainly" in note for note in bench.reporter.notes)
    assert worst(model) < 0.5
    METHODS["afr"](bench)
    assert sum("cannot work here" in note for note in bench.reporter.notes) == 2


def test_features_of_pretrained_weights_come_first(bench):
    """A project that starts from pretrained weights, here ones that see nothing: the twins see nothing either."""
    tables = bench.run.config.model_dump(by_alias=True, exclude_none=True)
    tables["model"]["pretrained"] = "weights.pt"
    blind = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)))
    nn.init.zeros_(blind.network[1].weight)
    project = replace(bench.run.project, config=parse_config(tables, source="x"), model=blind, is_trained=False)
    assert starts_trained(project) and infer_environments(replace(bench, run=replace(bench.run, project=project))) is None
    assert not starts_trained(replace(project, is_trained=True)), "that model is the shortcut model"
    assert not starts_trained(replace(bench.run.project, is_trained=False))
    tables["model"] = {"source": environments.STARTS_TRAINED}
    assert starts_trained(replace(project, config=parse_config(tables, source="x")))


# AFR


def test_a_head_that_reads_the_shortcut_is_turned_to_the_class():
    """Two features, one for the class and one for an attribute that agrees with it in 95 % of images. A gamma of 0 hardly moves the head."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    agrees = torch.arange(400) % 40 > 1
    signs = torch.stack([2 * labels - 1, torch.where(agrees, 2 * labels - 1, 1 - 2 * labels)], 1)
    data = Features(torch.arange(400), labels, 2.0 * signs + 0.7 * torch.randn(400, 2, generator=generator))
    start = Head(torch.tensor([[0.0, -1.0], [0.0, 1.0]]).double(), torch.zeros(2).double())

    def exceptions_right(head):
        return (head.logits(data.values).argmax(1) == labels)[~agrees].double().mean().item()

    steady, turned = train_heads(data, start, [Setting(0.0, 0.1), Setting(4.0, 0.0)])
    assert exceptions_right(start) < 0.1 and exceptions_right(turned) > max(0.9, exceptions_right(steady) + 0.3)


def test_afr_changes_the_head_alone(bench):
    model = METHODS["afr"](bench)
    note = next(note for note in bench.reporter.notes if note.startswith("afr: gamma"))
    assert float(note.split("gamma = ")[1].split(",")[0]) in afr.GAMMAS and float(note.split("lambda = ")[1]) in afr.PULLS
    same = [torch.equal(new, old) for new, old in zip(model.parameters(), bench.run.model.parameters(), strict=True)]
    assert same == [True, True, False, False]


def test_the_weights_of_images_by_loops():
    logits, labels, gamma = torch.randn(7, 2, generator=seeded(0)), [0, 0, 0, 0, 0, 1, 1], 1.44
    raw = [math.exp(-gamma * softmax(row)[label]) / labels.count(label) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert weigh_images(logits, torch.tensor(labels), gamma).tolist() == pytest.approx([value / sum(raw) for value in raw], rel=1e-5)


def as_head(flat, classes=3, width=4):
    whole = torch.as_tensor(flat, dtype=torch.float64)
    return Head(whole[: classes * width].view(classes, width), whole[classes * width :])


def test_the_head_ends_at_the_minimum_that_scipy_finds():
    """With a pull so strong that 500 steps arrive; the objective is written once more with loops."""
    data = some_features(7)
    data = Features(data.indices, data.labels, data.values.double())
    start, setting = as_head(torch.randn(15, generator=seeded(8))), Setting(4.0, 2.0)
    weights = weigh_images(start.logits(data.values), data.labels, 4.0)

    def value(flat):
        rows = [flat[4 * label : 4 * label + 4] for label in range(3)]
        total = 0.0
        for weight, label, features in zip(weights.tolist(), data.labels.tolist(), data.values.numpy(), strict=True):
            total -= weight * math.log(softmax([float(row @ features) + flat[12 + k] for k, row in enumerate(rows)])[label])
        old = np.concatenate([start.weight.numpy().ravel(), start.bias.numpy()])
        return total + 2.0 * float(((flat - old) ** 2).sum())

    (found,) = train_heads(data, start, [setting])
    flat = np.concatenate([found.weight.numpy().ravel(), found.bias.numpy()])
    reached = objective(found.weight[None], found.bias[None], data, weights[None], start, torch.tensor([2.0]))
    assert reached.item() == pytest.approx(value(flat), rel=1e-9)
    best = minimize(value, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    assert np.allclose(flat, best.x, atol=1e-4) and value(flat) < value(np.concatenate([start.weight.ravel(), start.bias]))


def test_every_fold_has_its_share_of_every_group():
    groups = torch.tensor([0] * 11 + [1] * 3 + [2] * 20)[torch.randperm(34, generator=seeded(0))]
    folds = draw_folds(groups, seeded(1))
    for group in range(3):
        sizes = folds[groups == group].bincount(minlength=5)
        assert sizes.max() - sizes.min() <= 1


def test_no_image_is_answered_by_a_head_that_it_trained(monkeypatch):
    data, seen = some_features(9), []

    def remember(images, start, settings, *, steps):
        seen.append(set(images.indices.tolist()))
        return [as_head(torch.zeros(15))] * len(settings)

    monkeypatch.setattr(afr, "train_heads", remember)
    chosen = afr.choose_setting(data, data.labels, as_head(torch.zeros(15)), seeded(0))
    assert chosen == Setting(0.5, 0.0), "the first of equals"
    left_out = [set(range(40)) - inside for inside in seen]
    assert len(left_out) == 5 and sorted(index for part in left_out for index in part) == list(range(40))


def test_heads_of_several_settings_are_those_of_each_alone():
    """A step no longer than the learning rate, though the images are far apart; each head is held to it for itself."""
    data, start = some_features(10), as_head(torch.randn(15, generator=seeded(11)))
    data = Features(data.indices, data.labels, 50 * data.values)
    settings = [Setting(0.5, 0.0), Setting(20.0, 0.1)]
    for setting, together in zip(settings, train_heads(data, start, settings), strict=True):
        (alone,) = train_heads(data, start, [setting])
        assert torch.allclose(together.weight, alone.weight) and torch.allclose(together.bias, alone.bias)
        weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
        optimizer = torch.optim.SGD([weight, bias], lr=1e-2)
        weights = weigh_images(start.logits(data.values), data.labels, setting.gamma)
        for _ in range(500):
            optimizer.zero_grad()
            losses = F.cross_entropy(data.values.double() @ weight.T + bias, data.labels, reduction="none")
            distance = (weight - start.weight).square().sum() + (bias - start.bias).square().sum()
            (weights @ losses + setting.pull * distance).backward()
            nn.utils.clip_grad_norm_([weight, bias], 1.0)
            optimizer.step()
        assert torch.allclose(together.weight, weight, atol=1e-3) and (weight - start.weight).norm() > 0.5


@pytest.mark.parametrize("outputs, order", [(3, None), (3, (2, 0, 1)), (1, None)])
def test_the_head_as_read_gives_the_logits(outputs, order):
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)), order=order)
    images = TensorImages(torch.randint(256, (6, 1, 2, 2), dtype=torch.uint8), torch.zeros(6, dtype=torch.long))
    batch = next(read_batches(images))
    weight, bias = read_head(model, find_head(model, batch.images))
    assert torch.allclose(read_features(model, [batch]).values @ weight.T + bias, model(batch.images), atol=1e-5)


# MaskTune


def test_masks_by_loops():
    heatmaps = torch.randn(4, 6, 6, generator=seeded(0))
    heatmaps[1] = -heatmaps[1].abs()
    heatmaps[2, 0, 0] = 9.0
    for mask, heatmap in zip(mask_peaks(heatmaps).flatten(1).tolist(), heatmaps.flatten(1).tolist(), strict=True):
        positive = [value for value in heatmap if value > 0]
        limit = statistics.fmean(positive) + 2 * statistics.pstdev(positive) if positive else math.inf
        assert mask == [value > limit for value in heatmap]
    assert not mask_peaks(heatmaps)[1].any() and mask_peaks(heatmaps)[2, 0, 0]


def test_masked_pixels_are_black_and_the_others_as_they_were():
    images = TensorImages(torch.randint(1, 256, (5, 2, 3, 3), dtype=torch.uint8), torch.arange(5))
    masks = torch.rand(5, 3, 3, generator=seeded(0)) < 0.3
    batch = next(read_batches(MaskedImages(images, masks), indices=torch.tensor([4, 1, 4])))
    assert batch.indices.tolist() == batch.labels.tolist() == [4, 1, 4]
    for row, index in enumerate([4, 1, 4]):
        plain, _ = images[index]
        assert torch.equal(batch.images[row], torch.where(masks[index], 0.0, plain))


def marked(seed, share, count=200):
    """Grey noise of 8 x 8 pixels with a black corner, brighter at the top in class 1, of which a share has a white mark in the corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = 100 + 30 * torch.randn(count, 1, 8, 8, generator=generator)
    pixels[:, :, :4] += 40 * labels[:, None, None, None]
    has = torch.rand(count, generator=generator) < torch.where(labels == 1, share, 1 - share)
    pixels[:, :, 6:, 6:] = 255.0 * has[:, None, None, None]
    return TensorImages(pixels.clamp(0, 255).to(torch.uint8), labels), has


def test_the_planted_mark_is_masked_and_given_up(bench):
    """A linear network that reads the mark. After an epoch without it, it is right more often where the mark tells nothing."""
    torch.manual_seed(0)
    images, has = marked(0, 1.0, count=2000)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)))
    train_plainly(model, images, recipe=Recipe(3, 3e-3), batch_size=32, seed=0)
    changed = with_splits(bench, train=images, validation=images)
    changed = replace(changed, run=replace(changed.run, model=model))
    masks = mask_images(changed)
    assert masks[has][:, 6:, 6:].float().mean() > 0.8
    assert masks[:, :6].float().mean() < 0.1
    tuned = METHODS["mask-tune"](changed)
    unclear, _ = marked(1, 0.5)
    right = [predict_labels(network, read_batches(unclear)).correct.double().mean().item() for network in (model, tuned)]
    assert right[0] < 0.7 and right[1] > right[0] + 0.1
    assert any("of the pixels of the training images are masked" in note for note in changed.reporter.notes)
