"""Right-reasons fine-tuning: penalties against loops, what the model gets to see, and that it comes out right."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.config import AlignConfig
from rightreasons.data.loading import Batch, read_all, read_batches
from rightreasons.networks.predictions import predict_labels
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.repair.align import AlignLoss, AlignmentSet, Pieces, align_model, fill_segments, paste_segments, swapped_accuracy
from rightreasons.repair.penalties import effect_penalty
from rightreasons.repair.swap import swap_flip_rate

TERMS = [
    ("none", "effect"),
    ("swap", "effect"),
    ("penalty", "effect"),
    ("swap+penalty", "effect"),
    ("penalty", "jacobian"),
    ("swap+penalty", "log_prob_sum"),
]


def configure(term="swap+penalty", penalty="effect", **options) -> AlignConfig:
    return AlignConfig(**{"term": term, "penalty": penalty, "epochs": 1, "batch_size": 8, "ratio": 0.25, **options})


def place(*slices) -> torch.Tensor:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[slices] = True
    return mask


# Two inspected images with a spurious part each, and one with none; each part reaches over what is relevant in the other.
INSPECTED = [2, 5, 8]
MASKS = torch.stack([place(slice(0, 2)), place(slice(None), slice(0, 2)), torch.zeros(4, 4, dtype=torch.bool)])
RELEVANT = torch.stack([place(slice(2, 4), slice(0, 3)), place(slice(0, 3), slice(2, 4)), place(slice(0, 3))])


@pytest.fixture
def plain(in_memory):
    """Eleven images; every pixel of image i is (i + 1) / 100. No spurious part covers the lower right corner, which tells who it is."""
    return in_memory(((torch.arange(11) + 1.0) / 100)[:, None, None, None].expand(11, 1, 4, 4).contiguous(), torch.arange(11) % 2)


@pytest.fixture
def alignment(plain) -> AlignmentSet:
    return AlignmentSet(read_all(plain, INSPECTED), MASKS, RELEVANT)


class Recorder(nn.Module):
    """A small network that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
        self.seen, self.differentiated = [], []

    def forward(self, x):
        (self.differentiated if x.requires_grad else self.seen).append(x.detach().clone())
        return self.network(x)


@pytest.fixture
def recorder(build_seeded):
    return build_seeded(Recorder)


def names(images) -> list[int]:
    """Which image each is, by its corner."""
    return [round(100 * corner) - 1 for corner in images[:, 0, 3, 3].tolist()]


# Penalties


def test_the_effect_penalty_by_hand(generator):
    """Eq. 10: mean |f(x) - f(x')| / (sqrt(2) sigma), sigma over the batch, up to what keeps the root differentiable."""
    before, after = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    after[2] = before[2]
    batch = torch.cat([before, after, torch.randn(4, 3, generator=generator, dtype=torch.float64)])
    variance = 0.0
    for k in range(3):
        mean = sum(batch[n, k].item() for n in range(16)) / 16
        variance += sum((batch[n, k].item() - mean) ** 2 for n in range(16)) / 16
    total = sum(math.sqrt(sum((before[n, k] - after[n, k]).item() ** 2 for k in range(3)) / (2 * variance)) for n in range(6))
    assert effect_penalty(before, after, batch).item() == pytest.approx(total / 6, abs=2e-3)


def test_the_effect_penalty_has_no_unit_no_direction_and_a_gradient_everywhere(generator):
    before, after = torch.randn(2, 6, 3, generator=generator)
    value = effect_penalty(before, after, before).item()
    assert effect_penalty(before * 1000, after * 1000, before * 1000).item() == pytest.approx(value, rel=1e-2)
    assert effect_penalty(after, before, before).item() == pytest.approx(value, rel=1e-6)
    leaf = before.clone().requires_grad_()
    effect_penalty(leaf, before, leaf).backward()
    assert leaf.grad.isfinite().all()


def test_smaller_outputs_do_not_meet_the_effect_penalty(generator):
    """Its derivative by the scale of all outputs is zero, and by the effect's own is not."""
    before, change = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    for power, bounds in ((1, (-1e-3, 1e-3)), (2, (0.1, 10))):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        effect_penalty(scale * before, scale * before + scale**power * change, scale * before).backward()
        assert bounds[0] < scale.grad.item() < bounds[1]


# What goes into a batch


