"""Fine-tuning that collapses: real trainings, told after the first epoch, begun again, and never chosen."""

import copy

import pytest
import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.config import AlignConfig
from rightreasons.data.loading import read_all
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.repair.align import GENTLER, AlignmentSet, align_model
from rightreasons.repair.collapse import Answers, has_collapsed, read_answers

INSPECTED = 40
# A sound rate for this network is below 1.
MUCH_TOO_HIGH = 5.0


def shortcut_images(count, *, correlated, seed):
    """The label brightens the lower half a little, with noise; the upper left pixel is the label, or, uncorrelated, a coin."""
    draws = seeded(seed, "shortcut")
    labels = torch.arange(count) % 2
    images = 0.5 + 0.25 * torch.randn(count, 1, 4, 4, generator=draws)
    images[:, 0, 2:] += 0.3 * (labels[:, None, None] - 0.5)
    images[:, 0, 0, 0] = (labels if correlated else torch.randint(2, (count,), generator=draws)).float()
    return images, labels


@pytest.fixture
def fooled(build_seeded, in_memory):
    """A network trained where a corner tells the label; its training set, held-out hosts, and images in which the corner tells nothing."""
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2)))
    train, hosts = (in_memory(*shortcut_images(count, correlated=True, seed=seed)) for count, seed in ((400, 1), (200, 2)))
    free = in_memory(*shortcut_images(400, correlated=False, seed=0))
    train_plainly(model, train, recipe=Recipe(30, 5e-3), batch_size=32, seed=0)
    return model, train, read_all(hosts, range(200)), read_all(free, range(400))


def repair(fooled, *, rate, condemned, epochs=6, **options):
    """The model after fine-tuning with the corner or everything judged spurious, and what was told."""
    original, train, hosts, _ = fooled
    model, told = copy.deepcopy(original), []
    masks = torch.zeros(INSPECTED, 4, 4, dtype=torch.bool)
    masks[:, condemned, condemned] = True
    alignment = AlignmentSet(read_all(train, range(INSPECTED)), masks, torch.zeros_like(masks))
    config = AlignConfig(epochs=epochs, learning_rate=rate, batch_size=32)
    align_model(model, train, alignment, config=config, seed=0, hosts=hosts, warn=told.append, **options)
    return model, told


CORNER, EVERYTHING = slice(0, 1), slice(None)


def test_a_sound_repair_is_not_taken_for_a_collapse(fooled):
    model, told = repair(fooled, rate=0.05, condemned=CORNER)
    assert not told
    assert read_answers(model, fooled[3]).accuracy > 0.85


def test_a_collapse_at_too_high_a_rate_is_told_after_the_first_epoch_and_a_lower_rate_repairs(fooled):
    model, told = repair(fooled, rate=MUCH_TOO_HIGH, condemned=CORNER)
    (collapse,) = told
    assert (collapse.epoch, collapse.learning_rate, collapse.next_rate) == (1, MUCH_TOO_HIGH, GENTLER * MUCH_TOO_HIGH)
    assert collapse.after.shares[collapse.label] > 0.9 and collapse.after.accuracy < 0.6 < collapse.before.accuracy
    assert read_answers(fooled[0], fooled[3]).accuracy < 0.75
    assert read_answers(model, fooled[3]).accuracy > 0.85


def test_where_everything_is_condemned_no_rate_helps_and_it_ends_after_the_second_attempts_first_epoch(fooled):
    """Whole images are pasted in, so that nothing tells the label."""
    epochs = []
    model, told = repair(fooled, rate=0.5, condemned=EVERYTHING, progress=lambda done, total: epochs.append(done))
    assert [(collapse.epoch, collapse.next_rate) for collapse in told] == [(1, GENTLER * 0.5), (1, None)]
    assert not epochs, "neither attempt goes on"
    assert has_collapsed(read_answers(fooled[0], fooled[2]), read_answers(model, fooled[2])), "left to the harm guard as it is"
    assert not model.training


class Killed(Exception):
    pass


def test_a_stop_in_the_second_attempt_loses_nothing(fooled, tmp_path):
    def kill(done, total):
        if done == 2:
            raise Killed

    whole, _ = repair(fooled, rate=MUCH_TOO_HIGH, condemned=CORNER, epochs=4)
    with pytest.raises(Killed):
        repair(fooled, rate=MUCH_TOO_HIGH, condemned=CORNER, epochs=4, checkpoint=tmp_path / "part.pt", progress=kill)
    epochs = []
    resumed, _ = repair(
        fooled, rate=MUCH_TOO_HIGH, condemned=CORNER, epochs=4, checkpoint=tmp_path / "part.pt", progress=lambda done, total: epochs.append(done)
    )
    assert epochs == [3, 4]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


BEFORE = Answers((0.5, 0.5), 0.95, 0.5, 200)


@pytest.mark.parametrize(
    ("before", "after", "collapsed"),
    [
        (BEFORE, Answers((0.96, 0.04), 0.53, 0.5, 200), True),
        (BEFORE, Answers((0.9, 0.1), 0.58, 0.5, 200), False),
        (BEFORE, Answers((0.5, 0.5), 0.49, 0.5, 200), True),  # guesses of both classes
        (BEFORE, Answers((0.5, 0.5), 0.80, 0.5, 200), False),
        (Answers((0.5, 0.5), 0.55, 0.5, 200), Answers((0.5, 0.5), 0.49, 0.5, 200), False),  # it was a guesser before
        (Answers((0.97, 0.03), 0.99, 0.97, 1000), Answers((0.98, 0.02), 0.98, 0.97, 1000), False),  # a rare class
        (Answers((0.97, 0.03), 0.99, 0.97, 1000), Answers((1.0, 0.0), 0.97, 0.97, 1000), True),
        (Answers((1.0, 0.0), 0.5, 0.5, 200), Answers((1.0, 0.0), 0.5, 0.5, 200), False),  # a constant from the beginning
    ],
)
def test_what_counts_as_a_collapse(before, after, collapsed):
    assert has_collapsed(before, after) == collapsed
