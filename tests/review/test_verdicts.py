"""What a person decides on a page: on the disk before the page says so, whoever else decides at the same time."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from rightreasons.records import settle_verdicts
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import environment, invoke, read_lines
from tests.support.review import said


def places(page: str) -> list[tuple[int, int]]:
    """The segments that a queue lists, in its order."""
    return [(int(image), int(segment) - 1) for image, segment in re.findall(r"image (\d+), S(\d+)</a></th>", page)]


def test_what_waits_comes_first_and_then_by_share(browser):
    listed = places(browser.get("/"))
    waiting = [(index, 2) for index in browser.images]  # of which the judge is unsure
    assert sorted(listed[: len(waiting)]) == sorted(waiting) and len(listed) == 3 * len(browser.images)
    shares = [browser.site.state.snapshot().by_place[place].share for place in listed[: len(waiting)]]
    assert shares == sorted(shares, reverse=True)


def test_a_verdict_is_a_line_with_name_and_time_and_counts_before_the_models(browser):
    image = browser.images[0]
    page = browser.decide(image, 0, "relevant").text
    assert said(page) == f"Saved: image {image}, S1 is relevant, by Dr Ann."
    line = read_lines(browser.run / "verdicts.jsonl")[-1]
    assert (line["index"], line["segment"], line["value"], line["source"], line["by"]) == (image, 0, "relevant", "human", "Dr Ann")
    assert line["at"].endswith("+00:00")
    assert settle_verdicts(RunFolder(browser.run).load_verdicts())[image, 0].value == "relevant"


def test_the_next_segment_of_the_list_follows(browser):
    first, second = places(browser.get("/?waiting=yes"))[:2]
    answer = browser.decide(*first, "spurious", waiting="yes")
    assert str(answer.url).endswith(f"/image/{second[0]}?waiting=yes&segment=2#S3")
    assert first not in places(browser.get("/?waiting=yes"))


@pytest.mark.parametrize("value, words", [("spurious", ["Accept: spurious", "Flip to relevant"]), ("unsure", ["Spurious", "Relevant"])])
def test_the_buttons_say_what_they_do(browser, value, words):
    image = browser.images[0]
    browser.decide(image, 0, value)
    part = browser.get(f"/image/{image}").split('id="S1"')[1].split('id="S2"')[0]
    assert re.findall(r"data-key=\"\w\">([^<]*) <kbd>", part) == [*words, "Unsure"]


def test_filters(browser):
    bolt, first = browser.site.state, places(browser.get("/"))[0]
    browser.decide(*first, "relevant")
    assert {bolt.label_of(index) for index, _ in places(browser.get("/?label=bolt"))} == {"bolt"}
    assert places(browser.get("/?reviewer=Dr+Ann")) == places(browser.get("/?source=person")) == [first]
    assert first not in places(browser.get("/?source=model")) and first in places(browser.get("/?verdict=relevant&waiting=no"))
    assert len(places(browser.get("/?verdict=nonsense&waiting=maybe"))) == 3 * len(browser.images)


def test_undo_takes_back_verdict_by_verdict_and_the_models_counts_again(browser):
    image = browser.images[0]
    for value in ("relevant", "unsure"):
        browser.decide(image, 0, value)
    assert "Now counts: relevant, by Dr Ann" in said(browser.post("/undo", {"by": "Dr Ann"}).text)
    assert "Now counts: spurious, by scripted:" in said(browser.post("/undo", {"by": "Dr Ann"}).text)
    assert "no verdict of Dr Ann to take back" in said(browser.post("/undo", {"by": "Dr Ann"}).text)
    lines = read_lines(browser.run / "verdicts.jsonl")
    assert [line.get("withdraws", False) for line in lines[-4:]] == [False, False, True, True], "nothing was removed from the file"
    assert settle_verdicts(RunFolder(browser.run).load_verdicts())[image, 0].source != "human"


def test_nobody_takes_back_what_another_said(browser):
    image = browser.images[0]
    browser.decide(image, 0, "relevant", by="Bob")
    assert "no verdict of Dr Ann" in said(browser.post("/undo", {"by": "Dr Ann"}).text)
    assert settle_verdicts(RunFolder(browser.run).load_verdicts())[image, 0].by == "Bob"


def test_find_keeps_what_was_taken_back(browser):
    image = browser.images[0]
    browser.decide(image, 0, "relevant")
    browser.post("/undo", {"by": "Dr Ann"})
    assert invoke("find", browser.run.parent / "parts.toml", "--out", browser.run).exit_code == 0
    lines = [line for line in read_lines(browser.run / "verdicts.jsonl") if line["source"] == "human"]
    assert [line.get("withdraws", False) for line in lines] == [False, True]
    assert settle_verdicts(RunFolder(browser.run).load_verdicts())[image, 0].value == "spurious"


def test_two_reviewers_on_one_segment_are_both_kept_and_the_report_says_so(browser):
    image = browser.images[0]
    browser.decide(image, 0, "relevant", by="Ann")
    page = browser.decide(image, 0, "spurious", by="Bob").text
    assert "Ann had said relevant; both are kept, and yours, the later, counts." in said(page)
    assert [line["by"] for line in read_lines(browser.run / "verdicts.jsonl")[-2:]] == ["Ann", "Bob"]
    assert "Ann says relevant, Bob says spurious" in " ".join(browser.get(f"/image/{image}").split())
    result = invoke("score", browser.run, "--json")
    assert json.loads(result.stdout)["critic"]["disputed"] == 1
    report = (browser.run / "report.html").read_text()
    assert "Where people disagree" in report and "(by Bob, " in report and re.search(r"Ann: relevant, [^;]*; Bob: spurious, ", report)


def test_many_reviewers_at_once_lose_nothing(browser):
    """Eight browsers and the command, in threads and in another process, on the same segments."""
    images, names, failures = browser.images[:4], [f"Reviewer {number}" for number in range(8)], []
    clients = [browser.enter(name) for name in names]

    def work(client, name):
        for image in images:
            answer = browser.post(f"/image/{image}/verdict", {"segment": 0, "value": "unsure", "by": name}, client=client)
            if answer.status_code != 200:
                failures.append(answer.text)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(clients, names, strict=True)]
    command = [sys.executable, "-m", "rightreasons", "verdict", str(browser.run), str(images[0]), "S2", "spurious", "--by", "Command"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert process.returncode == 0 and failures == []
    human = [(v.by, v.index) for v in RunFolder(browser.run).load_verdicts() if v.source == "human" and v.by != "Command"]
    assert sorted(human) == sorted((name, image) for name in names for image in images)


def test_a_verdict_that_the_page_told_of_survives_a_kill_in_the_next_millisecond(run):
    """The real server in a process of its own is killed the moment its answer has come."""
    image = next(iter(RunFolder(run).segment_counts()))
    code = (
        "import sys; from pathlib import Path; from rightreasons.review.server import serve; from rightreasons.runs.folder import RunFolder\n"
        "serve(RunFolder(Path(sys.argv[1])), port=0, name='', announce=lambda address: print(address, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True, env=environment()) as server:
        address = server.stdout.readline().strip()
        home = address.partition("/start")[0]
        with httpx.Client(base_url=home, headers={"origin": home}, trust_env=False) as client:
            client.get(address)
            answer = client.post(f"/image/{image}/verdict", data={"segment": "0", "value": "unsure", "by": "Ann"})
            os.kill(server.pid, signal.SIGKILL)
    assert answer.status_code == 303
    line = read_lines(run / "verdicts.jsonl")[-1]
    assert (line["index"], line["value"], line["by"]) == (image, "unsure", "Ann")


def test_the_line_is_synced_before_the_answer(browser, monkeypatch):
    order = []
    real = os.fsync

    def note(handle):
        order.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr("rightreasons.runs.appended.os.fsync", note)
    browser.decide(browser.images[0], 0, "unsure")
    assert order == [str(browser.run / "verdicts.jsonl")]


def test_a_full_disk_is_told_and_leaves_no_half_of_a_line(browser, monkeypatch):
    before = (browser.run / "verdicts.jsonl").read_bytes()
    real = os.write
    monkeypatch.setattr("rightreasons.runs.appended.os.write", lambda handle, content: real(handle, content[:20]))
    answer = browser.decide(browser.images[0], 0, "unsure")
    assert answer.status_code == 400 and "is full" in answer.text and "Nothing was changed" in answer.text
    assert (browser.run / "verdicts.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "index, segment, value, by, words",
    [
        (None, 9, "spurious", "Ann", "has no S10"),
        (None, 0, "spurius", "Ann", "is not a verdict"),
        (None, 0, "spurious", " ", "needs the name"),
        (None, 0, "spurious", "x" * 81, "at most 80"),
        (None, "-1", "spurious", "Ann", "expected a whole number"),
        (99999, 0, "spurious", "Ann", "is not one of the"),
    ],
)
def test_what_is_not_in_the_run_is_refused_and_nothing_is_written(browser, index, segment, value, by, words):
    before = (browser.run / "verdicts.jsonl").read_bytes()
    answer = browser.decide(browser.images[0] if index is None else index, segment, value, by=by)
    assert answer.status_code == 400 and words in answer.text
    assert (browser.run / "verdicts.jsonl").read_bytes() == before


def test_lines_that_a_command_adds_are_seen(browser):
    image = browser.images[0]
    browser.get("/")
    assert invoke("verdict", browser.run, image, "S1", "relevant", "--by", "Command").exit_code == 0
    assert "Command" in browser.get("/people") and browser.site.state.snapshot().by_place[image, 0].verdict.by == "Command"
    invoke("find", browser.run.parent / "parts.toml", "--out", browser.run)  # writes the file anew
    assert browser.site.state.snapshot().by_place[image, 0].verdict.by == "Command"
    with (browser.run / "verdicts.jsonl").open("a") as file:
        file.write('{"index": 1, "segm')  # a line that is still being written
    assert browser.site.state.snapshot().by_place[image, 0].verdict.by == "Command"


def test_a_wrong_line_is_named_on_the_page(browser):
    with (browser.run / "verdicts.jsonl").open("a") as file:
        file.write('{"index": 1}\n')
    answer = browser.client.get("/")
    assert answer.status_code == 400 and "verdicts.jsonl, line 19: no &#39;segment&#39;" in answer.text


def test_a_run_without_verdicts_is_one_clear_error(run):
    (run / "verdicts.jsonl").unlink()
    result = invoke("review", run)
    assert result.exit_code == 1 and "has nothing to review yet" in result.stderr


def test_without_the_extra_the_error_names_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = invoke("review", run)
    assert result.exit_code == 1 and "rightreasons[review]" in result.stderr
