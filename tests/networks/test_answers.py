"""What is said of a classifier's answers: other orders of the classes, chance, other inputs. Right values are counted by hand."""

import json

import pytest
import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, read_all
from rightreasons.errors import ModelError
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.networks.answers import Answers, check_chance, check_order, describe_answers, find_better_input, judge_answers
from rightreasons.networks.classifier import Classifier, Preset
from tests.whole.test_api import InMemory, find, model, train  # noqa: F401 -- fixtures

NAMES = ("bolt", "nut", "screw")


def answers(rows) -> Answers:
    return Answers(torch.tensor(rows))


def confusions(order, right=0.9, count=40, seed=0):
    """Counts of a classifier that gives class k the answer ``order[k]`` in a share ``right`` of the images, and any answer in the others."""
    draws = seeded(seed, "confusions")
    found = Answers.none(len(order))
    for label, answer in enumerate(order):
        said = torch.where(torch.rand(count, generator=draws) < right, answer, torch.randint(len(order), (count,), generator=draws))
        found.add(torch.full((count,), label), said)
    return found


def test_counts_are_those_of_a_loop():
    draws = seeded(0, "loop")
    labels, said = (torch.randint(3, (50,), generator=draws) for _ in range(2))
    found = Answers.none(3)
    found.add(labels[:20], said[:20])
    found.add(labels[20:], said[20:])
    pairs = list(zip(labels.tolist(), said.tolist(), strict=True))
    assert found.counts.tolist() == [[pairs.count((row, column)) for column in range(3)] for row in range(3)]
    assert found.accuracy == sum(a == b for a, b in pairs) / 50
    for row, name in enumerate(NAMES):
        mine = [b == a for a, b in pairs if a == row]
        assert found.by_class(NAMES)[name].accuracy == sum(mine) / len(mine) and found.by_class(NAMES)[name].count == len(mine)


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 1, 0)])
def test_another_order_is_named(order):
    words = check_order(confusions(order), confusions(order, seed=1), NAMES)
    outputs = [NAMES[order.index(column)] for column in range(3)]  # output k stands for the class whose images get answer k
    assert words is not None and f"if they were {', '.join(outputs)}" in words


def test_the_right_order_a_constant_answer_and_chance_are_no_other_order():
    assert check_order(confusions((0, 1, 2)), confusions((0, 1, 2), seed=1), NAMES) is None
    assert check_order(confusions((0, 1, 2), right=0.1), confusions((0, 1, 2), right=0.1, seed=1), NAMES) is None
    for said in range(2):
        constant = torch.zeros(2, 2, dtype=torch.int64)
        constant[:, said] = torch.tensor([90, 10])
        assert check_order(Answers(constant), Answers(constant), NAMES[:2]) is None


def test_an_order_that_only_fits_its_own_images_is_chance():
    """With many classes and few images each, some order always fits the images that it was chosen on."""
    names = [str(number) for number in range(100)]
    first, second = (confusions(range(100), right=0.0, count=3, seed=seed) for seed in (0, 1))
    assert first.balanced(range(100)) < 0.1 and check_order(first, second, names) is None


def test_a_shortcut_that_turns_round_on_validation_is_no_other_order():
    assert check_order(confusions((0, 1, 2)), confusions((1, 2, 0), seed=1), NAMES) is None


