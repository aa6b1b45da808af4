"""Drawings, words, long work, and what stands on the pages beside the queue."""

import html
import io
import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.errors import ConfigError
from rightreasons.records import Drawing
from rightreasons.review.forms import read_numbers
from rightreasons.review.jobs import Jobs
from rightreasons.review.pictures import fill_path, heatmap_png, rim_path
from rightreasons.review.queue import Filters, find_next, find_previous
from rightreasons.run import load_run
from rightreasons.runs.drawings import add_drawing, decode_mask, encode_mask, load_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.words import load_words
from tests.support.helpers import invoke, read_lines
from tests.support.review import said


def pixels(browser, index: int, kind: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(browser.client.get(f"/picture/{index}/{kind}").content)))


def test_a_mask_is_the_lengths_of_its_runs(generator):
    for mask in (torch.rand(5, 7, generator=generator) > 0.5, torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)):
        runs = encode_mask(mask)
        flat = [bit for number, length in enumerate(runs) for bit in [bool(number % 2)] * length]
        assert flat == mask.flatten().tolist() and torch.equal(decode_mask(runs, tuple(mask.shape)), mask)


@pytest.mark.parametrize("runs", [[11], [13], [-1, 13], [5, 8.0], "12", [True, 11], [0] * 30])
def test_runs_that_are_no_mask_are_refused(runs):
    with pytest.raises(ValueError, match="runs"):
        decode_mask(runs, (3, 4))


def test_the_paths_of_a_segment_are_its_pixels_and_its_rim():
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert fill_path(mask) == "M1 0h2v1h-2zM1 1h1v1h-1z"
    pieces = set(re.findall(r"M\d+ \d+[HV]\d+", rim_path(mask)))
    assert pieces == {"M1 0H3", "M2 1H3", "M1 2H2", "M1 0V2", "M2 1V2", "M3 0V1"}


def test_a_heatmap_is_red_above_zero_and_blue_below():
    shown = np.array(Image.open(io.BytesIO(heatmap_png(torch.tensor([[1.0, -1.0, 0.0]]), 1.0))))[0]
    assert shown[0, 0] > shown[0, 2] and shown[1, 2] > shown[1, 0] and shown[:, 3].tolist() == [255, 255, 0]


def test_what_is_drawn_is_what_fix_masks(browser):
    """A rectangle over rows 2 to 5 and columns 8 to 11 is painted, and the first column erased, in a run and on the page alike."""
    image = browser.images[0]
    box = {"left": 8, "right": 11, "top": 2, "bottom": 5, "mode": "paint", "by": "Dr Ann"}
    assert "16 pixels painted as spurious, 0 erased, by Dr Ann" in said(browser.post(f"/image/{image}/rectangle", box).text)
    browser.post(f"/image/{image}/rectangle", box | {"left": 0, "right": 0, "top": 0, "bottom": 15, "mode": "erase"})
    plain = load_run(RunFolder(browser.run))
    row = browser.site.state.row_of[image]
    mask = plain.masks[row]
    assert mask[2:6, 8:12].all() and not mask[:, 0].any() and not plain.protected[row][2:6, 8:12].any()
    assert np.array_equal(pixels(browser, image, "mask")[..., 3] > 0, mask.numpy())
    plain.drawings = []
    other = torch.ones(16, 16, dtype=torch.bool)
    other[2:6, 8:12] = other[:, 0] = False
    assert torch.equal(mask[other], plain.masks[row][other]), "elsewhere the segments decide"
    lines = read_lines(browser.run / "drawings.jsonl")
    assert [line["by"] for line in lines] == ["Dr Ann"] * 2 and set(lines[0]) == {"index", "painted", "erased", "by", "at"}


def test_a_drawing_is_found_again_and_taken_back(browser):
    image = browser.images[0]
    painted = torch.zeros(16, 16, dtype=torch.bool)
    painted[3, 4:9] = True
    runs = ",".join(map(str, encode_mask(painted)))
    browser.post(f"/image/{image}/draw", {"painted": runs, "erased": "256", "by": "Dr Ann"})
    assert f'data-painted="{runs}"' in browser.get(f"/image/{image}/draw") and "Dr Ann has marked pixels by hand" in browser.get(f"/image/{image}")
    before = load_run(RunFolder(browser.run)).coverage.drawn_images
    browser.post(f"/image/{image}/undraw", {"by": "Bob"})
    assert (before, load_run(RunFolder(browser.run)).coverage.drawn_images) == (1, 0)
    assert len(load_drawings(RunFolder(browser.run))) == 2 and "Bob" in browser.get("/people")


