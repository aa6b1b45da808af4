"""The one training loop: resuming, what it minimises, and that it keeps to its own randomness."""

import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.data.loading import read_batches
from rightreasons.errors import ModelError
from rightreasons.networks.classifier import as_classifier
from rightreasons.networks.optimizers import open_optimizer
from rightreasons.networks.training import Recipe, flip_together, train_model, train_plainly


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"}),
    ],
)
def test_an_optimizer_steps_as_torchs_own_and_reads_its_state(kind, settings):
    """Four steps of each; after two of them, the state is handed over to another optimizer as a resumed training does."""
    ends = []
    for start in (lambda weights: open_optimizer(kind, weights, **settings), lambda weights: kind(weights, **settings)):
        weight = torch.tensor([1.0, -2.0], requires_grad=True)
        optimizer = start([weight])

        def loss(weight=weight):
            if weight.grad is not None:
                weight.grad = None
            value = ((weight - torch.tensor([3.0, 0.5])) ** 4).sum() + weight.prod()
            value.backward()
            return value

        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                optimizer = start([weight])
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            optimizer.step(loss)
        ends.append(weight.detach())
    assert torch.equal(*ends) and not torch.equal(ends[0], torch.tensor([1.0, -2.0]))


def test_training_does_not_import_torchs_compiler():
    """That takes longer than a small training."""
    code = """
import sys, torch
from rightreasons.networks.training import Recipe, train_plainly
data = torch.utils.data.TensorDataset(torch.rand(4, 1, 2, 2), torch.arange(4) % 2)
train_plainly(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), data, recipe=Recipe(1, 1e-3), batch_size=2, seed=0)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def assert_same_weights(one: nn.Module, other: nn.Module):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture
def model(build_seeded):
    """Dropout and batch norm: randomness and statistics must be resumed too."""
    return build_seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3)),
    )


def train(model, dataset, epochs=6, seed=0, **options):
    train_plainly(model, dataset, recipe=Recipe(epochs, 1e-2), batch_size=5, seed=seed, **options)
    return model


@pytest.mark.parametrize("killed_after", [1, 3, 6])
def test_resumed_training_equals_one_go_bit_for_bit(model, tiny_dataset, tmp_path, killed_after):
    def kill(done, total):
        if done == killed_after:
            raise Killed

    whole = train(copy.deepcopy(model), tiny_dataset)
    with pytest.raises(Killed):
        train(copy.deepcopy(model), tiny_dataset, checkpoint=tmp_path / "part.pt", progress=kill)
    torch.rand(7)  # another process, another global state
    resumed = train(copy.deepcopy(model), tiny_dataset, checkpoint=tmp_path / "part.pt")
    assert_same_weights(whole, resumed)


def test_a_kill_within_an_epoch_loses_that_epoch_alone(model, tiny_dataset, tmp_path):
    class Dies(type(tiny_dataset)):
        reads = 0

        def __getitem__(self, index):
            Dies.reads += 1
            if Dies.reads == 60:  # in the third epoch of 24
                raise Killed
            return super().__getitem__(index)

    whole = train(copy.deepcopy(model), tiny_dataset)
    with pytest.raises(Killed):
        train(copy.deepcopy(model), Dies(tiny_dataset.images, tiny_dataset.labels), checkpoint=tmp_path / "part.pt")
    done = []
    resumed = train(copy.deepcopy(model), tiny_dataset, checkpoint=tmp_path / "part.pt", progress=lambda epoch, total: done.append(epoch))
    assert done == [3, 4, 5, 6]
    assert_same_weights(whole, resumed)


def test_the_seed_alone_decides_and_global_state_is_left_alone(model, tiny_dataset):
    torch.manual_seed(1)
    one = train(copy.deepcopy(model), tiny_dataset, epochs=2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = train(copy.deepcopy(model), tiny_dataset, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(one, other)
    assert not torch.equal(train(copy.deepcopy(model), tiny_dataset, epochs=2, seed=1)[5].weight, one[5].weight)


def test_the_loss_falls_and_the_model_comes_back_in_eval_mode(tiny_mlp, tiny_dataset):
    def loss():
        return F.cross_entropy(tiny_mlp(tiny_dataset.images), tiny_dataset.labels).item()

    before = loss()
    train(tiny_mlp, tiny_dataset, epochs=40)
    assert loss() < 0.5 * before
    assert not any(module.training for module in tiny_mlp.modules())


def test_every_image_is_seen_once_an_epoch(tiny_mlp, tiny_dataset):
    seen = []
    tiny_mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    train(tiny_mlp, tiny_dataset, epochs=2)
    assert [len(images) for images in seen] == [5, 5, 5, 5, 4] * 2
    for epoch in (torch.cat(seen[:5]), torch.cat(seen[5:])):
        assert torch.equal(epoch.sum((1, 2, 3)).sort().values, tiny_dataset.images.sum((1, 2, 3)).sort().values)
    assert not torch.equal(seen[0], seen[5])


def steps(model, dataset, *, gamma=0.0, extra=lambda: 0.0, **options):
    def loss(batch, generator):
        return F.cross_entropy(model(batch.images), batch.labels) + extra()

    train_model(
        model,
        batches=lambda generator: read_batches(dataset, batch_size=8),
        steps_per_epoch=3,
        loss=loss,
        recipe=Recipe(4, 1e-2, gamma),
        seed=0,
        **options,
    )
    return model


def test_gamma_is_the_weight_of_the_squared_norm(tiny_mlp, tiny_dataset):
    """L = CE + gamma ||theta||^2, whose gradient is 2 gamma theta."""
    by_option, explicit, without = (copy.deepcopy(tiny_mlp).double() for _ in range(3))
    tiny_dataset.images = tiny_dataset.images.double()

    class Double(type(tiny_dataset)):
        def read(self, indices):
            from rightreasons.data.loading import Batch

            return Batch(indices, self.images[indices], self.labels[indices])

    data = Double(tiny_dataset.images, tiny_dataset.labels)
    steps(by_option, data, gamma=0.05)
    steps(explicit, data, extra=lambda: 0.05 * sum(parameter.square().sum() for parameter in explicit.parameters()))
    steps(without, data)
    for a, b, c in zip(by_option.parameters(), explicit.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)
        assert not torch.allclose(a, c, atol=1e-4)


def test_the_learning_rate_falls_along_a_half_cosine(tiny_dataset):
    """Adam moves by the rate itself where the gradient never changes."""

    class Ramp(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros((), dtype=torch.float64))

    ramp, path = Ramp(), [0.0]

    def loss(batch, generator):
        path.append(ramp.at.item())
        return ramp.at * 1.0

    train_model(
        ramp,
        batches=lambda generator: read_batches(tiny_dataset, batch_size=8),
        steps_per_epoch=3,
        loss=loss,
        recipe=Recipe(2, 0.1),
        seed=0,
    )
    moves = [a - b for a, b in zip(path[1:], [*path[2:], ramp.at.item()], strict=True)]
    assert moves == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)], rel=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics(model, tiny_dataset, frozen):
    before = copy.deepcopy(model)
    steps(model, tiny_dataset, freeze_statistics=frozen)
    assert torch.equal(model[1].running_mean, before[1].running_mean) == frozen
    assert torch.equal(model[1].running_var, before[1].running_var) == frozen
    assert not torch.equal(model[1].weight, before[1].weight)  # its scale still learns


@pytest.mark.parametrize("killed_after", [None, 1, 3])
@pytest.mark.parametrize(("slack", "chosen"), [(0.0, 2), (0.3, 2), (0.5, 3)])
def test_the_best_epoch_is_kept_also_over_a_kill(model, tiny_dataset, tmp_path, slack, chosen, killed_after):
    """The second of four epochs is the best, of equal ones the later, and with slack a later one that is not much worse."""
    merits, states = iter([0.1, 0.7, 0.7, 0.3]), []

    def judge(candidate, epoch):
        states.append(copy.deepcopy(candidate.state_dict()))
        assert epoch == len(states)
        return next(merits)

    def kill(done, total):
        if done == killed_after:
            raise Killed

    def go(**options):
        steps_per_epoch = 5
        train_model(
            trained,
            batches=lambda generator: read_batches(tiny_dataset, indices=torch.randperm(24, generator=generator), batch_size=5),
            steps_per_epoch=steps_per_epoch,
            loss=lambda batch, generator: F.cross_entropy(trained(batch.images), batch.labels),
            recipe=Recipe(4, 1e-2),
            seed=0,
            judge_epoch=judge,
            slack=slack,
            checkpoint=tmp_path / "part.pt",
            **options,
        )

    trained = copy.deepcopy(model)
    if killed_after is not None:
        with pytest.raises(Killed):
            go(progress=kill)
        trained = copy.deepcopy(model)
    go()
    assert len(states) == 4
    assert all(torch.equal(value, states[chosen][name]) for name, value in trained.state_dict().items())


def test_a_steps_gradient_has_a_longest_length(tiny_mlp, tiny_dataset):
    steps_seen = []

    def loss(batch, generator):
        steps_seen.append([parameter.grad for parameter in tiny_mlp.parameters()])
        return 1e6 * F.cross_entropy(tiny_mlp(batch.images), batch.labels)

    train_model(
        tiny_mlp, batches=lambda generator: read_batches(tiny_dataset, batch_size=8), steps_per_epoch=3, loss=loss, recipe=Recipe(1, 1e-3), seed=0
    )
    length = torch.cat([parameter.grad.flatten() for parameter in tiny_mlp.parameters()]).norm().item()
    assert length == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize(("layers", "trained"), [("all", {"1", "3", "5"}), ("last-blocks", {"3", "5"}), ("head", {"5"})])
def test_only_the_layers_asked_for_train(tiny_mlp, tiny_dataset, layers, trained):
    before = copy.deepcopy(tiny_mlp.state_dict())
    train_plainly(tiny_mlp, tiny_dataset, recipe=Recipe(1, 1e-2, layers=layers), batch_size=8, seed=0)
    changed = {name.split(".")[0] for name, value in tiny_mlp.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    assert all(parameter.requires_grad for parameter in tiny_mlp.parameters())


def test_flips_mirror_half_of_the_rows_and_the_same_ones_of_every_tensor(generator):
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(400, 1, 4, 4)
    masks = images[:, 0] > 7
    for flips, kinds in (("off", 1), ("horizontal", 2), ("both", 4)):
        turned, turned_masks = flip_together(flips, generator, images, masks)
        assert torch.equal(turned_masks, turned[:, 0] > 7)
        corners = turned[:, 0, 0, 0].tolist()
        assert len(set(corners)) == kinds
        assert all(abs(corners.count(corner) - 400 / kinds) < 60 for corner in set(corners))


class HeadFirst(nn.Module):
    """Registered in another order than called; the middle layer's weight is used without a call of the layer, and one layer never."""

    def __init__(self):
        super().__init__()
        self.head, self.unused, self.stem = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(16, 8)
        self.block = nn.ModuleDict({"inner": nn.Linear(8, 8)})

    def forward(self, x):
        h = torch.relu(self.stem(x.flatten(1)))
        return self.head(F.linear(h, self.block["inner"].weight))


