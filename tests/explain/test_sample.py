"""Selection against a full sort; what it holds does not depend on how many images there are."""

import gc
import tracemalloc
from functools import partial

import pytest
import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, read_batches
from rightreasons.errors import ModelError
from rightreasons.explain.sample import select_images
from rightreasons.networks.classifier import output_entropy
from rightreasons.networks.predictions import predict_batch


class LogitData(torch.utils.data.Dataset):
    """Images that are logits, so that the model is nn.Flatten(); most confident where the label is 0."""

    def __init__(self, count: int, classes: int = 3, weights=None) -> None:
        draws = seeded(0, "logits")
        self.labels = torch.multinomial(torch.ones(classes) if weights is None else torch.tensor(weights), count, replacement=True, generator=draws)
        self.images = torch.randn(count, 1, 1, classes, generator=draws) * (3 - self.labels.clamp_max(2))[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices) -> Batch:
        return Batch(indices, self.images[indices], self.labels[indices])

    @property
    def entropy(self):
        """Eq. 1, a class at a time."""
        rows = []
        for logits in self.images.flatten(1).double():
            p = (logits - logits.max()).exp()
            p = (p / p.sum()).tolist()
            rows.append(-sum(q * torch.tensor(q).double().log().item() for q in p if q > 0))
        return torch.tensor(rows)


def select(data, *, strategy="low-entropy", size=10, quota=None, classes=3, batch_size=16, seed=0, model=None):
    batches = map(partial(predict_batch, model or nn.Flatten()), read_batches(data, batch_size=batch_size))
    return select_images(batches, strategy=strategy, size=size, quota=quota, classes=classes, generator=seeded(seed, "select"))


@pytest.mark.parametrize(("strategy", "descending"), [("low-entropy", False), ("high-entropy", True)])
def test_equals_a_full_sort(strategy, descending):
    data = LogitData(200)
    chosen = select(data, strategy=strategy, size=25)
    expected = data.entropy.argsort(descending=descending)[:25]
    assert chosen.strategy == strategy
    assert torch.equal(chosen.indices, expected)
    assert torch.equal(chosen.labels, data.labels[expected])
    torch.testing.assert_close(chosen.entropy, data.entropy[expected].float(), atol=1e-6, rtol=1e-4)


def test_random_draws_without_repeats_by_seed_alone():
    data = LogitData(200)
    one, again, other = (select(data, strategy="random", size=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.indices, again.indices)
    assert not torch.equal(one.indices, other.indices)
    assert len(one.indices.unique()) == 50
    torch.testing.assert_close(one.entropy, data.entropy[one.indices].float(), atol=1e-6, rtol=1e-4)


def test_random_is_even_over_the_images():
    data = LogitData(40)
    times = torch.zeros(40)
    for seed in range(400):
        times[select(data, strategy="random", size=10, seed=seed, batch_size=40).indices] += 1
    assert times.sum() == 4000
    assert ((times - 100).abs() < 5 * (400 * 0.25 * 0.75) ** 0.5).all()


@pytest.mark.parametrize("strategy", ["low-entropy", "high-entropy", "random"])
@pytest.mark.parametrize("quota", [None, 4])
def test_the_batch_size_changes_nothing(strategy, quota):
    data = LogitData(100)
    results = [select(data, strategy=strategy, quota=quota, size=12, batch_size=batch_size) for batch_size in (1, 7, 16, 100)]
    assert all(torch.equal(result.indices, results[0].indices) for result in results)


def test_among_equals_the_earlier_image_is_chosen():
    data = LogitData(30)
    data.images[:] = data.images[0].clone()
    assert select(data, size=5, batch_size=4).indices.tolist() == [0, 1, 2, 3, 4]
    assert select(data, size=5, batch_size=4, strategy="high-entropy").indices.tolist() == [0, 1, 2, 3, 4]


def full_sort_with_quota(data, size, quota, classes):
    order = data.entropy.argsort().tolist()
    taken = [i for label in range(classes) for i in [j for j in order if data.labels[j] == label][:quota]]
    rest = [i for i in order if i not in taken]
    taken += rest[: max(0, size - len(taken))]
    return sorted(taken, key=order.index)[:size]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.9, 0.08, 0.02], [1.0, 1.0, 0.0]])
@pytest.mark.parametrize(("size", "quota"), [(12, 4), (12, 3), (10, 4), (30, 10), (20, 1)])
def test_quota_equals_a_full_sort(weights, size, quota):
    """(10, 4) is the default of `per_class = "auto"`: ten over three classes, rounded up."""
    data = LogitData(120, weights=weights)
    chosen = select(data, size=size, quota=quota)
    assert chosen.indices.tolist() == full_sort_with_quota(data, size, quota, 3)
    counts = torch.bincount(data.labels, minlength=3)
    if quota * 3 >= size and (counts >= quota).all():
        assert torch.bincount(chosen.labels, minlength=3).max() <= quota


def test_a_class_with_fewer_images_gives_its_places_to_the_others():
    data = LogitData(60, weights=[0.5, 0.45, 0.05])
    few = int((data.labels == 2).sum())
    assert 0 < few < 10
    chosen = select(data, size=30, quota=10)
    assert len(chosen) == 30
    assert (chosen.labels == 2).sum() == few


def test_no_more_than_there_are():
    assert len(select(LogitData(7), size=10)) == 7
    assert sorted(select(LogitData(7), size=10, quota=4).indices.tolist()) == list(range(7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_is_single_precision_whatever_the_model_computes_in(dtype):
    class Half(nn.Module):
        def forward(self, x):
            return x.flatten(1).to(dtype)

    data = LogitData(300)
    data.images *= 4  # so sure that half precision would round many entropies to the same number
    rounded = data.images.flatten(1).to(dtype)
    entropy = output_entropy(rounded)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=rounded.double()).entropy().float(), atol=1e-6, rtol=1e-4)
    chosen = select(data, size=20, model=Half())
    assert chosen.entropy.dtype == torch.float32
    assert torch.equal(chosen.entropy, entropy.sort().values[:20])


def test_entropy_of_extreme_logits_is_finite():
    entropy = output_entropy(torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [3e38, 0.0, 0.0]]))
    assert entropy.tolist() == pytest.approx([0, torch.tensor(3.0).log().item(), 0], abs=1e-6)


class Endless(torch.utils.data.Dataset):
    """Images made when they are read. Notes how many bytes are held at the last one."""

    def __init__(self, count: int) -> None:
        self.count, self.held = count, 0

    def __len__(self) -> int:
        return self.count

    def read(self, indices) -> Batch:
        if int(indices[-1]) == self.count - 1:
            gc.collect()
            tensors = {id(t.untyped_storage()): t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor}
            self.held = sum(tensors.values()) + tracemalloc.get_traced_memory()[0]
        phase = indices.float()[:, None] * torch.tensor([0.37, 1.1, 2.3])
        return Batch(indices, phase.sin()[:, None, None], indices % 3)


@pytest.mark.parametrize("quota", [None, 40])
def test_memory_does_not_grow_with_the_images(quota):
    def held(count):
        data = Endless(count)
        tracemalloc.start()
        try:
            assert len(select(data, size=100, quota=quota, batch_size=5000)) == 100
        finally:
            tracemalloc.stop()
        return data.held

    # One number kept of each image would be 3.6 MB more.
    assert held(1_000_000) < held(100_000) + 200_000


def test_an_image_whose_logits_are_not_finite_is_named():
    data = LogitData(40)
    data.images[23, 0, 0, 1] = torch.inf
    with pytest.raises(ModelError, match="of image 23 are not finite"):
        select(data, strategy="random", size=4, batch_size=8)
