"""The blind study: what is drawn, that nobody sees the model's verdict first, that nothing is lost, and what the command prints."""

import json
import re
from collections import Counter

import pytest
from starlette.testclient import TestClient

from rightreasons.errors import ConfigError
from rightreasons.review.study.sample import draw_sample, open_sample, order_questions, share_out
from rightreasons.runs.blind import load_replies, load_sample
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import edit, invoke, read_lines, the_error
from tests.support.review import EVIL, HOME, Participant, copy_run, said


@pytest.fixture
def ann(run):
    """A participant called Ann."""
    return Participant(run)


def answer_all(one: Participant, by: str, client: TestClient, said: dict[str, str]) -> None:
    """Answers every question; ``said`` has this person's verdict for each of the model's."""
    value_of = {question.place: question.value for question in one.sample.questions}
    for _ in one.sample.questions:
        place = one.asked(client)
        one.say(place, by, client, value=said[value_of[place]])
        one.say(place, by, client, opinion="agree")


def test_half_are_called_spurious_and_the_rest_fills_up():
    assert share_out(10, {"spurious": 50, "relevant": 50}) == {"spurious": 5, "relevant": 5}
    assert share_out(11, {"spurious": 50, "relevant": 50}) == {"spurious": 6, "relevant": 5}
    assert share_out(10, {"spurious": 2, "relevant": 50}) == {"spurious": 2, "relevant": 8}
    assert share_out(10, {"spurious": 50, "relevant": 3}) == {"spurious": 7, "relevant": 3}
    assert share_out(10, {"spurious": 4, "relevant": 3}) == {"spurious": 4, "relevant": 3}
    assert share_out(2, {"spurious": 1, "relevant": 1}) == {"spurious": 1, "relevant": 1}
    assert share_out(10, {"spurious": 0, "relevant": 3}) == {"spurious": 0, "relevant": 3}
    with pytest.raises(ConfigError, match="at least 2"):
        share_out(1, {"spurious": 1, "relevant": 1})


def test_the_sample_is_seeded_and_of_what_the_model_said(ann):
    state = ann.site.state
    drawn = [draw_sample(state, size=6, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0].name != drawn[2].name
    assert Counter(question.value for question in drawn[0].questions) == {"spurious": 3, "relevant": 3}
    assert "unsure" in drawn[0].judged and all(question.words for question in drawn[0].questions)
    orders = [[question.place for question in order_questions(ann.sample, name)] for name in ("Ann", "ann", "Bob")]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]), "the same segments, in an own order"


def test_the_sample_is_kept_whatever_is_judged_later(ann, run):
    before = ann.sample
    lines = read_lines(run / "verdicts.jsonl")
    place = before.questions[0].index, before.questions[0].segment
    old = next(line for line in lines if (line["index"], line["segment"]) == place)
    new = old | {"value": "relevant" if old["value"] == "spurious" else "spurious", "by": "Eve", "at": "2026-01-01T00:00:00+00:00"}
    with (run / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps(new) + "\n")
    assert open_sample(Participant(run).site.state) == before == load_sample(RunFolder(run))
    with pytest.raises(ConfigError, match="leave out --size"):
        open_sample(ann.site.state, size=3)
    with pytest.raises(ConfigError, match="leave out --size"):
        open_sample(ann.site.state, seed=5)
    assert open_sample(ann.site.state, size=60, seed=0) == before, "60 is more than there are"


def test_a_person_s_verdict_on_the_run_does_not_count_as_the_model_s(run):
    index = read_lines(run / "verdicts.jsonl")[0]["index"]
    assert invoke("verdict", run, index, "S1", "relevant", "--by", "Eve").exit_code == 0
    assert {question.place: question.value for question in Participant(run).sample.questions}[index, 0] == "spurious"


def test_nothing_tells_the_model_s_verdict_before_the_person_s(ann, run):
    """The page of the verdict has no words of the critique, and no other page or picture can be reached."""
    place = ann.asked()
    page = ann.get("/")
    question = next(question for question in ann.sample.questions if question.place == place)
    assert question.words not in page and "The language model said" not in page and page.count('class="outline') == 1
    other = "relevant" if question.value == "spurious" else "spurious"
    assert page.count(question.value) == page.count(other), "the two verdicts stand there alike"
    image = place[0]
    for address in ("/words", "/people", "/compare", "/work", f"/image/{image}", f"/image/{image}/draw", "/work/log?start=0", "/verdict"):
        assert ann.client.get(address).status_code in (404, 405), address
    for kind in ("mask", "after", "map"):
        assert ann.client.get(f"/picture/{image}/{kind}").status_code == 422
    assert ann.client.get(f"/picture/{image}/clean").status_code == ann.client.get(f"/picture/{image}/heatmap").status_code == 200
    assert ann.client.get("/picture/999999/clean").status_code == 404

    answer = ann.say(place, value="unsure")
    shown = answer.text
    assert said(shown) == f"Saved: image {place[0]}, S{place[1] + 1} is unsure, by Ann."
    assert "You said unsure. The language model said" in shown and question.words in shown


