"""What every stage took is written as it ends, and added up with the ledger's calls and money."""

import json
import mmap
import time

import pytest

from rightreasons.common import peak
from rightreasons.common.peak import measure_peak
from rightreasons.common.progress import Silent
from rightreasons.errors import ConfigError, LVLMBusy
from rightreasons.lvlm.ledger.attempts import Attempt, begin, keep_answer, keep_failure, open_attempts
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import Recorded, read_profile
from tests.support.helpers import invoke, read_lines, the_error


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def run_stage(folder, name, work=lambda: None):
    reporter = Recorded(Silent(), folder)
    with reporter.stage(name) as advance:
        advance(1, 2)
        work()
    return reporter


def test_a_stage_has_its_line_and_the_reporter_within_its_seconds(folder):
    reporter = run_stage(folder, "align", lambda: time.sleep(0.6))
    (line,) = read_lines(folder.path / "profile.jsonl")
    assert line["stage"] == "align" and line["finished"] is True and line["gpu_bytes"] is None
    assert 0.6 <= line["seconds"] < 5 and reporter.seconds["align"] == pytest.approx(line["seconds"], abs=0.5)
    assert 2**20 < line["peak_bytes"] < 2**40


def test_a_stage_that_is_stopped_has_a_line_too_and_the_error_goes_on(folder):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(folder, "judge", stop)
    run_stage(folder, "judge")
    (cost,) = read_profile(folder)
    assert (cost.times, cost.stopped) == (2, 1)


def test_memory_that_is_held_for_a_moment_is_seen(monkeypatch):
    """Below the process's own record too: the second time nothing new is the highest ever."""
    peaks, looks, look = [], [], peak._held
    monkeypatch.setattr(peak, "_held", lambda key: (look(key), looks.append(key))[0])
    for _ in range(2):
        with measure_peak() as outer:
            with measure_peak() as before:
                pass
            with mmap.mmap(-1, 2**26) as block:  # given back at once, which an array's memory need not be
                for _ in range(2**6):
                    block.write(bytes([1]) * 2**20)
                wait_for_a_look(looks)
        peaks.append(outer.resident - before.resident)
    assert all(2**26 * 0.9 < most < 2**26 * 1.5 for most in peaks), peaks


def wait_for_a_look(looks):
    """A busy machine may not look for a while. The first look of the two may have begun before."""
    seen, end = len(looks), time.monotonic() + 30
    while len(looks) < seen + 2:
        assert time.monotonic() < end, "nobody looks at the memory"
        time.sleep(0.01)


def test_calls_and_money_come_from_the_ledger(folder):
    for name in ("manifest", "controls", "judge"):
        run_stage(folder, name)
    connection = open_attempts(folder.ledger, durable=False)
    for number, (role, price) in enumerate([("control", 0.01), ("critic", 0.02), ("judge", 0.03), ("critic", None)]):
        row = begin(connection, Attempt(f"key {number}", role, "openai:m", "{}", price))
        keep_answer(connection, row, "{}") if number < 3 else keep_failure(connection, row, LVLMBusy("later"))
    connection.execute("UPDATE attempts SET input_tokens = 10, output_tokens = 1 WHERE state = 'answered'")
    stages = {cost.stage: cost for cost in read_profile(folder)}
    assert (stages["manifest"].calls, stages["manifest"].cost_usd) == (0, 0.0)
    assert (stages["controls"].calls, stages["controls"].cost_usd) == (1, 0.01)
    judge = stages["judge"]
    assert (judge.calls, judge.failed, judge.tokens, judge.cost_usd) == (2, 1, 22, pytest.approx(0.05)), "a failure that was not paid for costs 0"
    row = begin(connection, Attempt("asked", "judge", "human:q.jsonl", "{}", 0.0))
    keep_failure(connection, row, LVLMBusy("waiting for a person"))
    assert {cost.stage: cost.failed for cost in read_profile(folder)}["judge"] == 1, "a person who has not answered is no failure"
    connection.execute("UPDATE attempts SET cost_usd = NULL, reserved_usd = NULL WHERE role = 'judge'")
    connection.close()
    assert {cost.stage: cost.cost_usd for cost in read_profile(folder)}["judge"] is None, "nobody knows a price"


def test_a_damaged_line_is_named(folder):
    (folder.path / "profile.jsonl").write_text('{"stage": "a", "seconds": 1, "peak_bytes": 1, "gpu_bytes": null, "finished": true}\n{"stage"\n')
    with pytest.raises(ConfigError, match="line 2 is not a stage of a profile"):
        read_profile(folder)


def test_the_command_shows_it(folder):
    assert "is not a run folder" in the_error(invoke("profile", folder.path))
    config = '[data]\npath = "x"\n[model]\nsource = "a:b"\n[classes.a]\ndescription = "a"\n[critic]\nlvlm = "openai:m"\n'
    (folder.path / "config.toml").write_text(config)
    assert "was made before profiles were kept" in the_error(invoke("profile", folder.path))
    assert read_profile(folder) == []
    run_stage(folder, "segment")
    shown = invoke("profile", folder.path).stdout
    assert "segment" in shown and "peak MiB" in shown and "GPU" not in shown
    (stage,) = json.loads(invoke("profile", folder.path, "--json").stdout)["stages"]
    assert stage["stage"] == "segment" and stage["times"] == 1 and stage["cost_usd"] == 0.0