def test_an_epoch_shows_every_image_once_and_fills_the_alignment_part(plain, alignment, recorder):
    """ceil(n / (batch - part)) batches: eleven images by six."""
    align_model(recorder, plain, alignment, config=configure("none", epochs=2), seed=0)
    assert [len(images) for images in recorder.seen] == [8, 7, 8, 7]
    ordinary = [name for images in recorder.seen[:2] for name in names(images[:-2])]
    assert sorted(ordinary) == list(range(11))
    assert all(name in INSPECTED for images in recorder.seen for name in names(images[-2:]))
    assert all((images == images[:, :, 3:, 3:]).all() for images in recorder.seen)  # the control changes no pixel


@pytest.mark.parametrize(("batch_size", "ratio", "part"), [(8, 0.5, 4), (8, 0.01, 1), (4, 0.25, 1), (10, 0.9, 9)])
def test_the_alignment_part(plain, alignment, recorder, batch_size, ratio, part):
    align_model(recorder, plain, alignment, config=configure("none", batch_size=batch_size, ratio=ratio), seed=0)
    ordinary = batch_size - part
    assert len(recorder.seen) == math.ceil(11 / ordinary)
    assert all(len(images) == batch_size for images in recorder.seen[:-1])
    assert len(recorder.seen[-1]) == part + (11 - 1) % ordinary + 1


def test_alignment_samples_are_drawn_with_replacement_and_evenly(plain, alignment, recorder):
    align_model(recorder, plain, alignment, config=configure("none", epochs=100, ratio=0.5), seed=0)
    drawn = [name for images in recorder.seen for name in names(images[-4:])]
    assert len(drawn) == 100 * 3 * 4
    for index in INSPECTED:
        assert abs(drawn.count(index) - 400) < 5 * math.sqrt(1200 * 2 / 9)


@pytest.mark.parametrize(("term", "penalty"), [case for case in TERMS if "swap" in case[0]])
def test_a_swap_covers_spurious_places_alone_and_never_what_is_relevant(plain, alignment, recorder, term, penalty):
    align_model(recorder, plain, alignment, config=configure(term, penalty, epochs=60, lambda_=1.0), seed=0)
    changed_hosts, total, covered = [], 0, torch.zeros(4, 4, dtype=torch.bool)
    for step, images in enumerate(recorder.seen):
        shown = (8, 7)[step % 2]  # of an epoch's two batches; the clean halves of the pairs follow
        for image, name in zip(images[:shown, 0], names(images[:shown]), strict=True):
            total += 1
            changed = image != plain.images[name, 0]
            if not changed.any():
                continue
            changed_hosts.append(name)
            covered |= changed
            if name in INSPECTED:
                assert not (changed & RELEVANT[INSPECTED.index(name)]).any(), "a relevant pixel was covered"
    # Every image is filled, those with nothing spurious too; now and then the other image is the same one.
    assert len(changed_hosts) / total > 0.8
    assert set(changed_hosts) == set(range(11))
    assert torch.equal(covered, MASKS.any(0))


def test_what_is_known_to_be_spurious_is_filled_with_another_images_pixels(plain, alignment, generator):
    spurious, protected = alignment.look_up(torch.arange(11))
    assert torch.equal(spurious[[2, 5]], MASKS[:2] & ~RELEVANT[:2]) and not spurious[[0, 1, 3]].any()
    pieces, changed_places, refilled = Pieces(alignment), [], set()
    for _ in range(50):
        filled = fill_segments(plain.images, torch.zeros(11, dtype=torch.int64), spurious, protected, pieces, generator)
        for name, image in enumerate(filled[:, 0]):
            changed = image != plain.images[name, 0]
            inside = image[changed].unique()
            assert len(inside) <= 1, "the pixels of one other image"
            if name in (2, 5):
                assert torch.equal(changed, spurious[name]) or not changed.any()
                refilled |= {name} if changed.any() else set()
            elif changed.any() and name not in INSPECTED:
                changed_places.append(changed)
    assert refilled == {2, 5}
    # Elsewhere it is as if another image's piece lay there, so that a seam is no mark of a class.
    assert {tuple(place.flatten().tolist()) for place in changed_places} == {tuple(mask.flatten().tolist()) for mask in spurious[[2, 5]]}


