"""What a critic's verdicts on like segments say about each other."""

import pytest
import torch

from rightreasons.common.seeds import seeded
from rightreasons.critic.agreement import describe_looks, weigh_verdicts


def draw(hits, alarms, seed=0, images=100, count=8):
    """Features, truths, a critic's verdicts and the number of each image; one of ``count`` segments is spurious, and one feature tells."""
    generator = seeded(seed, "segments")
    truth = torch.zeros(images, count, dtype=torch.bool)
    truth[:, 0] = True
    features = torch.randn(images, count, 20, generator=generator)
    features[..., 3] += 4 * truth
    wrong = torch.rand(images, count, generator=generator)
    said = torch.where(truth, wrong < hits, wrong < alarms)
    return features.flatten(0, 1), truth.flatten(), said.flatten(), torch.arange(images).repeat_interleave(count)


def test_errors_are_found_and_their_rates_too():
    features, truth, said, images = draw(hits=0.87, alarms=0.13)
    weighed = weigh_verdicts(features, said, images)
    assert weighed is not None
    assert weighed.sensitivity == pytest.approx(float(said[truth].float().mean()), abs=0.06)
    assert weighed.specificity == pytest.approx(1 - float(said[~truth].float().mean()), abs=0.06)
    contradicted = torch.where(said, weighed.probability, 1 - weighed.probability) < 0.2
    wrong = said != truth
    assert float(contradicted[wrong].float().mean()) > 0.8 and float(wrong[contradicted].float().mean()) > 0.9


def test_a_critic_that_is_always_right_is_not_contradicted():
    features, truth, said, images = draw(hits=1, alarms=0)
    weighed = weigh_verdicts(features, said, images)
    assert weighed is not None and torch.equal(said, truth)
    assert float((torch.where(said, weighed.probability, 1 - weighed.probability) < 0.2).float().mean()) < 0.01


@pytest.mark.parametrize(("hits", "alarms"), [(0.5, 0.5), (0.15, 0.1)])
def test_verdicts_without_a_pattern_are_left_alone(hits, alarms):
    features, _, said, images = draw(hits, alarms)
    assert weigh_verdicts(features, said, images) is None


def test_a_few_verdicts_are_left_alone():
    features, _, said, images = draw(hits=1, alarms=0, images=19)
    assert weigh_verdicts(features, said, images) is None


def test_errors_that_go_with_the_features_cannot_be_seen():
    """The documented limit: who takes a second kind of segment for spurious each time agrees with himself."""
    features, truth, _, images = draw(hits=1, alarms=0)
    second = torch.arange(len(truth)) % 8 == 1
    features[second, 5] += 4
    weighed = weigh_verdicts(features, truth | second, images)
    assert weighed is not None and float(weighed.probability[second].min()) > 0.5


def test_looks_are_colour_place_and_size_of_the_marked_pixels():
    images = torch.zeros(1, 3, 9, 9)
    images[0, 0, :3, 6:] = 0.9
    masks = torch.zeros(1, 2, 9, 9, dtype=torch.bool)
    masks[0, 0, :3, 6:] = True
    looks = describe_looks(images, masks)[0]
    assert torch.allclose(looks[0], torch.tensor([0.8, 0, 0, 0, 0, 0, -0.75, 0.75, 0.75, 0.75, 7.75 / 9, 2.1972]), atol=1e-3)
    assert torch.isfinite(looks).all()
