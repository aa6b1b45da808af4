"""A run that people alone judge, with `human:FILE`: no page speaks of a model, and the last verdict leads on to the repair."""

from __future__ import annotations

import json

import pytest

from tests.support.helpers import edit, invoke, the_error, write_scripted
from tests.support.review import Browser, said


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The result of find, and the run."""
    root = tmp_path_factory.mktemp("alone")
    config = write_scripted(root, changes={"size = 12": "size = 2"})
    edit(config, f"scripted:{root / 'script.json'}", "human:questions.jsonl")
    return invoke("find", config, "--out", root / "run"), root / "run"


def test_find_leads_to_the_review_before_the_file(found):
    result, run = found
    assert result.exit_code == 3
    assert result.stderr.index(f"rightreasons review {run}") < result.stderr.index("questions.jsonl, whose form docs/critic.md shows")


def test_nothing_is_said_of_a_model_and_the_last_verdict_leads_to_the_repair(found):
    _, run = found
    profile = json.loads(invoke("profile", run, "--json").stdout)["stages"]
    assert [stage["failed"] for stage in profile if stage["stage"] == "judge"] == [0]
    assert "(0 segments have an LVLM's verdict)" in the_error(invoke("study", run))
    browser = Browser(run)
    places = list(browser.site.state.snapshot().by_place)
    for page in (browser.get("/"), browser.get(f"/image/{places[0][0]}")):
        assert page.count("not judged yet</span>") >= 3 and "all the segments are decided" not in page
        for words in ("questions.jsonl", "waiting for a person", "no usable answer", "Judge this image again", " by nobody"):
            assert words not in page
    assert "Judge images again" not in browser.get("/words")
    for place in places[:-1]:
        assert "/image/" in str(browser.decide(*place, "relevant").url)
    end = browser.decide(*places[-1], "spurious")
    assert end.url.path == "/" and "That was the last one." in said(end.text)
    assert f"All {len(places)} segments are decided." in end.text and '<a href="/work">Go on to the repair</a>' in end.text
    assert "/image/" in str(browser.decide(*places[0], "unsure").url), "whoever looks at them anew goes through the list"
    people = browser.get("/people")
    assert "This is known once" in people and "are right without a person" not in people

    scored = invoke("score", run, "--json")
    metrics = json.loads(scored.stdout)
    assert (metrics["critic"]["voted"], metrics["critic"]["overruled"], metrics["calibration"]["count"]) == (0, len(places), 0)
    report = (run / "report.html").read_text()
    assert "No model has given a verdict" in report
    assert "vote on each image" not in report and "Right verdicts" not in report and "no usable answer" not in report
    assert str(run.parent) not in report, "where the questions lie is nobody's business"


def test_a_decision_that_is_taken_back_leaves_it_open(found, tmp_path):
    browser = Browser(found[1])
    place = next(iter(browser.site.state.snapshot().by_place))
    browser.decide(*place, "spurious", by="Bob")
    while browser.site.state.snapshot().by_place[place].people:
        page = browser.post("/undo", {"by": browser.site.state.snapshot().by_place[place].people[-1]}).text
    assert "Now counts: nobody" in said(page)