@pytest.mark.parametrize(
    "address, fields, words",
    [
        ("draw", {"painted": "1,2", "erased": "256"}, "the runs cover 3 pixels; expected 16 x 16 = 256"),
        ("draw", {"painted": "x", "erased": "256"}, "no whole numbers"),
        ("draw", {"painted": "256"}, "no whole numbers"),
        ("rectangle", {"left": 3, "right": 2, "top": 0, "bottom": 0, "mode": "paint"}, "left before right"),
        ("rectangle", {"left": 0, "right": 16, "top": 0, "bottom": 0, "mode": "paint"}, "expected a whole number from 0 to 15"),
        ("rectangle", {"left": 0, "right": 1, "top": 0, "bottom": 0, "mode": "smear"}, "expected paint or erase"),
    ],
)
def test_a_drawing_that_is_none_is_refused(browser, address, fields, words):
    answer = browser.post(f"/image/{browser.images[0]}/{address}", fields | {"by": "Ann"})
    assert answer.status_code == 400 and words in answer.text and not (browser.run / "drawings.jsonl").exists()


def test_a_drawing_on_another_image_or_of_another_size_is_refused(run):
    marks = torch.zeros(16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="is not one of the"):
        add_drawing(RunFolder(run), Drawing(99999, marks, marks, "Ann", "now"))
    (run / "drawings.jsonl").write_text('{"index": 1, "painted": [4], "erased": [4], "by": "Ann", "at": "now"}\n')
    with pytest.raises(ConfigError, match=r"drawings.jsonl, line 1: the runs cover 4 pixels"):
        load_drawings(RunFolder(run))


def test_painted_pixels_alone_are_a_shortcut_that_fix_repairs(browser):
    """People call every segment relevant and paint the tag: fine-tuning has something to do."""
    folder = RunFolder(browser.run)
    rows = [(image, segment) for image, count in folder.segment_counts().items() for segment in range(count)]
    for image, segment in rows:
        browser.decide(image, segment, "relevant")
    assert load_run(folder).outcome == "no shortcut found"
    for image in browser.images:
        browser.post(f"/image/{image}/rectangle", {"left": 0, "right": 3, "top": 0, "bottom": 3, "mode": "paint", "by": "Dr Ann"})
    result = invoke("fix", browser.run, "--json")
    metrics = json.loads(result.stdout)
    assert metrics["outcome"] == "shortcut found" and metrics["alignment"]["outcome"] != "nothing to change", result.stderr
    assert f"people painted spurious pixels on {len(browser.images)} of the images" in metrics["explanation"]
    assert metrics["coverage"]["drawn_images"] == len(browser.images)
    assert "has marked pixels by hand here" in (browser.run / "report.html").read_text()


def words_form(browser, **changes: str) -> dict[str, str]:
    page = browser.get("/words")
    fields = dict(re.findall(r'<textarea id="([\w-]+)"[^>]*>([^<]*)</textarea>', page))
    return {key: html.unescape(value) for key, value in fields.items()} | {"by": "Dr Ann"} | changes


def test_words_are_kept_with_who_and_when_and_the_difference_is_shown(browser):
    form = words_form(browser)
    assert "The words on the classes are those with which the images were judged" in browser.get("/words")
    page = browser.post("/words", form | {"description-0": "The bar, and nothing else."}).text
    assert "Saved by Dr Ann" in said(page) and "<ins>The bar, and nothing else." in page and "<del>The bright bar near the bottom." in page
    (change,) = load_words(RunFolder(browser.run))
    assert (change.by, change.classes[0].description, change.examples) == ("Dr Ann", "The bar, and nothing else.", None)
    assert "The bar, and nothing else." in browser.get(f"/image/{next(i for i in browser.images if browser.site.state.label_of(i) == 'bolt')}")
    assert invoke("score", browser.run).exit_code == 0, "the run's own configuration is untouched"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"description-1": "", "irrelevant-1": ""}, "neither what matters nor what does not"),
        ({"examples": "[[example]]"}, "expected tables [[example]]"),
        ({"examples": "[[example]]\ncritique = 'S1: a.'\nverdicts = { S1 = 'spurious' }"}, "both spurious and relevant are needed"),
        ({"description-0": "x" * 4001}, "at most 4000"),
    ],
)
def test_words_that_cannot_be_used_are_refused(browser, changes, words):
    answer = browser.post("/words", words_form(browser, **changes))
    assert answer.status_code == 400 and words.replace("'", "&#39;") in answer.text and not (browser.run / "words.jsonl").exists()


def wait(browser, seconds: float = 120.0):
    """The job when it has ended."""
    end = time.monotonic() + seconds
    while browser.site.jobs.running and time.monotonic() < end:
        time.sleep(0.1)
    return browser.site.jobs.look()


def test_work_is_started_watched_and_stopped(browser):
    assert "Nothing has been started" in browser.get("/work")
    page = browser.post("/work/fix", {"by": "Dr Ann", "epochs": "1000"}).text
    assert "The repair has started." in said(page) and "Stop it" in page
    again = browser.post("/work/fix", {"by": "Bob"})
    assert again.status_code == 400 and "The repair is still at work" in again.text
    first = browser.client.get("/work/log?start=0").json()
    assert first["state"] == "running" and "started by Dr Ann" in first["words"]
    assert "Stopped" in said(browser.post("/work/stop", {"by": "Dr Ann"}).text)
    assert browser.client.get(f"/work/log?start={first['end']}").json()["state"] == "stopped" and not (browser.run / "aligned.safetensors").exists()
    (log,) = (browser.run / "jobs").iterdir()
    assert log.stat().st_mode & 0o777 == 0o600 and "The repair, started by Dr Ann" in log.read_text()


