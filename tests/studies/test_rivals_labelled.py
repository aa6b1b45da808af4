"""Rivals that are told groups: what each shows the network and how it weighs it, by loops; and that each repairs a planted shortcut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, read_batches
from rightreasons.data.task import TensorImages
from rightreasons.errors import ConfigError, ModelError
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.head import find_head, read_features, replace_head
from rightreasons.studies.methods import METHODS
from rightreasons.studies.methods.dfr import Scaler, average_heads, fit_head
from rightreasons.studies.methods.group_dro import GroupLoss, draw_balanced
from rightreasons.studies.methods.jtt import repeat_errors
from rightreasons.studies.methods.labels import TrainGroups, ValidationGroups
from rightreasons.studies.methods.subg import subsample_groups
from rightreasons.studies.methods.training import draw_in_passes
from tests.support.planted import make_bench, plant, worst

RIVALS = ("subg", "group-dro", "jtt", "dfr")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("rivals"))


@pytest.mark.parametrize("name", RIVALS)
def test_each_repairs_a_planted_shortcut(bench, name):
    before = {key: value.clone() for key, value in bench.run.model.state_dict().items()}
    assert worst(bench.run.model) < 0.4, "the shortcut model has fallen for it"
    assert worst(METHODS[name](bench)) > worst(bench.run.model) + 0.2
    assert all(torch.equal(before[key], value) for key, value in bench.run.model.state_dict().items()), "the shortcut model is left as it was"


def test_the_table_says_what_each_is_told():
    assert [METHODS[name].labels for name in RIVALS] == [TrainGroups, TrainGroups, ValidationGroups, ValidationGroups]
    assert "3 upweights" in METHODS["jtt"].selection and "C of 7" in METHODS["dfr"].selection


def test_as_many_of_every_group_as_the_smallest_has():
    groups = torch.tensor([0] * 9 + [1] * 4 + [2] * 6)[torch.randperm(19, generator=seeded(0))]
    kept = subsample_groups(groups, seeded(1))
    assert groups[kept].bincount().tolist() == [4, 4, 4] and len(kept.unique()) == 12
    assert set(kept.tolist()) != set(subsample_groups(groups, seeded(2)).tolist())


def test_passes_show_every_image_before_one_comes_again():
    drawn = draw_in_passes(torch.tensor([3, 5, 8]), 7, seeded(0)).tolist()
    assert len(drawn) == 7 and set(drawn[:3]) == set(drawn[3:6]) == {3, 5, 8}


def test_an_error_is_shown_once_and_upweight_times_more():
    shown = repeat_errors(5, torch.tensor([1, 4]), 20)
    assert shown.bincount().tolist() == [1, 21, 1, 1, 21]


def test_groups_are_drawn_equally_often():
    groups = torch.tensor([0] * 990 + [1] * 10)
    share = (groups[draw_balanced(groups, 20_000, seeded(0))] == 1).double().mean().item()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 20_000)


def test_the_weights_of_groups_by_loops():
    """Three batches, in the second of which a group has no image."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    measure, weights = GroupLoss(groups), [1 / 3] * 3
    for indices in ([0, 1, 2, 3], [0, 3, 4], [5, 2, 1]):
        logits = torch.randn(len(indices), 2, generator=generator, requires_grad=True)
        labels = torch.randint(2, (len(indices),), generator=generator)
        value = measure(Batch(torch.tensor(indices), torch.zeros(len(indices), 1, 1, 1), labels), logits)
        means, plain = [], logits.tolist()
        for group in range(3):
            rows = [row for row, index in enumerate(indices) if groups[index] == group]
            losses = [-math.log(math.exp(plain[row][labels[row]]) / sum(math.exp(z) for z in plain[row])) for row in rows]
            means.append(sum(losses) / len(losses) if losses else 0.0)
        weights = [weight * math.exp(0.01 * mean) for weight, mean in zip(weights, means, strict=True)]
        weights = [weight / sum(weights) for weight in weights]
        assert measure.weights.tolist() == pytest.approx(weights, rel=1e-5)
        assert value.item() == pytest.approx(sum(weight * mean for weight, mean in zip(weights, means, strict=True)), rel=1e-5)
        value.backward()
        for row, index in enumerate(indices):  # q is a constant for the gradient
            share = weights[groups[index]] / sum(groups[other] == groups[index] for other in indices)
            expected = share * (logits[row].softmax(0) - F.one_hot(labels[row], 2))
            assert torch.allclose(logits.grad[row], expected.detach(), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_folded_head_is_the_pipeline_of_scikit_learn(classes):
    """One fit, and the mean of several, against scikit-learn's scaler, solver and one-vs-rest."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = np.random.default_rng(0)
    labels = np.arange(120) % classes
    features = numbers.normal(size=(120, 6)) * [1, 5, 0.1, 2, 1, 1] + labels[:, None] * 0.7 + 3
    features[:, 5] = 2.0  # a constant one
    solver = LogisticRegression(l1_ratio=1.0, C=0.3, solver="liblinear", max_iter=1000, random_state=7)
    pipeline = make_pipeline(StandardScaler(), solver if classes == 2 else OneVsRestClassifier(solver)).fit(features, labels)
    values, known = torch.from_numpy(features), torch.from_numpy(labels)
    scaler = Scaler.of(values)
    logits = scaler.fold(fit_head(scaler.apply(values), known, classes, 0.3, 7)).logits(values)
    decision = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    assert np.allclose(decision.numpy(), pipeline.decision_function(features), atol=1e-8)
    assert (logits.argmax(1).numpy() == pipeline.predict(features)).all()

    # Groups of one size have one balanced subsample, so that all refits are that fit up to the solver's order.
    mean = average_heads(scaler.apply(values), known, known, classes, 0.3, seeded(0))
    assert torch.allclose(scaler.fold(mean).logits(values), logits, atol=0.05)


@pytest.mark.parametrize("order", [None, (1, 2, 0)])
def test_a_new_head_gives_its_logits_in_the_order_of_the_classes(order):
    torch.manual_seed(0)
    images = TensorImages(torch.randint(256, (9, 1, 2, 2), dtype=torch.uint8), torch.zeros(9, dtype=torch.long))
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), order=order)
    weight, bias = torch.randn(3, 5), torch.randn(3)
    batch = next(read_batches(images))
    features = read_features(model, [batch]).values
    new = replace_head(model, find_head(model, batch.images), weight, bias)
    assert torch.allclose(new(batch.images), features @ weight.T + bias, atol=1e-5)
    assert not torch.allclose(new(batch.images), model(batch.images), atol=1e-2)


def test_a_single_logit_becomes_a_head_of_two():
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)))
    images = torch.rand(6, 1, 2, 2)
    batch = Batch(torch.arange(6), images, torch.zeros(6, dtype=torch.long))
    weight, bias = torch.randn(2, 5), torch.randn(2)
    new = replace_head(model, find_head(model, images), weight, bias)
    assert torch.allclose(new(images), read_features(model, [batch]).values @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize(
    "network, words",
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()), "no linear layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1)), "'network.1', whose outputs are not the logits"),
    ],
)
def test_a_network_without_a_linear_head_is_refused(network, words):
    with pytest.raises(ModelError, match=words):
        find_head(Classifier(network), torch.rand(2, 1, 2, 2))


@pytest.mark.parametrize("name", ["subg", "group-dro"])
def test_a_group_without_training_images_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="training images are of 2 groups and the held-out images of 4"):
        METHODS[name](make_bench(tmp_path, few=0, train=False))


@pytest.mark.parametrize("counts, words", [({(0, 0): 9, (0, 1): 9}, "1 of 2 classes"), ({(0, 0): 9, (1, 1): 9, (1, 0): 1}, "has a single image")])
def test_dfr_refuses_held_out_images_that_are_too_few(tmp_path, counts, words):
    bench = make_bench(tmp_path, train=False)
    images, truth = plant(counts, 3)
    task = bench.run.project.task
    task = replace(task, splits={**task.splits, "validation": images}, truth={**task.truth, "validation": truth})
    bench.run.project = replace(bench.run.project, task=task)
    with pytest.raises(ConfigError, match=words):
        METHODS["dfr"](bench)


def test_an_empty_error_set_is_told_and_trained_plainly(tmp_path):
    bench = make_bench(tmp_path, train=False)
    images, truth = plant({(0, 0): 60, (1, 1): 60}, 4)
    task = bench.run.project.task
    bench.run.project = replace(bench.run.project, task=replace(task, splits={**task.splits, "train": images}, truth={**task.truth, "train": truth}))
    with torch.no_grad():  # the attribute decides, and it agrees with the class everywhere
        first, last = (layer for layer in bench.run.model.network.modules() if isinstance(layer, nn.Linear))
        for tensor in (first.weight, first.bias, last.weight):
            tensor.zero_()
        first.weight[0, 1], last.weight[1, 0] = 9, 9
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    METHODS["jtt"](bench)
    assert any("0 of 120 training images wrong" in note for note in bench.reporter.notes)
    assert any("empty error set" in note for note in bench.reporter.notes)