@pytest.mark.parametrize(("layers", "trained"), [("head", {"head"}), ("last-blocks", {"stem", "head"})])
def test_layers_count_in_the_order_in_which_they_are_called(build_seeded, tiny_dataset, layers, trained):
    network = build_seeded(HeadFirst)
    before = copy.deepcopy(network.state_dict())
    train_plainly(network, tiny_dataset, recipe=Recipe(1, 1e-2, layers=layers), batch_size=8, seed=0)
    assert {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])} == trained


@pytest.mark.parametrize(("frozen", "trained"), [({"1", "3", "5"}, {"1", "3", "5"}), ({"1", "3"}, {"5"})])
def test_frozen_weights_stay_frozen_unless_all_are(tiny_mlp, tiny_dataset, frozen, trained):
    for name, parameter in tiny_mlp.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in frozen)
    before = copy.deepcopy(tiny_mlp.state_dict())
    train_plainly(tiny_mlp, tiny_dataset, recipe=Recipe(1, 1e-2), batch_size=8, seed=0)
    assert {name.split(".")[0] for name, value in tiny_mlp.state_dict().items() if not torch.equal(value, before[name])} == trained
    assert all(parameter.requires_grad == (name.split(".")[0] not in frozen) for name, parameter in tiny_mlp.named_parameters())