def test_a_filling_is_taken_from_where_nothing_is_spurious(generator):
    """Nine of ten images have the same spurious place: with several tries the tenth is found most of the time."""
    images = torch.arange(10.0)[:, None, None, None].expand(10, 1, 4, 4) / 10
    spurious = place(slice(0, 2)).expand(10, 4, 4).clone()
    spurious[9] = False
    pieces = Pieces(AlignmentSet(Batch(torch.arange(10), images, torch.zeros(10, dtype=torch.int64)), spurious, torch.zeros_like(spurious)))
    one_group, nothing = torch.zeros(10, dtype=torch.int64), torch.zeros_like(spurious)
    filled = torch.stack([fill_segments(images, one_group, spurious, nothing, pieces, generator)[:9] for _ in range(200)])
    share = (filled[:, :, 0, 0, 0] == 0.9).float().mean().item()
    assert share == pytest.approx(1 - (8 / 9) ** 4, abs=0.05)
    # By class, an image is filled from its own; one that is alone in its class stays as it is.
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 2])
    filled = fill_segments(images, groups, spurious, nothing, pieces, generator)[:, 0, 0, 0]
    assert all(groups[round(10 * value)] == group for value, group in zip(filled.tolist(), groups.tolist(), strict=True))
    assert not (filled[:9] == images[:9, 0, 0, 0]).any() and filled[9] == images[9, 0, 0, 0]


def test_a_piece_is_pasted_whole_and_exactly(plain, alignment, generator):
    hosts = torch.full((200, 1, 4, 4), 0.9)
    pasted = paste_segments(hosts, torch.zeros(200, 4, 4, dtype=torch.bool), Pieces(alignment), generator)
    spurious = alignment.look_up(torch.tensor([2, 5]))[0]
    kinds = {tuple(image.flatten().tolist()) for image in pasted}
    expected = {tuple(torch.where(mask, plain.images[name, 0], 0.9).flatten().tolist()) for mask, name in zip(spurious, (2, 5), strict=True)}
    assert kinds == expected


def test_images_and_masks_are_flipped_together(in_memory, generator):
    """Every spurious pixel is white, so that after any flip a piece is white, and what a filling takes away is."""
    images = 0.4 * torch.rand(6, 1, 4, 4, generator=generator)
    masks = torch.zeros(6, 4, 4, dtype=torch.bool)
    masks[:3, 0, :2] = True
    images[:, 0][masks] = 1.0
    data = in_memory(images, torch.arange(6) % 2)
    alignment = AlignmentSet(read_all(data, range(6)), masks, torch.zeros_like(masks))
    for _ in range(20):
        pieces, where = Pieces(alignment, "both").draw(30, generator)
        assert (pieces[:, 0][where] == 1).all() and where.sum() == 60
    assert len({tuple(mask.flatten().tolist()) for mask in where}) == 4

    class White(nn.Module):
        """Remembers how many white pixels each image has."""

        def __init__(self):
            super().__init__()
            self.scale, self.counts = nn.Parameter(torch.zeros(2)), []

        def forward(self, x):
            self.counts += (x == 1).sum((1, 2, 3)).tolist()
            return x.sum((1, 2, 3))[:, None] * self.scale

    white = White()
    align_model(white, data, alignment, config=configure("swap", epochs=40, batch_size=6), seed=0, flips="both")
    # A filling may bring another image's white pixels, never more than a piece's, and a piece never comes in part.
    assert set(white.counts) <= {0, 2, 4}


def test_the_best_epoch_is_told_by_images_on_which_the_shortcut_says_nothing(in_memory, generator):
    """A model that reads the mark alone is right on plain images, and on swapped ones says what the piece says."""
    labels = torch.arange(40) % 2
    images = torch.zeros(40, 1, 4, 4)
    images[:, 0, 0, 0] = labels.float()
    inspected = Batch(torch.arange(40), images, labels)
    masks = (place(0, 0).expand(40, 4, 4) & (labels == 1)[:, None, None]).clone()
    alignment = AlignmentSet(inspected, masks, torch.zeros_like(masks))
    reads_mark = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        reads_mark[1].weight.zero_()
        reads_mark[1].weight[1, 0], reads_mark[1].bias[0], reads_mark[1].bias[1] = 1.0, 0.5, 0.0
    assert predict_labels(reads_mark, [inspected]).correct.all()
    assert swapped_accuracy(reads_mark, inspected, alignment, generator) == 0.5