def test_verdicts_can_be_given_while_the_run_is_locked_by_work(browser):
    with RunFolder(browser.run).locked():
        assert "Saved" in said(browser.decide(browser.images[0], 0, "unsure").text)
        assert invoke("verdict", browser.run, browser.images[0], "S2", "unsure", "--by", "Ann").exit_code == 0


def test_a_command_that_fails_says_why(browser):
    browser.site.jobs.start("Nothing", ["fix", str(browser.run / "absent")], "Ann")
    ended = wait(browser)
    assert ended.state == "failed" and "is not a run folder" in ended.words
    assert "Nothing: failed." in browser.get("/work")


def test_a_log_is_read_on_from_where_it_was(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    assert jobs.look().state == "none"
    jobs.stop()
    jobs.start("Version", ["--version"], "Ann")
    jobs._process.wait(60)
    whole = jobs.look()
    assert whole.state == "finished" and jobs.look(whole.end).words == "" and jobs.look(10).words == whole.words[10:]


@pytest.mark.parametrize(
    "fields, words", [({"images": "1; 2"}, "expected numbers of images"), ({"images": "99999"}, "is not one of"), ({"images": ""}, "expected")]
)
def test_images_that_cannot_be_judged_again(browser, fields, words):
    answer = browser.post("/again", {"by": "Ann", "role": "judge", "do": "ask"} | fields)
    assert answer.status_code == 400 and words in answer.text and not browser.site.jobs.running


def test_another_machine_is_asked_only_with_leave(browser):
    browser.site.state.config = browser.site.state.config.model_copy(
        update={"critic": browser.site.state.config.critic.model_copy(update={"lvlm": "openai:m", "base_url": "https://models.example/v1"})}
    )
    assert 'name="allow-models.example"' in browser.get("/words")
    form = {"by": "Ann", "role": "judge", "do": "ask", "images": str(browser.images[0])}
    answer = browser.post("/again", form)
    assert answer.status_code == 400 and "sends to models.example, which is another machine" in answer.text and not browser.site.jobs.running


def test_numbers_of_images():
    assert read_numbers("3, 1\n 2") == [3, 1, 2]


def test_the_ends_of_a_list(browser):
    items = browser.site.state.snapshot().items
    places = [(item.index, item.segment) for item in items]
    assert find_next(items, places[0]) is items[1] and find_previous(items, places[1]) is items[0]
    assert find_next(items, places[-1]) is None and find_previous(items, places[0]) is None and find_next([], places[0]) is None
    assert find_next(items, (99999, 0)) is items[0]
    assert Filters(label="a b", reviewer="ö").query(page=2) == "?label=a+b&reviewer=%C3%B6&page=2"


def test_before_and_after_stand_side_by_side(browser):
    assert "has not been repaired yet" in browser.get("/compare") and browser.client.get(f"/picture/{browser.images[0]}/after").status_code == 404
    assert invoke("fix", browser.run).exit_code == 0
    page = browser.get("/compare")
    assert "Fine-tuning: <strong>" in page and f"/picture/{browser.images[0]}/after" in page and ">after</th>" in page
    assert browser.client.get(f"/picture/{browser.images[0]}/after").headers["content-type"] == "image/png"


def test_how_far_the_model_can_be_believed(browser):
    assert "This is known once" in browser.get("/people")
    for image in browser.images:
        browser.decide(image, 0, "relevant")
        browser.decide(image, 1, "relevant")
    page = browser.get("/people")
    assert f"On the {2 * len(browser.images)} segments" in page and "50 % are right without a person" in page


def test_a_long_log_comes_in_whole_lines_and_a_line_without_an_end_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("rightreasons.review.jobs.MOST_WORDS", 20)
    jobs = Jobs(tmp_path / "jobs")
    jobs.start("x", ["--version"], "Ann")
    jobs._process.wait(60)
    jobs._log.write_bytes(b"first line\nsecond line\n" + b"y" * 45)
    parts, end = [], 0
    while (progress := jobs.look(end)).words:
        parts.append(progress.words)
        end = progress.end
    assert parts == ["first line\n", "second line\n", "y" * 20, "y" * 20, "y" * 5]


def test_a_wrong_answer_of_the_classifier_is_told(browser):
    image, state = browser.images[0], browser.site.state
    assert f"<h1>Image {image}: {state.label_of(image)}</h1>" in browser.get(f"/image/{image}")
    other = next(name for name in state.classes if name != state.label_of(image))
    state._answers[0] = state.classes.index(other)
    assert f"<h1>Image {image}: {state.label_of(image)}, classified as {other}</h1>" in browser.get(f"/image/{image}")
