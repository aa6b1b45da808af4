"""Chosen images judged again: what it costs first, what it changes, and that people and the first verdicts are kept."""

import json
import sqlite3
from dataclasses import replace

import pytest

from rightreasons.records import ClassDescription, Words, settle_verdicts
from rightreasons.runs.deciding import decide
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.words import add_words
from tests.support.fault_server import FaultServer, completion
from tests.support.helpers import invoke, read_lines, the_error, write_project
from tests.support.review import copy_run, make_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("again")
    make_run(root, size=4)
    return root


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run; the script that its model follows is one of its own."""
    return copy_run(finished, tmp_path / "copy")


@pytest.fixture
def says(finished):
    """Lets the model say something else from now on, and what it said before once the test is over."""
    script = finished / "script.json"
    before = script.read_text()

    def change(critique: str, verdicts: dict[str, str]) -> None:
        script.write_text(json.dumps({"critic": [critique], "judge": [json.dumps(verdicts)]}))

    yield change
    script.write_text(before)


def change_words(run, **changes: str | None) -> None:
    classes = (ClassDescription("bolt", "The bar.", "Yellow tags."), ClassDescription("nut", "The disc."))
    add_words(RunFolder(run), Words(classes, changes.get("examples"), "Dr Ann", "2026-01-01T00:00:00+00:00"))


def test_the_cost_comes_first_and_nothing_is_sent(run):
    images = list(RunFolder(run).segment_counts())
    before = (run / "verdicts.jsonl").read_bytes()
    plain = json.loads(invoke("ask-again", run, *images, "--role", "critic", "--estimate", "--json").stdout)
    assert (plain["images"], plain["total"]["requests"], plain["total"]["answered"]) == (4, 0, 8), "every answer is there already"
    change_words(run)
    changed = json.loads(invoke("ask-again", run, *images[:2], "--role", "critic", "--estimate", "--json").stdout)
    assert (changed["images"], changed["total"]["requests"]) == (2, 4) and changed["total"]["usd_at_most"] == 0
    judge = json.loads(invoke("ask-again", run, *images[:2], "--estimate", "--json").stdout)
    assert judge["total"]["requests"] == 0, "the judge is not told the descriptions"
    assert "2 images: 4 requests, 0 answered already" in invoke("ask-again", run, *images[:2], "--role", "critic", "--estimate").stdout
    assert (run / "verdicts.jsonl").read_bytes() == before


def test_the_critic_sees_the_new_words_and_its_verdicts_are_added(run, says):
    first, second, *_ = list(RunFolder(run).segment_counts())
    decide(RunFolder(run), [(first, 1, "relevant")], by="Bob")
    change_words(run)
    says("S1: The bar after all.\nS2: Nothing.\nS3: Nothing.", {"S1": "relevant", "S2": "spurious", "S3": "spurious"})
    lines = (run / "verdicts.jsonl").read_text()
    done = invoke("ask-again", run, first, "--role", "critic", "--by", "Dr Ann")
    assert done.exit_code == 0, done.stderr
    assert f"image {first}, S1: spurious -> relevant" in done.stdout and "3 verdicts of the model changed on 1 images" in done.stdout
    assert (run / "verdicts.jsonl").read_text().startswith(lines), "what was there stays"
    settled = settle_verdicts(RunFolder(run).load_verdicts())
    assert [settled[first, part].value for part in range(3)] == ["relevant", "relevant", "spurious"] and settled[first, 1].by == "Bob"
    assert settled[second, 0].value == "spurious" and (settled[first, 0].by, settled[first, 0].source[:8]) == ("Dr Ann", "scripted")
    assert [c.text for c in RunFolder(run).load_critiques() or [] if c.index == first] == ["S1: The bar after all.\nS2: Nothing.\nS3: Nothing."]
    assert len(read_lines(run / "critiques.jsonl")) == 5, "the first critique is kept"


def test_the_judge_alone_is_asked_with_the_new_pairs(run, says):
    image = next(iter(RunFolder(run).segment_counts()))
    pairs = '[[example]]\ncritique = "S1: a tag. S2: the bar."\nverdicts = { S1 = "spurious", S2 = "relevant" }'
    change_words(run, examples=pairs)
    says("never asked", {"S1": "spurious", "S2": "relevant", "S3": "relevant"})
    done = invoke("ask-again", run, image, "--by", "Dr Ann", "--json")
    assert json.loads(done.stdout) == [{"image": image, "segment": "S3", "before": "unsure", "value": "relevant"}]
    assert "never asked" not in (run / "critiques.jsonl").read_text()


def test_find_keeps_what_was_judged_again(run, finished, says):
    image = next(iter(RunFolder(run).segment_counts()))
    change_words(run)
    says("S1: The bar.\nS2: b\nS3: c", {"S1": "relevant", "S2": "relevant", "S3": "relevant"})
    assert invoke("ask-again", run, image, "--role", "critic", "--by", "Ann").exit_code == 0
    assert invoke("find", run.parent / "parts.toml", "--out", run).exit_code == 0
    assert settle_verdicts(RunFolder(run).load_verdicts())[image, 0].value == "relevant"
    assert [c.text for c in RunFolder(run).load_critiques() or [] if c.index == image] == ["S1: The bar.\nS2: b\nS3: c"]
    assert "asked again by Ann" in (run / "report.html").read_text()


def test_what_cannot_be_judged_again(run):
    image = next(iter(RunFolder(run).segment_counts()))
    assert "is not one of the 4 inspected images" in the_error(invoke("ask-again", run, 99999, "--by", "Ann"))
    assert "--by NAME" in the_error(invoke("ask-again", run, image))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"two-call"', '"fused"'))
    assert "has no judge of its own" in the_error(invoke("ask-again", run, image, "--role", "judge", "--estimate"))


@pytest.mark.parametrize("garbled", ["critic", "judge", "fused"])
def test_an_answer_that_could_not_be_read_is_asked_for_anew_where_somebody_wants_it(tmp_path, garbled):
    """And neither by find nor by its --retry-unknown, which name the command that does."""
    fused = garbled == "fused"
    mended = fused_answer if fused else None
    changes = {"size = 12": "size = 2"} | ({"[align]": 'mode = "fused"\n[align]'} if fused else {})
    garbage = lambda seen: (200, {}, completion("{{{")) if fused or seen.role == garbled else None  # noqa: E731
    with FaultServer(misbehave=garbage, answer=mended) as stub:
        config, run = write_project(tmp_path, stub.base_url, changes=changes), tmp_path / "run"
        command = f"`rightreasons ask-again {run} --by NAME` does"
        assert silent(invoke("find", config, "--out", run)).endswith(command)
        asked = stub.requests
        still = invoke("ask-again", run, "--by", "Ann")
        assert still.exit_code == 0 and stub.requests > asked and "still no usable answer: malformed" in still.stderr
        stub.misbehave, asked = None, stub.requests
        assert silent(invoke("find", config, "--out", run, "--retry-unknown")).endswith(command)
        assert stub.requests == asked, "no answer that may have been paid for is asked for again by itself"
        assert json.loads(invoke("ask-again", run, "--estimate", "--json").stdout)["total"]["requests"] >= 2
        done = invoke("ask-again", run, "--by", "Ann")
        assert done.exit_code == 0 and "6 verdicts of the model changed on 2 images" in done.stdout and not done.stderr.count("still"), done.output
        assert stub.requests == asked + (2 if garbled != "critic" else 4), "what could be read was not asked for again"
        asked = stub.requests
        assert "could not be read, which would be asked for again" in the_error(invoke("ask-again", run, "--by", "Ann"))
        again = invoke("find", config, "--out", run, "--json")
        assert again.exit_code == 0 and json.loads(again.stdout)["critic"]["voted"] == 6 and stub.requests == asked, again.output
        with sqlite3.connect(run / "lvlm.sqlite") as ledger:
            kept = ledger.execute("SELECT count(*), count(raw) FROM attempts WHERE outcome = 'malformed'").fetchone()
        assert kept[0] == kept[1] > 0, "the old answers, and what they cost, stay in the ledger"


def silent(result) -> str:
    """What find says last where no segment has a verdict."""
    assert result.exit_code == 1 and "error: openai:stub gave no usable verdict on any of 6 segments" in result.stderr, result.output
    return result.stderr.strip()


def fused_answer(seen) -> str:
    segments = {name: {"covers": "A tag.", "reason": "It does not matter.", "verdict": "spurious"} for name in ("S1", "S2", "S3")}
    return json.dumps({"image_observation": "A part.", "class_region": "The bar.", "segments": segments})


def test_the_same_answer_once_more_stays_contradicted_and_another_one_counts(run, says):
    """Asked again, the ledger says what it said; only another answer is news."""
    folder = RunFolder(run)
    verdicts = folder.load_verdicts() or []
    place = verdicts[0].index, 0
    doubt = "it was called spurious, but segments that look alike were judged otherwise"
    folder.save_verdicts([
        replace(verdict, value="unsure", contradicted="spurious", doubt=doubt) if (verdict.index, verdict.segment) == place else verdict
        for verdict in verdicts
    ])  # fmt: skip
    assert invoke("ask-again", run, place[0], "--by", "Ann").exit_code == 0
    found = settle_verdicts(folder.load_verdicts() or [])[place]
    assert (found.value, found.contradicted, found.doubt, found.by) == ("unsure", "spurious", doubt, "Ann")
    says("S1: The bar.\nConclusion: it matters.\nS2: The bar.\nConclusion: it matters.\nS3: a", {"S1": "relevant", "S2": "relevant", "S3": "unsure"})
    change_words(run)
    assert invoke("ask-again", run, place[0], "--by", "Ann", "--role", "critic").exit_code == 0
    found = settle_verdicts(folder.load_verdicts() or [])[place]
    assert (found.value, found.contradicted) == ("relevant", None)
