"""What a person decides: by the command, from a table, or by hand in verdicts.jsonl, where no line is taken that is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rightreasons.data import open_data
from rightreasons.records import settle_verdicts
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import append_verdicts, read_segment, read_verdicts
from tests.support.helpers import environment, invoke, read_lines, the_error, write_scripted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four images, whose judge is unsure of everything."""
    root = tmp_path_factory.mktemp("finished")
    config = write_scripted(root, changes={"size = 12": "size = 4"})
    said = {"critic": ["S1: A part.\nS2: A part.\nS3: A part."], "judge": [json.dumps({"S1": "unsure", "S2": "relevant", "S3": "relevant"})]}
    (root / "script.json").write_text(json.dumps(said))
    assert invoke("find", config, "--out", root / "run").exit_code == 0
    return root


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


def images(run) -> list[int]:
    return list(RunFolder(run).segment_counts())


def test_a_verdict_is_added_with_who_and_when_and_comes_before_the_models(run):
    image = images(run)[0]
    done = invoke("verdict", run, image, "S1", "spurious", "--by", "Dr Ann")
    assert done.exit_code == 0, done.stderr
    assert (
        f"image {image}, S1: unsure (scripted:" in done.stdout
        and "-> spurious, by Dr Ann" in done.stdout
        and f"rightreasons fix {run}" in done.stdout
    )
    line = read_lines(run / "verdicts.jsonl")[-1]
    assert (line["index"], line["segment"], line["value"], line["source"], line["by"]) == (image, 0, "spurious", "human", "Dr Ann")
    assert line["at"].endswith("+00:00")
    assert "spurious (Dr Ann) -> relevant" in invoke("verdict", run, image, "s1", "Relevant", "--by", "Bob").stdout
    settled = settle_verdicts(RunFolder(run).load_verdicts())
    assert settled[image, 0].value == "relevant" and settled[image, 1].source != "human"


def test_what_waits_comes_as_a_table_and_goes_back_filled_in(run, tmp_path):
    """As a spreadsheet saves it: with semicolons and a byte-order mark, rows that are not decided yet, and columns of no use."""
    listed = invoke("verdict", run, "--list")
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert {row["image"] for row in rows} == set(map(str, images(run))) and {row["segment"] for row in rows} == {"S1"} and rows[0]["why"] == "unsure"
    assert all(os.path.exists(row["picture"]) for row in rows)
    for row in rows[:3]:
        row["value"] = "spurious"
    filled = io.StringIO()
    writer = csv.DictWriter(filled, rows[0], delimiter=";")
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "todo.csv").write_text(filled.getvalue(), encoding="utf-8-sig")
    done = invoke("verdict", run, "--from", tmp_path / "todo.csv", "--by", "Ann", "--json")
    assert [change["value"] for change in json.loads(done.stdout)] == ["spurious"] * 3
    left = invoke("verdict", run, "--list", "--json")
    assert [row["image"] for row in json.loads(left.stdout)] == [int(rows[3]["image"])]


def test_an_image_may_be_named_by_its_file(run):
    image = images(run)[0]
    folder = RunFolder(run)
    root = Path(folder.environment()["root"])
    name = open_data(folder.config().data, root=root, seed=0).splits["train"].entries[image].name
    assert f"image {image}, S2" in invoke("verdict", run, name, "S2", "relevant", "--by", "Ann").stdout
    assert "0 training images are called 'absent.png'" in the_error(invoke("verdict", run, "absent.png", "S2", "relevant", "--by", "Ann"))