@pytest.mark.parametrize("term", ["swap", "swap+penalty", "penalty"])
def test_without_a_spurious_segment_nothing_is_swapped(plain, recorder, term):
    nothing = AlignmentSet(read_all(plain, INSPECTED), torch.zeros_like(MASKS), RELEVANT)
    align_model(recorder, plain, nothing, config=configure(term), seed=0)
    assert all((images == images[:, :, 3:, 3:]).all() for images in recorder.seen)


@pytest.mark.parametrize(("term", "penalty"), TERMS)
def test_second_derivatives_are_taken_on_masked_alignment_samples_alone(plain, alignment, recorder, term, penalty):
    align_model(recorder, plain, alignment, config=configure(term, penalty, epochs=10, lambda_=1.0), seed=0)
    if penalty == "effect" or "penalty" not in term:
        assert recorder.differentiated == []
        return
    assert len(recorder.differentiated) > 0
    for images in recorder.differentiated:
        assert len(images) <= 2
        assert set(names(images)) <= {2, 5}
        assert all(torch.equal(image, plain.images[name]) for image, name in zip(images, names(images), strict=True))


# The loss


def mixed_batch(plain, alignment, ordinary: int, rows=(0, 1)) -> Batch:
    first, rows = read_all(plain, range(ordinary)), torch.tensor(rows)
    return Batch(
        torch.cat([first.indices, alignment.batch.indices[rows]]),
        torch.cat([first.images, alignment.batch.images[rows]]),
        torch.cat([first.labels, alignment.batch.labels[rows]]),
    )


@pytest.mark.parametrize("penalty", ["effect", "jacobian", "log_prob_sum"])
def test_the_loss_is_cross_entropy_plus_lambda_times_the_penalty(plain, alignment, recorder, penalty):
    batch = mixed_batch(plain, alignment, 6)
    loss = AlignLoss(recorder, alignment, configure("penalty", penalty, lambda_=7.0), part=2)
    cross_entropy, value = loss.terms(batch, seeded(0))
    assert loss(batch, seeded(0)).item() == pytest.approx(cross_entropy.item() + 7 * value.item(), rel=1e-6)
    assert cross_entropy.item() == pytest.approx(F.cross_entropy(recorder(batch.images), batch.labels).item(), rel=1e-5)
    assert value.item() > 0


@pytest.mark.parametrize("penalty", ["jacobian", "log_prob_sum"])
def test_lambda_auto_makes_the_penalty_as_large_as_the_cross_entropy(plain, alignment, recorder, penalty):
    batch = mixed_batch(plain, alignment, 6)
    loss = AlignLoss(recorder, alignment, configure("penalty", penalty), part=2)
    assert loss.needs_calibration
    loss.calibrate(batch, seeded(0))
    cross_entropy, value = loss.terms(batch, seeded(0))
    assert loss.weight * value.item() == pytest.approx(cross_entropy.item(), rel=1e-5)


def test_lambda_auto_of_a_penalty_of_zero(plain, recorder):
    nothing = AlignmentSet(read_all(plain, INSPECTED), torch.zeros_like(MASKS), RELEVANT)
    loss = AlignLoss(recorder, nothing, configure("penalty", "jacobian"), part=2)
    loss.calibrate(mixed_batch(plain, nothing, 6), seeded(0))
    assert math.isfinite(loss.weight)


@pytest.mark.parametrize("term", ["penalty", "swap+penalty"])
@pytest.mark.parametrize("ordinary", [1, 2, 3, 6])
def test_the_effect_penalty_of_the_last_and_smallest_batch_is_no_larger_than_others(in_memory, recorder, generator, term, ordinary):
    """An index is near 1 where the model reads nothing else; the variance of a single image says nothing."""
    data = in_memory(torch.rand(20, 1, 4, 4, generator=generator), torch.arange(20) % 2)
    alignment = AlignmentSet(read_all(data, range(8)), MASKS[:1].expand(8, 4, 4), torch.zeros(8, 4, 4, dtype=torch.bool))
    loss = AlignLoss(recorder, alignment, configure(term), part=4)
    values = [loss.terms(mixed_batch(data, alignment, ordinary, rows=(0, 1, 2, 3)), seeded(seed))[1].item() for seed in range(50)]
    assert max(values) < 5


# The whole


@pytest.fixture
def fragile(build_seeded):
    """Dropout and batch norm, whose randomness and statistics are easily disturbed."""
    return build_seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("term", "penalty"), TERMS)