def test_a_network_without_weights_cannot_be_trained(tiny_dataset):
    with pytest.raises(ModelError, match="no weights to train"):
        train_plainly(nn.Flatten(), tiny_dataset, recipe=Recipe(1, 1e-2), batch_size=8, seed=0)


def test_a_last_batch_of_one_image_joins_the_one_before(build_seeded, in_memory):
    """torch 2.14: BatchNorm1d raises ValueError on one value per channel in train mode."""
    network = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    sizes = []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    train_plainly(network, in_memory(torch.rand(17, 1, 4, 4), torch.arange(17) % 2), recipe=Recipe(1, 1e-3), batch_size=8, seed=0)
    assert sizes == [8, 9]


class Standardises(nn.Module):
    """Divides by the deviation of each image: of a constant one the logits are NaN, or with ``late`` their gradient alone."""

    def __init__(self, late):
        super().__init__()
        self.scale, self.head, self.late = nn.Linear(16, 16, bias=False), nn.Linear(16, 3), late
        nn.init.eye_(self.scale.weight)

    def forward(self, x):
        x = self.scale(x.flatten(1))
        centred = x - x.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        return self.head(centred) * (1 + deviation) if self.late else self.head(centred / deviation)


@pytest.mark.parametrize("late", [False, True])
def test_training_that_diverges_names_the_image_and_keeps_the_weights(build_seeded, tiny_dataset, late):
    tiny_dataset.images[13] = 0
    network = build_seeded(lambda: Standardises(late))
    with pytest.raises(ModelError, match=r"training diverged in epoch 1 .*image 13 are not finite.*pixels go from 0 to 0 \(a deviation of 0"):
        train_plainly(network, tiny_dataset, recipe=Recipe(2, 1e-2), batch_size=8, seed=0)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_a_loss_that_diverges_on_harmless_images_asks_for_a_lower_learning_rate(tiny_mlp, tiny_dataset):
    with pytest.raises(ModelError, match="lower the learning rate"):
        train_model(
            tiny_mlp,
            batches=lambda generator: read_batches(tiny_dataset, batch_size=8),
            steps_per_epoch=3,
            loss=lambda batch, generator: tiny_mlp(batch.images).sum() * math.inf,
            recipe=Recipe(1, 1e-3),
            seed=0,
        )