def test_an_answer_is_on_the_disk_before_the_page_says_so_and_the_first_counts(ann, run):
    before = (run / "verdicts.jsonl").read_bytes()
    place = ann.asked()
    ann.say(place, value="spurious")
    (line,) = read_lines(run / "study.jsonl")
    assert line == line | {"study": ann.sample.name, "index": place[0], "segment": place[1], "value": "spurious", "by": "Ann"} and line["at"]
    assert "the first verdict counts" in ann.say(place, value="relevant").text and len(read_lines(run / "study.jsonl")) == 1
    ann.say(place, opinion="disagree")
    assert "the first answer counts" in ann.say(place, opinion="agree").text and len(read_lines(run / "study.jsonl")) == 2
    (reply,) = load_replies(RunFolder(run), ann.sample)
    assert (reply.value, reply.opinion, reply.by) == ("spurious", "disagree", "Ann")
    assert (run / "verdicts.jsonl").read_bytes() == before, "a study never changes a verdict of the run"


def test_two_people_at_once_and_one_who_comes_back(ann, run):
    bob = ann.enter("Bob")
    first = ann.asked()
    ann.say(first, value="relevant")
    assert "0 of" in ann.post("/name", {"name": "Bob"}, client=bob).text
    ann.say(ann.asked(bob), "Bob", bob, value="spurious")
    assert {(reply.by, reply.value) for reply in load_replies(RunFolder(run), ann.sample)} == {("Ann", "relevant"), ("Bob", "spurious")}
    again = Participant(run, name="")
    came_back = again.post("/name", {"name": " ann "})
    assert "You judge as Ann. 1 of" in came_back.text and "The language model said" in came_back.text, "the argument is still to be answered"
    again.say(first, opinion="cannot tell")
    assert again.asked() == order_questions(ann.sample, "Ann")[1].place
    assert [reply.opinion for reply in load_replies(RunFolder(run), ann.sample) if reply.by == "Ann"] == ["cannot tell"]


def test_the_end_and_segments_without_an_argument(run):
    text = (run / "critiques.jsonl").read_text().replace("S2: The bar.", "The bar.")
    (run / "critiques.jsonl").write_text(text)
    one = Participant(run)
    silent = [question for question in one.sample.questions if not question.words]
    assert silent
    for _ in one.sample.questions:
        place = one.asked()
        shown = one.say(place, value="spurious").text
        if place not in {question.place for question in silent}:
            assert "The language model said" in shown
            one.say(place, opinion="agree")
    assert f"All {len(one.sample.questions)} segments are answered" in one.get("/")


def test_bad_answers_are_refused_and_say_why(ann, run):
    place = ann.asked()
    for fields, words in (
        ({"value": "wrong"}, "not a verdict"),
        ({"opinion": "maybe"}, "agree, disagree, cannot tell"),
        ({"opinion": "agree"}, "has not given a verdict"),
    ):
        answer = ann.say(place, **fields)
        assert answer.status_code == 400 and words in answer.text and "Nothing was changed" in answer.text
    assert ann.say((99999, 0), value="spurious").status_code == 400
    assert ann.say(place, by=" ", value="spurious").status_code == 400
    assert ann.post("/name", {"name": ""}).status_code == 400
    assert not (run / "study.jsonl").exists()


def test_strangers_and_other_pages_are_refused(ann, run):
    place = ann.asked()
    fields = {"index": place[0], "segment": place[1], "value": "spurious", "by": "Eve"}
    stranger = TestClient(ann.app, base_url=HOME)
    for address in ("/", "/name", f"/picture/{place[0]}/clean", "/static/app.css"):
        answer = stranger.get(address)
        assert answer.status_code == 403 and "`rightreasons study` printed" in answer.text, address
    assert "`rightreasons study` printed" in stranger.get("/start?token=wrong").text
    assert ann.post("/verdict", fields, client=stranger).status_code == 403
    for origin in ("http://evil.example", "null", None):
        assert ann.post("/verdict", fields, origin=origin).status_code == 403
    assert ann.client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert not (run / "study.jsonl").exists()
    assert not re.search(r"<script(?! src=\"/static/)|\son\w+=|style=|https?://", ann.get("/"))