WRONG = {
    "no such image": (("999", "S1", "spurious"), "image 999 is not one of the 4 inspected images"),
    "no such segment": (("IMAGE", "S9", "spurious"), "has no S9"),
    "segments count from 1": (("IMAGE", "S0", "spurious"), "expected S1, S2"),
    "a bare number": (("IMAGE", "1", "spurious"), "expected S1, S2"),
    "a slip": (("IMAGE", "S1", "spurius"), "expected relevant, spurious, unsure"),
    "half of it": (("IMAGE", "S1"), "expected IMAGE SEGMENT VALUE"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_in_the_run_is_refused_and_nothing_is_written(run, case):
    arguments, words = WRONG[case]
    before = (run / "verdicts.jsonl").read_bytes()
    given = [str(images(run)[0]) if argument == "IMAGE" else argument for argument in arguments]
    assert words in the_error(invoke("verdict", run, *given, "--by", "Ann"))
    assert (run / "verdicts.jsonl").read_bytes() == before


def test_somebody_must_have_decided(run, tmp_path):
    assert "--by NAME" in the_error(invoke("verdict", run, images(run)[0], "S1", "spurious"))
    (tmp_path / "empty").mkdir()
    assert "not a run folder" in the_error(invoke("verdict", tmp_path / "empty", "1", "S1", "spurious", "--by", "Ann"))
    (run / "verdicts.jsonl").unlink()
    assert "to its end first" in the_error(invoke("verdict", run, images(run)[0], "S1", "spurious", "--by", "Ann"))


def test_one_wrong_row_of_a_table_is_named_and_none_is_taken(run, tmp_path):
    first, second, *_ = images(run)
    before = (run / "verdicts.jsonl").read_bytes()
    for row, words in ((f"{second},S9,spurious", "has no S9"), (f"{first},S1,relevant", "different values"), (f"{second},S1,maybe", "not a verdict")):
        (tmp_path / "t.csv").write_text(f"image,segment,value\n{first},S1,spurious\n{row}\n")
        error = the_error(invoke("verdict", run, "--from", tmp_path / "t.csv", "--by", "Ann"))
        assert "t.csv, line 3" in error and words in error
    assert (run / "verdicts.jsonl").read_bytes() == before


GOOD = {"index": "IMAGE", "segment": 0, "value": "spurious", "source": "human"}
BY_HAND = {
    "no source": ({key: GOOD[key] for key in ("index", "segment", "value")}, "no 'source'"),
    "another key": (GOOD | {"comment": "mine"}, "unknown key 'comment'"),
    "another image": (GOOD | {"index": 999}, "image 999"),
    "another segment": (GOOD | {"segment": 9}, "segment 9"),
    "a segment as people see it": (GOOD | {"segment": "S2"}, "'S2'"),
    "a slip": (GOOD | {"value": "spurius"}, "'spurius'"),
    "a list for a value": (GOOD | {"value": ["spurious"]}, "value = ["),
    "a flag for a number": (GOOD | {"segment": True}, "segment = True"),
    "a name that is nearly it": (GOOD | {"source": "Human"}, "source = 'Human'"),
    "a number for a name": (GOOD | {"by": 3}, "by = 3"),
    "p that is none": (GOOD | {"p": float("nan")}, "p = nan"),
    "no object": ([1], "a JSON list"),
    "no JSON": ('{"index": 1, "segm', "not JSON"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_line_by_hand_that_is_wrong_is_one_error_that_names_it(run, case):
    line, words = BY_HAND[case]
    number = len(read_lines(run / "verdicts.jsonl")) + 1
    text = line if isinstance(line, str) else json.dumps(line)
    with (run / "verdicts.jsonl").open("a") as file:
        file.write(text.replace('"IMAGE"', str(images(run)[0])) + "\n")
    for command in (("verdict", run, "--list"), ("fix", run)):
        error = the_error(invoke(*command))
        assert f"verdicts.jsonl, line {number}: " in error and words in error


def test_a_line_by_hand_that_is_right_counts_like_one_of_the_command(run):
    image = images(run)[0]
    with (run / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps(GOOD | {"index": image}))  # without a line's end, as editors may leave it
    invoke("verdict", run, image, "S2", "spurious", "--by", "Ann")
    settled = settle_verdicts(RunFolder(run).load_verdicts())
    assert [settled[image, part].value for part in (0, 1)] == ["spurious", "spurious"] and settled[image, 0].by is None


def test_find_reads_them_before_it_pays_and_keeps_them(finished, run):
    image = images(run)[0]
    invoke("verdict", run, image, "S1", "spurious", "--by", "Ann")
    assert invoke("find", finished / "parts.toml", "--out", run).exit_code == 0
    assert read_lines(run / "verdicts.jsonl")[-1]["by"] == "Ann"


def test_every_verdict_that_was_told_of_survives_a_kill(run):
    """A process writes verdict after verdict and says so after each; whatever moment it is killed at, those are there and every line is whole."""
    image = images(run)[0]
    code = (
        "import sys; from pathlib import Path\n"
        "from rightreasons.records import Verdict; from rightreasons.runs.verdict_lines import append_verdicts\n"
        "for i in range(10**6):\n"
        f"    append_verdicts(Path(sys.argv[1]), [Verdict({image}, 0, 'spurious', 'human', by=str(i), at='now')] * 3); print(i, flush=True)"
    )
    before = len(read_lines(run / "verdicts.jsonl"))
    command = [sys.executable, "-c", code, str(run / "verdicts.jsonl")]
    told = -1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as writer:
        for line in writer.stdout:
            told = int(line)
            if told == 50:
                writer.send_signal(signal.SIGKILL)
    verdicts = read_verdicts(run / "verdicts.jsonl", RunFolder(run).segment_counts())
    assert told >= 50 and len(verdicts) - before >= 3 * (told + 1) and (len(verdicts) - before) % 3 == 0


def test_segments_as_people_see_them():
    assert [read_segment(name) for name in ("S1", " s12 ")] == [0, 11]
    for wrong in ("", "S", "S-1", "S1.0", "1", "S\u00b2"):
        with pytest.raises(ValueError, match="expected S1"):
            read_segment(wrong)


def test_the_file_is_private(tmp_path):
    append_verdicts(tmp_path / "verdicts.jsonl", [])
    assert (tmp_path / "verdicts.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_run_that_only_a_person_judged_says_so(run):
    rows = [(image, f"S{part + 1}") for image, count in RunFolder(run).segment_counts().items() for part in range(count)]
    (run.parent / "all.csv").write_text("image,segment,value\n" + "".join(f"{image},{name},relevant\n" for image, name in rows))
    assert invoke("verdict", run, "--from", run.parent / "all.csv", "--by", "Ann").exit_code == 0
    told = " ".join(invoke("score", run).stdout.split())
    assert "(verdicts by a person)" in told and "scripted" not in told and "Every verdict is a person" in (run / "report.html").read_text()