class Noting(nn.Module):
    """Convolutions, and whether each batch of several images came with its channels last."""

    def __init__(self, learns, answers):
        super().__init__()
        self.layers, self.head, self.noted = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4 * 36, 2), []
        self.learns, self.answers = learns, answers

    def forward(self, x):
        if self.training:
            self.noted.append(not x.is_contiguous())
        return self.head((self.learns if self.training else self.answers)(self.layers(x)))


def flat(x):
    return x.flatten(1)


def viewed(x):
    return x.view(len(x), -1)


@pytest.mark.parametrize(
    ("learns", "answers", "last"),
    [(flat, flat, True), (viewed, viewed, False), (viewed, flat, False)],
    ids=["any layout", "a view of one layout", "a view in training alone"],
)
def test_convolutions_learn_from_images_with_their_channels_last_if_they_can(build_seeded, in_memory, learns, answers, last):
    dataset = in_memory(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2)
    plain, network = (build_seeded(lambda: Noting(learns, answers)) for _ in range(2))
    for model in (plain, as_classifier(network)):
        train_plainly(model, dataset, recipe=Recipe(2, 1e-2), batch_size=4, seed=0)
    assert network.noted == [last] * 4 and plain.noted == [False] * 4
    assert as_classifier(network).layout == torch.preserve_format
    for ours, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_weight_with_gaps_is_trained_and_nothing_between_them(tiny_dataset):
    """torch 2.14.1's fused Adam takes such a weight for one piece of memory."""
    whole = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before = whole.clone()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model[1].weight = nn.Parameter(whole[:, ::2])
    train_plainly(model, tiny_dataset, recipe=Recipe(1, 1e-2), batch_size=8, seed=0)
    assert torch.equal(whole[:, 1::2], before[:, 1::2]) and (whole[:, ::2] != before[:, ::2]).all()