def test_injection_of_script_is_only_read(reviewed, tmp_path):
    run = copy_run(reviewed, tmp_path / "evil")
    (run / "critiques.jsonl").write_text((run / "critiques.jsonl").read_text().replace("S1: A tag.", f"S1: {EVIL}").replace("The bar.", EVIL))
    edit(run / "config.toml", "[classes.bolt]", f"[classes.{json.dumps(EVIL)}]")
    edit(run / "config.toml", "A tag in a corner.", EVIL)
    edit(run / "metrics.json", '"bolt"', json.dumps(EVIL))
    one = Participant(run, name=f'"><img src=x onerror=alert(1)>{EVIL}')
    name = one.client.get("/").text
    seen = name
    for _ in range(6):
        place = one.asked()
        seen += one.say(place, by=f"Bob {EVIL}", value="spurious").text + one.say(place, value="spurious").text + one.get("/")
        one.say(place, by=f'"><img src=x onerror=alert(1)>{EVIL}', value="relevant")
        seen += one.get("/")
        one.say(place, by=f'"><img src=x onerror=alert(1)>{EVIL}', opinion="agree")
    seen += one.say(one.asked(), value=EVIL).text + one.client.get(f"/{EVIL}").text + one.get("/name")
    assert EVIL not in seen and "<img src=x" not in seen and seen.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_the_command_prints_what_people_said(ann, run, tmp_path):
    refused = the_error(invoke("study", run, "--results", "--size", "5"))
    assert "leave them out" in refused
    nobody = invoke("study", run, "--results")
    assert nobody.exit_code == 0 and "nobody has answered yet" in nobody.stdout
    answer_all(ann, "Ann", ann.client, {"spurious": "spurious", "relevant": "relevant"})
    answer_all(ann, "Bob", ann.enter("Bob"), {"spurious": "spurious", "relevant": "spurious"})
    shown = invoke("study", run, "--results", "--out", tmp_path / "csv")
    assert shown.exit_code == 0, shown.stderr
    assert "people and scripted:" in shown.stdout and "Cohen, Ann and Bob" in shown.stdout and "100.0 %" in shown.stdout
    assert (tmp_path / "csv" / "study-answers.csv").read_text().count("\n") == 2 * len(ann.sample.questions) + 1
    told = json.loads(invoke("study", run, "--results", "--json").stdout)
    assert told["agreement_spurious"]["value"] == 1.0 and 0.4 < told["agreement"]["in_sample"] < 1 and told["agreement_argument"]["value"] == 1.0
    assert [person["name"] for person in told["people"]] == ["Ann", "Bob"] and (run / "study-measures.csv").exists()


def test_what_the_command_cannot_use_it_says(run, tmp_path):
    assert "has no study yet" in the_error(invoke("study", run, "--results"))
    assert "is not a run folder" in the_error(invoke("study", tmp_path, "--results"))
    assert "goes with --results" in the_error(invoke("study", run, "--json"))
    assert "at least 2" in the_error(invoke("study", run, "--size", "1"))
    assert not (run / "study.json").exists()
    one = Participant(run, size=4)
    place = one.asked()
    one.say(place, value="spurious")
    assert "leave out --size" in the_error(invoke("study", run, "--size", "6"))
    good = (run / "study.jsonl").read_text()
    for old, new, words in (
        (one.sample.name, "0" * 12, "expected"),
        ('"spurious"', '"wrong"', "expected relevant, spurious, unsure"),
        ('"value": "spurious"', '"said": "x"', "either a value or an opinion"),
        (f'"index": {place[0]}', '"index": 77777', "not in the sample"),
        ("{", "[", "line 1"),
    ):
        (run / "study.jsonl").write_text(good.replace(old, new, 1))
        assert words in the_error(invoke("study", run, "--results")), old
    (run / "study.json").write_text("{}")
    assert "is no sample of a study" in the_error(invoke("study", run, "--results"))


def test_a_run_that_no_model_judged_has_nothing_to_study(run):
    lines = [line | {"value": "unsure"} for line in read_lines(run / "verdicts.jsonl")]
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "nothing to compare people with" in the_error(invoke("study", run))


def test_a_verdict_that_others_contradict_is_asked_about_as_it_was_said(run):
    lines = read_lines(run / "verdicts.jsonl")
    line = next(line for line in lines if line["value"] == "relevant")
    line.update(value="unsure", contradicted="relevant", p=0.9, doubt="the verdicts on like segments say otherwise")
    (run / "verdicts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    asked = {question.place: question.value for question in draw_sample(Participant(run).site.state, size=60, seed=0).questions}
    assert asked[line["index"], line["segment"]] == "relevant", "else the errors that were seen would never be counted"