@pytest.mark.parametrize("validation", [[[0, 3], [3, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
def test_answers_below_chance_name_the_order_however_small_validation_is(validation):
    words = check_order(answers([[0, 16], [16, 0]]), answers(validation), NAMES[:2])
    assert words == (
        "the outputs seem to stand for the classes in another order: of 32 training images 0.0% are classified right with the outputs bolt, nut, "
        "and mean accuracy over the classes would be 100.0% instead of 0.0% if they were nut, bolt"
    )


def test_a_small_validation_split_that_contradicts_is_heard():
    assert check_order(answers([[0, 16], [16, 0]]), answers([[3, 0], [0, 3]]), NAMES[:2]) is None
    assert check_order(answers([[6, 10], [10, 6]]), answers([[0, 3], [3, 0]]), NAMES[:2]) is None, "at chance, not below it"


def test_chance():
    assert check_chance(answers([[50, 50], [50, 50]])).startswith("the classifier is at chance: mean accuracy over the classes is 50.0%")
    assert "at chance" in check_chance(answers([[950, 0], [50, 0]])), "95 % right, and always the same answer"
    assert "below chance" in check_chance(answers([[5, 95], [95, 5]]))
    assert check_chance(answers([[70, 30], [30, 70]])) is None
    few = check_chance(answers([[7, 3], [3, 7]]))
    assert few.endswith("is 70.0% on the training images, and guessing has 50.0%, too close for 20 images to tell apart") and "at chance" in few
    assert check_chance(answers([[0, 0], [0, 0]])) is None, "nothing was counted"


def test_the_worst_classes_are_shown_first():
    assert describe_answers("training", answers([[9, 1, 0], [0, 5, 5], [0, 0, 0]]), NAMES) == (
        "the classifier is right on 70.0% of 20 training images (nut 50.0% of 10, bolt 90.0% of 10)"
    )


class Brightness(nn.Module):
    """Answers 1 where the input's mean is above a threshold; it takes one size alone where it has one."""

    def __init__(self, threshold: float, size: int | None = None) -> None:
        super().__init__()
        self.threshold, self.size = threshold, size

    def forward(self, images):
        if self.size is not None and images.shape[-1] != self.size:
            return torch.zeros(len(images), 2)
        high = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-high, high], 1)


def grey(count=64, side=32):
    labels = torch.arange(count) % 2
    images = (0.3 + 0.4 * labels.float())[:, None, None, None].expand(count, 3, side, side).clone()
    return Batch(torch.arange(count), images, labels)


def test_another_normalisation_is_named():
    # Pixels of 0.3 and 0.7 are -0.81 and 0.95 normalised as for ImageNet, both below 10; as bytes they are 76.5 and 178.5.
    network = Classifier(Brightness(100.0), Preset(None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    words = find_better_input(network, grey())
    assert words is not None and words.startswith("100.0% instead of 50.0% of 64 training images are classified right with ")
    assert words.endswith("[model] mean = [0, 0, 0] and std = [0.003922, 0.003922, 0.003922]")


def test_an_input_under_which_the_answers_are_at_chance_is_not_named():
    """All wrong as it is, and always one class with pixels of 0 to 255: half right is no better reason to trust it."""

    class Exchanged(Brightness):
        def forward(self, images):
            return -super().forward(images)

    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = Classifier(Exchanged(0.0), Preset(None, *imagenet))
    assert (network(grey().images).argmax(1) != grey().labels).all()
    assert find_better_input(network, grey()) is None


def test_inputs_that_fit_as_well_are_all_named_the_surest_first():
    """Pixels of 0.3 and 0.7 lie on two sides of 0 under three of the usual normalisations; the smallest deviation sets them furthest apart."""
    words = find_better_input(Classifier(Brightness(0.0)), grey())
    places = [words.index(f"std = [{deviation}, ") for deviation in ("0.229", "0.269", "0.5")]
    assert places == sorted(places) and words.count(", or with [model] mean") == 2 and "do not tell which of these is right" in words
    assert "channels" not in words, "grey pixels have no order of colours"


def test_another_order_of_colours_is_named():
    class Blueness(nn.Module):
        def forward(self, images):
            blue = (images[:, 0] - images[:, 2]).mean((1, 2))
            return torch.stack([-blue, blue], 1)

    batch = grey()
    images = torch.full_like(batch.images, 0.5)
    images[:, 2] = batch.images[:, 2]  # blue, the last of red, green and blue, tells the class
    words = find_better_input(Classifier(Blueness()), Batch(batch.indices, images, batch.labels))
    assert words == '100.0% instead of 0.0% of 64 training images are classified right with [model] channels = "bgr"'
    assert find_better_input(Classifier(Blueness(), Preset(channels=(2, 1, 0))), Batch(batch.indices, images, batch.labels)) is None
    said = find_better_input(Classifier(Blueness(), Preset(channels=(2, 1, 0))), Batch(batch.indices, images.flip(1), batch.labels))
    assert said is not None and said.endswith('[model] channels = "rgb"')


def test_another_size_is_named_and_one_that_fits_is_not():
    assert "with [data] size = 64" in find_better_input(Classifier(Brightness(0.5, size=64)), grey())
    assert find_better_input(Classifier(Brightness(0.5)), grey()) is None


def test_a_stated_order_is_followed_with_a_note():
    swapped, batch = confusions((1, 0)), grey()
    with pytest.raises(ModelError, match=r"in another order: .*State the order .* in \[model\] classes"):
        judge_answers(Classifier(Brightness(0.5)), swapped, swapped, NAMES[:2], batch, order_is_stated=False)
    notes = judge_answers(Classifier(Brightness(0.5)), swapped, swapped, NAMES[:2], batch, order_is_stated=True)
    assert "in another order" in notes[0] and "below chance" in notes[1]


def test_chance_stops_only_where_another_input_is_right():
    constant, batch = answers([[30, 0], [30, 0]]), grey()
    with pytest.raises(ModelError, match=r"at chance: .*; 100.0% instead of 50.0% .* \[data\] size = 64"):
        judge_answers(Classifier(Brightness(0.5, size=64)), constant, constant, NAMES[:2], batch, order_is_stated=False)
    (note,) = judge_answers(Classifier(Brightness(9.0)), constant, constant, NAMES[:2], batch, order_is_stated=False)
    assert "at chance" in note and "Check the checkpoint" in note


def test_exchanged_outputs_stop_find_before_the_lvlm_is_asked(model, train, tmp_path):  # noqa: F811
    head = model[3]
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0).clone())
        head.bias.copy_(head.bias.flip(0).clone())
    lvlm = Scripted(lambda request: pytest.fail("the LVLM was asked"))
    for _ in range(2):  # the second time in the folder that the first has made
        with pytest.raises(ModelError, match="if they were nut, bolt"):
            find(model, train, tmp_path / "run", lvlm, validation_set=InMemory(slice(30, 60)))


def test_find_tells_how_often_the_classifier_is_right_and_what_it_is_fed(model, train, tmp_path):  # noqa: F811
    from rightreasons.common.progress import Silent

    told = Silent()
    run = find(model, train, tmp_path / "run", validation_set=InMemory(slice(30, 60)), reporter=told)
    counts, problems = run.folder.load_answers()
    batch = read_all(train, range(60))
    said = model(batch.images).argmax(1)
    assert problems == [] and counts["train"].sum() == 60 and Answers(counts["train"]).accuracy == (said == batch.labels).double().mean()
    assert any(note.startswith("the network sees 16 x 16 pixels in 3 channels, in 0 to 1, not normalised") for note in told.notes)
    assert sum("the classifier is right on" in note for note in told.notes) == 2
    assert json.loads((tmp_path / "run" / "answers.json").read_text())["splits"].keys() == {"train", "validation"}
