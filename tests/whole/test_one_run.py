"""A run is one thing: what find saw is what fix and score work on, and what they do not use may change."""

import json
import logging
import re
import shutil

import pytest
import safetensors.torch
import torch

import rightreasons as rr
from rightreasons.common.progress import Silent
from rightreasons.config import read_assignments
from rightreasons.errors import ConfigError
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.networks.checkpoints import read_checkpoint
from rightreasons.networks.classifier import hash_weights
from rightreasons.pipeline.fix import alignment_job
from rightreasons.pipeline.results import write_results
from rightreasons.records import Drawing, HeldOut, Verdict
from rightreasons.repair.guard import find_harm
from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import invoke, trained_weights, write_scripted
from tests.whole.test_api import SETTINGS, WORDS, InMemory, find, model, reply, train  # noqa: F401 -- fixtures


def refused(*arguments) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


def metrics_of(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project and its run after find, to be copied."""
    root = tmp_path_factory.mktemp("one-run")
    write_scripted(root)
    metrics_of("find", root / "parts.toml", "--out", root / "run")
    return root


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it, as if it had been made there."""
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    environment = root / "run" / "environment.json"
    environment.write_text(environment.read_text().replace(str(finished), str(root)))
    return root


@pytest.mark.parametrize("command", ["fix", "score"])
def test_an_image_added_since_find_is_refused(project, command):
    shutil.copy(project / "images" / "bolt" / "00.png", project / "images" / "bolt" / "new.png")
    words = refused(command, project / "run")
    assert "the images are not those that" in words and "1 new" in words and "Restore the old ones" in words


@pytest.mark.parametrize("command", ["fix", "score", "find"])
def test_an_inspected_image_that_was_drawn_over_is_refused(project, command):
    """The new file is as long as the old one, so that its length does not tell."""
    index = int(RunFolder(project / "run").load_selection().indices[0])
    path = project / "images" / load_run(RunFolder(project / "run")).train.entries[index].name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    target = [project / "parts.toml", "--out", project / "run"] if command == "find" else [project / "run"]
    assert f"1 of the inspected images have changed since {project / 'run'} was made (training images {index})" in refused(command, *target)


@pytest.mark.parametrize("command", ["fix", "score"])
def test_another_checkpoint_is_refused(project, command):
    other = {name: value + 0.01 for name, value in trained_weights().items()}
    safetensors.torch.save_file(other, project / "model.safetensors")
    assert "the checkpoint has other weights" in refused(command, project / "run")


def test_a_run_is_moved_together_with_its_images(project, finished):
    environment = json.loads((project / "run" / "environment.json").read_text())
    (project / "run" / "environment.json").write_text(json.dumps(environment | {"root": str(project / "the place before")}))
    assert metrics_of("score", project / "run")["before"]["accuracy"] == metrics_of("score", finished / "run")["before"]["accuracy"]


def test_images_that_moved_elsewhere_are_named_by_set(project):
    (project / "images").rename(project / "elsewhere")
    assert "if the images are elsewhere now: --set data.path=FOLDER" in refused("score", project / "run")
    assert metrics_of("score", project / "run", "--set", f"data.path={project / 'elsewhere'}")["before"]["accuracy"] > 0.5


def test_settings_that_find_did_not_use_may_change(project):
    fixed = metrics_of("fix", project / "run", "--set", "align.epochs=1", "--set", "align.term=swap")
    stored = RunFolder(project / "run").config()
    assert (stored.align.epochs, stored.align.term) == (1, "swap") and fixed["alignment"] is not None
    assert json.loads((project / "run" / "alignment.json").read_text())["settings"]["epochs"] == 1
    calls = fixed["critic"]["calls"]
    config = project / "parts.toml"
    config.write_text(config.read_text().replace("epochs = 3", "epochs = 2"))
    assert metrics_of("find", config, "--out", project / "run")["critic"]["calls"] == calls, "nothing was asked again"
    metrics_of("fix", config, "--out", project / "run")
    assert RunFolder(project / "run").config().align.epochs == 2, "the file's settings, not those of the folder"


def test_settings_that_find_used_may_not(project):
    words = refused("fix", project / "run", "--set", "sample.size=5")
    assert "sample.size was 12 and is now 5, and find has used that" in words
    assert "unknown key 'align.epoch'; did you mean 'epochs'?" in refused("fix", project / "run", "--set", "align.epoch=5")


@pytest.mark.parametrize("text", ["align.epochs", "epochs=3", ".epochs=3", "="])
def test_a_setting_that_is_none(text):
    with pytest.raises(ConfigError, match=r"TABLE\.KEY=VALUE was expected"):
        read_assignments([text])


def test_settings_are_read_as_toml_or_as_a_word():
    tables = read_assignments(["align.epochs=12", "align.lambda = 0.5", "align.term=swap", 'critic.lvlm="openai:a"', "align.spread=false"])
    assert tables == {"align": {"epochs": 12, "lambda": 0.5, "term": "swap", "spread": False}, "critic": {"lvlm": "openai:a"}}


def test_scores_follow_the_verdicts(project):
    """A person takes every spurious verdict back: the scores of before are of the new verdicts, not of the old ones."""
    folder = RunFolder(project / "run")
    first = json.loads((folder.path / "metrics.json").read_text())
    assert first["before"]["spurious_share"] > 0
    human = [{"index": v.index, "segment": v.segment, "value": "relevant", "source": "human"} for v in folder.load_verdicts()]
    with (folder.path / "verdicts.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in human)
    fixed = metrics_of("fix", folder.path)
    assert fixed["before"]["spurious_share"] == 0.0 and fixed["outcome"] == "no shortcut found"
    assert fixed["alignment"]["outcome"] == "nothing to change" and fixed["after"] == fixed["before"]


def test_what_was_scored_is_not_scored_again(project, monkeypatch):
    first = metrics_of("score", project / "run")
    monkeypatch.setattr("rightreasons.scoring.scores.score_run", lambda *_: pytest.fail("scored again"))
    found = metrics_of("find", project / "parts.toml", "--out", project / "run")
    assert found["before"] == first["before"]


def test_the_state_of_a_run_is_not_read_out_of_metrics_json(project):
    """A kill between verdicts.jsonl and metrics.json."""
    before = json.loads((project / "run" / "metrics.json").read_text())["critic"]
    (project / "run" / "metrics.json").unlink()
    after = metrics_of("score", project / "run")["critic"]
    assert {key: after[key] for key in ("backend", "model", "simulated", "calls", "cost_usd", "prompts")} == {
        key: before[key] for key in ("backend", "model", "simulated", "calls", "cost_usd", "prompts")
    }


def test_a_run_from_before_criticism_json(project):
    (project / "run" / "criticism.json").unlink()
    assert metrics_of("score", project / "run")["critic"]["calls"] > 0


GOOD = HeldOut(0.97, 0.50, (0.5, 0.5))


@pytest.mark.parametrize(
    ("after", "harm"),
    [
        (HeldOut(0.96, 0.50, (0.5, 0.5)), None),
        (HeldOut(0.79, 0.70, (0.5, 0.5)), None),  # what was lost with the shortcut comes back where it tells nothing
        (HeldOut(0.79, 0.52, (0.5, 0.5)), "validation accuracy would fall from 0.970 to 0.790"),
        (HeldOut(0.96, 0.30, (0.5, 0.5)), "where the shortcut tells nothing, held-out accuracy would fall from 0.500 to 0.300"),
        (HeldOut(0.50, 0.90, (1.0, 0.0)), "no longer answers class 1"),
    ],
)
def test_what_is_harm(after, harm):
    found = find_harm(GOOD, after, 0.15)
    assert found is None if harm is None else harm in found


def test_a_rejected_repair_is_kept_scored_and_can_be_accepted(project, monkeypatch):
    monkeypatch.setattr("rightreasons.pipeline.fix.find_harm", lambda *_: "it was made up for this test")
    original = hash_weights(load_run(RunFolder(project / "run")).model)
    result = invoke("fix", project / "run", "--json")
    metrics = json.loads(result.stdout)
    assert metrics["alignment"]["outcome"] == "original kept" and metrics["alignment"]["reason"] == "it was made up for this test"
    assert "--accept` uses it anyway" in " ".join(result.stderr.split())
    assert metrics["after"] == metrics["before"] and metrics["rejected"] != metrics["before"]
    rejected = safetensors.torch.load_file(project / "run" / "rejected.safetensors")
    assert read_checkpoint(project / "run" / "rejected.safetensors").names == ("bolt", "nut")
    assert "rejected" in (project / "run" / "report.html").read_text()

    monkeypatch.setattr("rightreasons.pipeline.fix.align", lambda *_, **__: pytest.fail("trained again"))
    accepted = metrics_of("fix", project / "run", "--accept")
    assert accepted["alignment"]["outcome"] == "accepted" and accepted["after"] == metrics["rejected"] and accepted["rejected"] is None
    aligned = safetensors.torch.load_file(project / "run" / "aligned.safetensors")
    assert all(aligned[name].equal(value) for name, value in rejected.items())
    run = load_run(RunFolder(project / "run"))
    assert run.rejected is None and hash_weights(run.aligned) != original


def test_a_collapse_is_told_in_words_and_the_original_is_kept(project):
    """A real training at a rate at which no network lives."""
    result = invoke("fix", project / "run", "--set", "align.learning_rate=1000", "--json")
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "fine-tuning has collapsed in epoch 1, at a learning rate of 1000: of " in told
    assert re.search(r"held-out images \d+\.\d% are called (bolt|nut) \(\d+\.\d% before\), and \d+\.\d% are right", told)
    assert "It begins again from the original model, at a learning rate of 250" in told
    assert "at a learning rate of 250: of " in told and "or lower [align] learning_rate" in told
    metrics = json.loads(result.stdout)
    assert metrics["alignment"]["outcome"] == "original kept" and metrics["after"] == metrics["before"]
    assert not list((project / "run").glob("aligning-*"))


def test_python_is_told_that_the_original_was_kept(model, train, tmp_path, monkeypatch, caplog):  # noqa: F811
    run = find(model, train, tmp_path / "run", validation_set=InMemory(slice(30, 35)))
    monkeypatch.setattr("rightreasons.pipeline.fix.find_harm", lambda *_: "it was made up for this test")
    with caplog.at_level(logging.WARNING, "rightreasons"):
        kept = rr.fix_shortcuts(run)
    assert run.alignment.outcome == "original kept" and run.rejected is not None
    assert any("the original model is kept: it was made up for this test" in record.message for record in caplog.records)
    assert all(kept.state_dict()[name].equal(value) for name, value in model.state_dict().items())


def test_python_notes_are_warnings_of_a_logger(model, train, tmp_path, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING, "rightreasons"):
        find(model, train, tmp_path / "run")
    assert any("the classifier is right on" in record.message for record in caplog.records)


def test_weights_that_changed_after_find_are_not_repaired(model, train, tmp_path):  # noqa: F811
    run = find(model, train, tmp_path / "run")
    with torch.no_grad():
        next(run.model.parameters()).add_(0.1)
    with pytest.raises(ConfigError, match="weights are not those"):
        rr.fix_shortcuts(run)


def test_python_settings_reach_their_tables(model, train, tmp_path):  # noqa: F811
    settings = {**SETTINGS, "critic": {"votes": 3}, "data": {"flips": "horizontal"}}
    run = rr.find_shortcuts(model, train, WORDS, lvlm=Scripted(reply), out=tmp_path / "run", settings=settings)
    assert run.config.critic.votes == 3 and run.config.data.flips == "horizontal" and len(run.critiques) == 3 * len(run.selection)


def test_python_does_not_ask_another_model_than_the_one_that_is_given(model, train, tmp_path):  # noqa: F811
    settings = {**SETTINGS, "critic": {"lvlm": "openai:other"}}
    with pytest.raises(ConfigError, match="critic.lvlm = 'openai:other', but lvlm is 'scripted:"):
        rr.find_shortcuts(model, train, WORDS, lvlm=Scripted(reply), out=tmp_path / "run", settings=settings)


def test_python_honours_the_judge_and_the_examples(model, train, tmp_path):  # noqa: F811
    asked = []

    def judge(request):
        asked.append(request.role)
        return reply(request)

    examples = tmp_path / "pairs.toml"
    pairs = [("S1: Conclusion: it matters.", "relevant"), ("S1: Conclusion: it does not matter.", "spurious")]
    examples.write_text("".join(f'[[example]]\ncritique = "{words}"\nverdicts = {{ S1 = "{value}" }}\n' for words, value in pairs))
    settings = {**SETTINGS, "critic": {"examples": str(examples)}}
    lvlm = Scripted(lambda request: reply(request) if request.role != "judge" else pytest.fail("the critic was asked to judge"))
    run = rr.find_shortcuts(model, train, WORDS, lvlm=lvlm, judge=Scripted(judge), out=tmp_path / "run", settings=settings)
    assert set(asked) == {"judge"} and run.found
    with pytest.raises(ConfigError, match=r"no\.toml"):
        rr.find_shortcuts(
            model, train, WORDS, lvlm=lvlm, out=tmp_path / "b", settings={**SETTINGS, "critic": {"examples": str(tmp_path / "no.toml")}}
        )


def test_python_stops_at_the_budget(model, train, tmp_path):  # noqa: F811
    """The same guard as --max-usd: what a request can cost at most is set aside before it is sent."""
    from rightreasons.errors import LVLMOverBudget
    from tests.support.fault_server import FaultServer, look_for_plates

    prices = tmp_path / "prices.toml"
    prices.write_text('["openai:dear"]\ndate = 2026-01-01\ninput_usd = 1000.0\noutput_usd = 1000.0\n')
    with FaultServer(critic=look_for_plates) as server:
        lvlm = rr.open_lvlm("openai:dear", base_url=server.base_url)
        settings = {**SETTINGS, "critic": {"max_usd": 0.01, "prices": str(prices)}}
        with pytest.raises(LVLMOverBudget, match="of the 0.01 allowed 0.0000 are spent"):
            rr.find_shortcuts(model, train, WORDS, lvlm=lvlm, out=tmp_path / "run", settings=settings)
        assert server.requests == 0


def test_another_bound_judges_again_without_training(project, monkeypatch):
    """Only the guard uses max_accuracy_drop, so the repair moves between the two files and is not made again."""
    fixed = metrics_of("fix", project / "run")
    assert fixed["alignment"]["outcome"] == "aligned"
    found = metrics_of("find", project / "parts.toml", "--out", project / "run")
    assert found["after"] == fixed["after"] and found["alignment"] == fixed["alignment"], "find does not forget the repair"
    repaired = (project / "run" / "aligned.safetensors").read_bytes()
    monkeypatch.setattr("rightreasons.pipeline.fix.align", lambda *_, **__: pytest.fail("trained again"))
    alignment = project / "run" / "alignment.json"
    stored = json.loads(alignment.read_text())
    stored["held_out"][0]["neutral"], stored["held_out"][1]["neutral"] = 0.9, 0.6
    alignment.write_text(json.dumps(stored))
    strict = metrics_of("fix", project / "run", "--set", "align.max_accuracy_drop=0.1")
    assert strict["alignment"]["outcome"] == "original kept" and "from 0.900 to 0.600" in strict["alignment"]["reason"]
    assert strict["rejected"] == fixed["after"] and strict["after"] == strict["before"]
    loose = metrics_of("fix", project / "run", "--set", "align.max_accuracy_drop=0.5")
    assert loose["alignment"]["outcome"] == "aligned" and loose["rejected"] is None
    assert (project / "run" / "aligned.safetensors").read_bytes() == repaired


def test_verdicts_of_relevant_are_part_of_the_job(project):
    """A segment that no swap may cover any more is another repair, though the same segments are spurious."""
    folder = RunFolder(project / "run")
    run = load_run(folder)
    job = alignment_job(run)
    kept = next(verdict for verdict in run.verdicts if verdict.value == "relevant")
    run.verdicts.append(Verdict(kept.index, kept.segment, "unsure", "human"))
    assert alignment_job(run) != job


def test_an_image_is_clear_if_all_of_it_was_judged_and_that_is_part_of_the_job(project):
    """What is clear teaches the probe what the shortcut is not, so that another image there is another repair."""
    run = load_run(RunFolder(project / "run"))
    row, segments = 0, run.segmentation.shares.gt(0).sum(1).tolist()
    index = int(run.selection.indices[row])
    run.verdicts = [verdict for verdict in run.verdicts if verdict.index != index]
    assert not run.clear[row], "nothing was judged"
    run.verdicts += [Verdict(index, segment, "relevant", "human") for segment in range(segments[row] - 1)]
    assert not run.clear[row], "not all was judged"
    job, last = alignment_job(run), run.segmentation.segments[row] == segments[row] - 1
    run.drawings = [Drawing(index, torch.zeros_like(last), last, "Ann", "2026-01-01T00:00:00+00:00")]
    assert run.clear[row] and alignment_job(run) != job, "a person says that the rest is not spurious"
    run.segmentation.shares[row] = 0
    assert not run.clear[row], "without a segment nothing is known of an image"


def biased(model):  # noqa: F811
    """The same network with so much towards its first class that it answers nothing else, whatever it sees."""
    with torch.no_grad():
        model[3].bias.add_(torch.tensor([3000.0, 0.0]))
    return model


def test_a_classifier_at_chance_could_not_be_examined_and_is_not_repaired(model, train, tmp_path):  # noqa: F811
    told = Silent()
    run = find(biased(model), train, tmp_path / "run", validation_set=InMemory(slice(30, 40)), reporter=told)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert run.coverage.spurious and metrics["before"]["swap_flip_rate"] == 0.0
    assert metrics["outcome"] == run.outcome == "could not be examined"
    assert metrics["explanation"] == run.explanation
    assert run.explanation.startswith("The classifier is at chance: mean accuracy over the classes is 50.0% on the training images")
    assert told.notes[-1] == f"could not be examined: {run.explanation}"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<strong>Could not be examined.</strong>" in page and "no shortcut found" not in page.lower()
    kept = rr.fix_shortcuts(run)
    assert run.alignment.outcome == "nothing to change"
    assert all(kept.state_dict()[name].equal(value) for name, value in model.state_dict().items())


def test_nothing_judged_has_no_share_of_the_effect(model, train, tmp_path):  # noqa: F811
    """Not 0: that would be the best score there is. Where a person then says that all of it matters, it is 0."""
    declines = Scripted(lambda request: "I'm sorry, but I can't help with that.")
    run = find(model, train, tmp_path / "run", declines, validation_set=InMemory(slice(30, 40)))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["outcome"] == "not judged yet" and metrics["before"]["spurious_share"] is None
    assert {verdict.problem for verdict in run.verdicts} == {"refused: I'm sorry, but I can't help with that."}
    run.verdicts = [Verdict(verdict.index, verdict.segment, "relevant", "human") for verdict in run.verdicts]
    assert write_results(run, Silent())["before"]["spurious_share"] == 0.0


def test_a_class_whose_test_pictures_are_all_broken_stops_find(tmp_path):
    config = write_scripted(tmp_path, splits=True)
    for path in (tmp_path / "images" / "test" / "nut").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    assert "the test split has no readable image of class 'nut': each class needs some in each split" in refused("find", config)


def test_a_repair_that_does_not_take_is_told_everywhere(project, monkeypatch):
    monkeypatch.setattr("rightreasons.pipeline.fix.align", lambda *_, **__: None)  # a fine-tuning that changes nothing
    fixed = invoke("fix", project / "run")
    assert fixed.exit_code == 0, fixed.output
    metrics = json.loads((project / "run" / "metrics.json").read_text())
    assert metrics["before"]["swap_flip_rate"] == metrics["after"]["swap_flip_rate"] >= 0.01
    assert metrics["alignment"]["outcome"] == "aligned" and metrics["alignment"]["effect"] == "did not take"
    assert "fine-tuning: aligned, but the repair did not take" in fixed.stdout
    assert f"note: {metrics['alignment']['advice']}" in " ".join(fixed.stderr.split())
    assert "The shortcut is still used." in (project / "run" / "report.html").read_text()
    monkeypatch.undo()
    taken = metrics_of("fix", project / "run", "--set", "align.epochs=8")
    assert taken["alignment"]["effect"] == "took" and taken["alignment"]["advice"] is None
