"""Steps that several processes take together: every loss has the gradient that one process gives it, and training ends at the same weights."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rightreasons.common.seeds import seeded
from rightreasons.config import AlignConfig
from rightreasons.data.loading import Batch, read_all
from rightreasons.networks import team
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.repair.align import AlignLoss, AlignmentSet
from tests.support.together import run_together

SIDE, COUNT = 6, 13


def images_with_marks():
    """Images of two classes, and a batch of five of which two have a mark."""
    generator = seeded(0, "team")
    data = TensorDataset(torch.rand(COUNT, 3, SIDE, SIDE, generator=generator), torch.arange(COUNT) % 2)
    masks = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    masks[:2, :2, :2] = True
    return data, AlignmentSet(read_all(data, range(4)), masks, torch.zeros_like(masks)), read_all(data, (7, 8, 9, 0, 3))


def network(*, batch_norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = [nn.BatchNorm2d(4)] if batch_norm else []
        return Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * (SIDE - 2) ** 2, 2)))


def take_step(loss, batch: Batch):
    """The loss and its gradients, added up where others take the step as well."""
    weights = list(loss.model.parameters())
    loss.model.zero_grad()
    value = loss(batch, seeded(0, "step"))
    value.backward()
    team.add_up_gradients(weights)
    return [value.detach(), *(weight.grad.clone() for weight in weights)]


def take_step_with_others(loss, batch):
    with team.step_together():
        return take_step(loss, batch)


def compare_gradients(terms):
    """Of three processes, one has no row of the two images with a mark."""
    _, alignment, batch = images_with_marks()
    model = network()
    with team.joined():
        if team.serve({"model": model}, "the same"):
            return
        for term, penalty in terms:
            loss = AlignLoss(model, alignment, AlignConfig(term=term, penalty=penalty), part=2)
            alone = take_step(loss, batch)
            with team.helped_by(take_step_with_others, loss, batch):
                together = take_step_with_others(loss, batch)
            for here, there in zip(alone, together, strict=True):
                torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-7)
            print(term, penalty, "equal")


def test_three_processes_have_the_gradient_of_one_for_every_loss(tmp_path):
    terms = [("none", "effect"), ("swap+penalty", "effect"), ("penalty", "jacobian"), ("swap+penalty", "log_prob_sum")]
    ended = run_together(compare_gradients, terms, size=3, folder=tmp_path)
    assert [part.code for part in ended] == [0, 0, 0], "".join(part.output for part in ended)
    assert [line for line in ended[0].output.splitlines() if line.endswith("equal")] == [f"{term} {penalty} equal" for term, penalty in terms]


class Stopped(Exception):
    """The command was stopped between two epochs."""


def stop(done, total):
    if done == 1:
        raise Stopped


def train(model, data, **options):
    train_plainly(model, data, recipe=Recipe(2, 1e-2), batch_size=4, seed=0, **options)
    return model.state_dict()


def compare_training(folder):
    """Batches of 4, 4 and 5 images, which two processes cannot all share evenly."""
    data, _, _ = images_with_marks()
    models = {"plain": network(), "statistics of the batch": network(batch_norm=True)}
    with team.joined():
        alone = {name: train(copy.deepcopy(model), data) for name, model in models.items()}
        if team.serve({"model": models["plain"], "train": data}, "the same"):
            return
        together = train(copy.deepcopy(models["plain"]), data)
        with pytest.raises(Stopped):
            train(copy.deepcopy(models["plain"]), data, checkpoint=folder / "training.pt", progress=stop)
        normed = train(copy.deepcopy(models["statistics of the batch"]), data)
    resumed = train(copy.deepcopy(models["plain"]), data, checkpoint=folder / "training.pt")
    for name, weight in alone["plain"].items():
        for other in (together, resumed):
            torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6)
    assert all(normed[name].equal(weight) for name, weight in alone["statistics of the batch"].items()), "one process trains such a network"
    print("equal")


def test_two_processes_train_to_the_weights_of_one_and_one_goes_on_from_them(tmp_path):
    ended = run_together(compare_training, tmp_path, size=2, folder=tmp_path)
    assert [part.code for part in ended] == [0, 0] and "equal" in ended[0].output, "".join(part.output for part in ended)


def test_one_process_does_what_there_is_by_itself():
    data, _, batch = images_with_marks()
    assert team.processes() == 1 and list(team.map_shared(lambda items: (2 * item for item in items), [1, 2, 3])) == [2, 4, 6]
    assert team.by_rows(lambda rows: batch.images[rows], len(batch)).equal(batch.images)
    assert sum(team.map_batches(len, data, batch_size=4)) == COUNT
