"""The three functions of the public face, on a model and a dataset in memory and an LVLM that answers from a script."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import rightreasons as rr
from rightreasons.errors import ConfigError, DataError, ModelError
from rightreasons.lvlm.backends.scripted import Scripted
from tests.support.helpers import SIDE, pictures, trained_weights

WORDS = {"bolt": "The bright bar near the bottom.", "nut": rr.ClassDescription("nut", irrelevant="A tag in a corner.")}
SETTINGS = {"sample": {"size": 8}, "attribute": {"baselines": 3}, "segment": {"components": 3}, "align": {"epochs": 2, "batch_size": 16}}


def reply(request) -> str:
    """A critic that calls what lies at the top left a tag, and a judge that reads it."""
    if request.role != "judge":
        places = re.findall(r"^(S\d+): ([a-z ]+), \d+%$", request.parts[0], re.MULTILINE)
        return "\n".join(f"{name}: {'A tag.' if place == 'top left' else 'The part.'}" for name, place in places)
    critique = request.parts[0].split("Now the critique")[1]
    return json.dumps({name: "spurious" if "tag" in words else "relevant" for name, words in re.findall(r"^(S\d+): (.*)$", critique, re.MULTILINE)})


class InMemory(torch.utils.data.Dataset):
    def __init__(self, part: slice):
        arrays = pictures()
        self.items = [
            (torch.tensor(array).permute(2, 0, 1).float() / 255, label) for label, name in enumerate(("bolt", "nut")) for array in arrays[name][part]
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


@pytest.fixture
def model():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 2))
    network.load_state_dict(trained_weights())
    return network


@pytest.fixture
def train():
    return InMemory(slice(0, 30))


def find(model, train, out, lvlm=None, **options):
    return rr.find_shortcuts(model, train, WORDS, lvlm=lvlm or Scripted(reply), out=out, settings=SETTINGS, **options)


def test_it_ends_as_the_commands_do(model, train, tmp_path):
    """With metrics.json and report.html, after the repair too, on the test set that is given or else on the validation images."""
    run = find(model, train, tmp_path / "run", test_set=InMemory(slice(35, 40)))
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert before["before"]["accuracy"] == rr.score(model, InMemory(slice(35, 40)), run=run).accuracy and before["after"] is None
    assert before["data"]["images"]["test"] == len(InMemory(slice(35, 40))) and (tmp_path / "run" / "report.html").exists()
    shown = run._repr_html_()
    assert before["outcome"] in shown and f"{before['before']['accuracy']:.3f}" in shown and "repair" not in shown
    rr.fix_shortcuts(run)
    assert run.alignment.outcome in run._repr_html_() and " before, " in run._repr_html_()
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert after["after"] is not None and after["alignment"]["outcome"] == run.alignment.outcome
    unscored = find(model, train, tmp_path / "other")
    shown = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert "test" not in shown["data"]["images"] and shown["before"]["accuracy"] == rr.score(model, unscored.validation, run=unscored).accuracy


def test_find_fix_and_score(model, train, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = find(model, train, tmp_path / "run", validation_set=InMemory(slice(30, 35)))
    assert isinstance(run, rr.Run) and run.found
    assert len(run.selection) == 8 and len(run.critiques) == 8 and all(isinstance(verdict, rr.Verdict) for verdict in run.verdicts)
    assert run.masks.shape == (8, SIDE, SIDE) and not run.masks[:, 8:, 8:].any()

    aligned = rr.fix_shortcuts(run)
    assert isinstance(aligned, nn.Module) and aligned is not model and run.aligned is not None
    assert all(model.state_dict()[name].equal(value) for name, value in before.items()), "the model that came in is not changed"

    scores = rr.score(aligned, InMemory(slice(35, 40)), run=run)
    assert isinstance(scores, rr.Scores) and 0 <= scores.accuracy <= 1 and 0 <= scores.spurious_share <= 1
    assert scores.worst_group_accuracy is None and scores.mu_align is None and scores.groups == {}, "nobody gave groups"


def test_score_of_a_model_alone_and_with_groups(model):
    test = InMemory(slice(0, 40))
    alone = rr.score(model, test)
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in test.items]))
    labels = torch.tensor([label for _, label in test.items])
    assert alone.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert alone.spurious_share is None and alone.swap_flip_rate is None
    groups = [f"{label} {index % 2}" for index, (_, label) in enumerate(test.items)]
    grouped = rr.score(model, test, truth=rr.GroundTruth(groups, lambda index: None))
    assert set(grouped.groups) == set(groups) and grouped.worst_group_accuracy == min(group.accuracy for group in grouped.groups.values())
    assert grouped.average_group_accuracy == pytest.approx(np.mean([group.accuracy for group in grouped.groups.values()]))
    assert grouped.mu_align is None


def test_the_same_call_goes_on_where_it_stopped(model, train, tmp_path):
    lvlm = Scripted(reply)
    first = find(model, train, tmp_path / "run", lvlm)
    asked = len(lvlm.history)
    again = find(model, train, tmp_path / "run", lvlm)
    assert again.verdicts == first.verdicts and len(lvlm.history) == asked and again.criticism.cached >= 16, "two calls an image, and the controls"
    one, two = rr.fix_shortcuts(first), rr.fix_shortcuts(again)
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_result_in_another_folder(model, train, tmp_path):
    torch.manual_seed(1)
    one = find(model, train, tmp_path / "one")
    torch.manual_seed(2)
    np.random.seed(3)
    two = find(model, train, tmp_path / "two")
    assert one.verdicts == two.verdicts and torch.equal(one.attribution.heatmaps, two.attribution.heatmaps)
    first, second = rr.fix_shortcuts(one), rr.fix_shortcuts(two)
    assert all(a.equal(b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)), "no global random state"


def test_global_random_state_is_left_alone(model, train, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rr.fix_shortcuts(find(model, train, tmp_path / "run"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_person_overrules_the_model(model, train, tmp_path):
    run = find(model, train, tmp_path / "run")
    overruled = [rr.Verdict(verdict.index, verdict.segment, "relevant", "human") for verdict in run.verdicts]
    with (tmp_path / "run" / "verdicts.jsonl").open("a") as lines:
        lines.writelines(json.dumps(vars(verdict)) + "\n" for verdict in overruled)
    again = find(model, train, tmp_path / "run")
    assert not again.found and not again.masks.any()
    aligned = rr.fix_shortcuts(again)
    assert all(a.equal(b) for a, b in zip(aligned.state_dict().values(), model.state_dict().values(), strict=True)), "nothing to change"


def test_another_model_needs_another_folder(model, train, tmp_path):
    find(model, train, tmp_path / "run")
    with torch.no_grad():
        model[1].bias += 1
    with pytest.raises(ConfigError, match="the checkpoint has other weights"):
        find(model, train, tmp_path / "run")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, SIDE, SIDE), 0


def test_mistakes_are_told_before_any_work(model, train, tmp_path):
    out, lvlm = tmp_path / "run", Scripted(lambda request: pytest.fail("asked"))
    with pytest.raises(ModelError, match="2 outputs and the data have 3 classes"):
        rr.find_shortcuts(model, train, {**WORDS, "screw": "A thread."}, lvlm=lvlm, out=out)
    with pytest.raises(ModelError, match="fails on images of shape"):
        find(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), train, out, lvlm)
    with pytest.raises(ConfigError, match="classes.nut"):
        rr.find_shortcuts(model, train, {"bolt": "x", "nut": " "}, lvlm=lvlm, out=out)
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        rr.find_shortcuts(model, train, WORDS, lvlm=lvlm, out=out, settings={"sample": {"sise": 3}})
    with pytest.raises(DataError, match="map style"):
        find(model, Stream(), out, lvlm)
    with pytest.raises(DataError, match="empty"):
        find(model, torch.utils.data.Subset(train, []), out, lvlm)
    assert not out.exists()


def test_labels_that_no_description_names(model, train, tmp_path):
    train.items[7] = (train.items[7][0], 5)
    with pytest.raises(rr.RightReasonsError, match="label"):
        find(model, train, tmp_path / "run", validation_set=InMemory(slice(30, 35)))


def test_injection_of_script_by_what_a_notebook_shows(model, train, tmp_path):
    """The name of a folder, a critic and the words of an outcome are only read."""
    evil = "<script>alert(1)</script>"
    run = find(model, train, tmp_path / "<img src=x>")
    run.criticism = replace(run.criticism, lvlm=evil)
    run.folder.save_metrics({"outcome": evil, "explanation": evil})
    shown = run._repr_html_()
    assert "<script" not in shown and "<img" not in shown and shown.count("&lt;script&gt;") == 3