def test_batch_norm_statistics_stay_as_they_are(plain, alignment, fragile, term, penalty, training):
    before = copy.deepcopy(fragile)
    align_model(fragile.train(training), plain, alignment, config=configure(term, penalty, epochs=2), seed=0)
    for name, value in fragile[1].named_buffers():
        assert torch.equal(value, dict(before[1].named_buffers())[name]), name
    assert not torch.equal(fragile[0].weight, before[0].weight)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("term", "penalty"), TERMS)
def test_resumed_alignment_equals_one_go_bit_for_bit(plain, alignment, fragile, tmp_path, term, penalty):
    def run(**options):
        model = copy.deepcopy(fragile)
        align_model(model, plain, alignment, config=configure(term, penalty, epochs=4), seed=3, **options)
        return model.state_dict()

    def kill(done, total):
        if done == 2:
            raise Killed

    whole = run()
    with pytest.raises(Killed):
        run(checkpoint=tmp_path / "part.pt", progress=kill)
    torch.rand(5)
    epochs = []
    resumed = run(checkpoint=tmp_path / "part.pt", progress=lambda done, total: epochs.append(done))
    assert epochs == [3, 4]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(("term", "penalty"), TERMS)
def test_the_seed_alone_decides_and_global_state_is_left_alone(plain, alignment, fragile, term, penalty):
    results = []
    for other_state in (1, 2):
        torch.manual_seed(other_state)
        state, model = torch.get_rng_state(), copy.deepcopy(fragile).train()
        align_model(model, plain, alignment, config=configure(term, penalty, epochs=2), seed=0)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_images_and_masks_are_not_changed(plain, alignment, recorder):
    copies = [tensor.clone() for tensor in (plain.images, alignment.batch.images, alignment.masks, alignment.protected)]
    align_model(recorder, plain, alignment, config=configure("swap+penalty", "effect", epochs=3), seed=0)
    for tensor, before in zip((plain.images, alignment.batch.images, alignment.masks, alignment.protected), copies, strict=True):
        assert torch.equal(tensor, before)


def shortcut_images(count: int, *, correlated: bool, seed: int):
    """The label brightens the lower half a little, with noise; the upper left pixel is the label, or, uncorrelated, a coin."""
    draws = seeded(seed, "shortcut")
    labels = torch.arange(count) % 2
    images = 0.5 + 0.25 * torch.randn(count, 1, 4, 4, generator=draws)
    images[:, 0, 2:] += 0.3 * (labels[:, None, None] - 0.5)
    corner = labels if correlated else torch.randint(2, (count,), generator=draws)
    images[:, 0, 0, 0] = corner.float()
    return images, labels


@pytest.fixture
def fooled(build_seeded, in_memory):
    """A network trained where a corner tells the label."""
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2)))
    train, test = (in_memory(*shortcut_images(400, correlated=correlated, seed=correlated)) for correlated in (True, False))
    train_plainly(model, train, recipe=Recipe(30, 5e-3), batch_size=32, seed=0)
    return model, train, test


@pytest.mark.parametrize(
    ("term", "weight", "works"),
    [("swap", "auto", True), ("penalty", 1.0, True), ("swap+penalty", "auto", True), ("none", "auto", False)],
)
def test_alignment_takes_the_shortcut_away_and_the_control_does_not(fooled, term, weight, works):
    """The gradient penalties are not here: a network that is flat at 0 and at 1 reads a corner of either all the same (docs/method.md, section 6)."""
    original, train, test = fooled
    masks = place(0, 0).expand(40, 4, 4)
    alignment = AlignmentSet(read_all(train, range(40)), masks, torch.zeros_like(masks))
    model = copy.deepcopy(original)
    align_model(model, train, alignment, config=AlignConfig(term=term, lambda_=weight, epochs=30, learning_rate=5e-3, batch_size=32), seed=0)

    def measure(network):
        accuracy = predict_labels(network, read_batches(test)).correct.double().mean().item()
        return accuracy, swap_flip_rate(network, read_all(train, range(100, 400)), alignment.batch, masks, seeded(0, "flips"))

    (accuracy_before, flips_before), (accuracy, flips) = measure(original), measure(model)
    assert accuracy_before < 0.75
    assert flips_before > 0.5
    if works:
        assert accuracy > 0.88
        assert flips < 0.25
    else:
        assert accuracy < 0.8
        assert flips > 0.4
