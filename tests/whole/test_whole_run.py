"""find, fix and score as people run them: real processes, a real server on loopback, kills included."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
import torch

from tests.support.fault_server import FaultServer, look_for_plates
from tests.support.helpers import children, command, environment, invoke, run, run_in_turn
from tests.support.plates import write_folder

SCORES = {
    "spurious_share", "swap_flip_rate", "accuracy", "worst_group_accuracy", "average_group_accuracy", "weighted_group_accuracy", "mu_align",
    "mu_align_floor", "shortcut_lift", "spurious_lift",
    "mean_entropy", "groups", "other_groups", "classes", "spurious_share_interval",
}  # fmt: skip


def finish(*arguments):
    """A command that nothing disturbs, in this process, with as many threads as the processes have: others would round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = invoke(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def one_go(tmp_path_factory):
    """The run folder, metrics and request count of an undisturbed find."""
    root = tmp_path_factory.mktemp("plates")
    with FaultServer(critic=look_for_plates) as stub:
        config = write_folder(root, stub.base_url)
        printed = run("find", config, "--out", root / "run", "--json")
        again = finish("find", config, "--out", root / "run", "--json")
        yield root / "run", json.loads(printed.stdout), stub, json.loads(again.stdout)


def test_find_against_a_server(one_go):
    folder, metrics, stub, again = one_go
    assert {"task", "seed", "critic", "selection", "before", "after", "reference", "seconds"} <= metrics.keys()
    assert set(metrics["before"]) == SCORES
    assert metrics["critic"]["backend"] == "openai" and metrics["critic"]["simulated"] is False and metrics["critic"]["cost_usd"] == 0.0
    assert metrics["critic"]["verdict_accuracy"] is None and metrics["selection"]["spurious_fraction"] is None
    assert metrics["outcome"] == "shortcut found"
    assert json.loads((folder / "metrics.json").read_text()) == again
    assert stub.requests == len(stub.bodies) == again["critic"]["calls"], "the second find asked nothing, and no question came twice"


def test_who_answers_is_told(one_go, tmp_path):
    """The server says that it is "stub", whoever is asked."""
    folder, metrics, *_ = one_go
    assert metrics["critic"]["answered_by"] == {"openai:stub": ["stub"]} and "by the server's word" not in (folder / "report.html").read_text()
    with FaultServer(critic=look_for_plates) as stub:
        config = write_folder(tmp_path, stub.base_url)
        config.write_text(config.read_text().replace("openai:stub", "openai:big-model"))
        printed = finish("find", config, "--out", tmp_path / "run", "--json")
    assert json.loads(printed.stdout)["critic"]["answered_by"] == {"openai:big-model": ["stub"]}
    assert printed.stderr.count("openai:big-model was asked, and 'stub' answers by the server's word") == 1
    assert "Asked was openai:big-model; by the server's word stub answered." in (tmp_path / "run" / "report.html").read_text().replace("&#39;", "'")


def test_pictures_that_were_sent(one_go):
    *_, stub, _ = one_go
    assert {len(seen.pictures) for seen in stub.seen} == {0, 3} and not stub.problems


def test_run_folder(one_go):
    folder, metrics, *_ = one_go
    expected = "config.toml environment.json selection.json heatmaps.safetensors segments.safetensors lvlm.sqlite critiques.jsonl verdicts.jsonl"
    for name in [*expected.split(), "metrics.json", "report.html"]:
        assert (folder / name).exists(), name
        assert (folder / name).stat().st_mode & 0o077 == 0, f"{name} is readable by others"
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == metrics["critic"]["segments"] and {v["value"] for v in verdicts} == {"spurious", "relevant"}


def test_report_needs_no_network(one_go):
    page = (one_go[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count('<section class="card ') == 12 and "the label plate" in page


def test_fix_and_score(one_go):
    folder = one_go[0]
    fixed, scored, repeated = map(json.loads, run_in_turn(*([command, folder, "--json"] for command in ("fix", "score", "fix"))))
    assert (fixed["alignment"]["outcome"], fixed["alignment"]["effect"]) == ("aligned", "took")
    assert fixed["alignment"]["neutral_after"] > 0.9 > 0.75 > fixed["alignment"]["neutral_before"]
    assert fixed["after"]["swap_flip_rate"] < 0.2 and fixed["before"]["swap_flip_rate"] > 0.6
    assert (folder / "aligned.safetensors").exists() and (folder / "masks.safetensors").exists()
    assert scored["after"] == fixed["after"] and scored["before"] == fixed["before"]
    assert "heatmap after" in (folder / "report.html").read_text()
    assert "align" not in finish("fix", folder).stderr and repeated["after"] == fixed["after"], "the same fix is not worked on twice"


@pytest.mark.parametrize("answered", [0, 3, 11])
def test_kill_in_the_middle_of_find(one_go, tmp_path, answered):
    expected = (one_go[0] / "verdicts.jsonl").read_text()
    with FaultServer(critic=look_for_plates, delay=0.1) as stub:
        config = write_folder(tmp_path, stub.base_url)
        process = subprocess.Popen(command("find", config, "--out", tmp_path / "run"), env=environment(), stderr=subprocess.DEVNULL)
        stub.wait_for(answered + 1, alive=lambda: process.poll() is None)
        process.kill()  # requests are under way at this moment
        process.wait()
        stub.delay = 0.0
        finish("find", config, "--out", tmp_path / "run")
        assert max(stub.bodies.values()) == 1, "a request was repeated"
    assert (tmp_path / "run" / "verdicts.jsonl").read_text() == expected


def test_kill_in_the_middle_of_fix(one_go, tmp_path):
    folder, whole, killed = one_go[0], tmp_path / "whole", tmp_path / "killed"
    finish("fix", folder, "--out", whole)
    process = subprocess.Popen(command("fix", folder, "--out", killed), env=environment(), stderr=subprocess.DEVNULL)
    while not list(killed.glob("aligning-*.pt")):
        assert process.poll() is None, "fix ended before it was killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (killed / "aligned.safetensors").exists(), "the kill came too late to test anything"
    finish("fix", folder, "--out", killed)
    assert (killed / "aligned.safetensors").read_bytes() == (whole / "aligned.safetensors").read_bytes()


def test_ledger_keeps_a_request_that_the_courier_lost(one_go, tmp_path):
    """Killed together with its courier, a request stays unknown: not sent again, until somebody says so."""
    with FaultServer(critic=look_for_plates, delay=0.3) as stub:
        config = write_folder(tmp_path, stub.base_url)
        process = subprocess.Popen(command("find", config, "--out", tmp_path / "run"), env=environment(), stderr=subprocess.DEVNULL)
        stub.wait_for(5, alive=lambda: process.poll() is None)
        for pid in (*children(process), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        stub.delay = 0.0
        finish("find", config, "--out", tmp_path / "run")
        assert max(stub.bodies.values()) == 1
        lines = [json.loads(line) for line in (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()]
        assert any("unknown" in (line["problem"] or "") for line in lines)
        finish("find", config, "--out", tmp_path / "run", "--retry-unknown")
    assert (tmp_path / "run" / "verdicts.jsonl").read_text() == (one_go[0] / "verdicts.jsonl").read_text()
