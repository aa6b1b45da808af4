"""Controls: what they show, what passes, and what a run says of a critic that fails them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from rightreasons.critic.controls import CONTROLS, CORE, MEANINGS, control_case, controls_for, read_controls
from rightreasons.critic.judge import Example
from rightreasons.critic.panel import Panel, consult_case
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import get_reply
from rightreasons.records import Control, GroundTruth, Verdict
from tests.support.helpers import edit, invoke, write_scripted

TRUTH = GroundTruth(["all"], lambda index: pytest.fail("a control needs no mask"))
EXAMPLES = (Example("S1: a tag.\nS2: a bird.", {"S1": "spurious", "S2": "relevant"}),)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_what_they_show():
    assert set(CONTROLS.values()) == set(MEANINGS)
    background, blank, core = (control_case(index) for index in CONTROLS)
    assert len(np.unique(opened(blank.pictures.clean))) == 1, "nothing at all"
    assert (opened(background.pictures.clean) == opened(core.pictures.clean)).all() and len(np.unique(opened(core.pictures.clean))) == 2
    for case, dark in ((background, 0.0), (blank, 0.0), (core, 1.0)):
        assert (case.image[0][case.shown == 0] < 0.5).double().mean() == dark


@pytest.mark.parametrize("mode", ["two-call", "fused"])
def test_a_perfect_simulated_critic_passes_and_the_ledger_counts_it_once(tmp_path, mode):
    lvlm, ledger = open_lvlm("simulated:", truth=TRUTH), Ledger(tmp_path / "lvlm.sqlite")
    panel = Panel(lvlm, lvlm, EXAMPLES, mode, votes=3)
    for _ in range(2):
        verdicts = [verdict for case in controls_for(lvlm) for verdict in consult_case(case, panel, ledger.ask)[1]]
        assert read_controls(verdicts) == [
            Control("plain background", True, "spurious"),
            Control("blank image", True, "spurious"),
            Control("known core", True, "relevant"),
        ]
    roles = [role for (role,) in ledger._connection.execute("SELECT role FROM attempts")]
    assert roles.count("control") == 3, "asked once, whatever the votes"
    assert roles.count("judge") == (0 if mode == "fused" else 2), "two of the critiques are the same words"
    ledger.close()


def test_a_critic_that_is_always_wrong_fails_all():
    lvlm = open_lvlm("simulated:0", truth=TRUTH)
    panel = Panel(lvlm, lvlm, EXAMPLES)
    verdicts = [v for case in controls_for(lvlm) for v in consult_case(case, panel, lambda m, request: m.parse(get_reply(m, request)))[1]]
    assert [control.passed for control in read_controls(verdicts)] == [False, False, False]


def test_only_a_simulated_critic_has_a_known_core():
    real, simulated = Scripted(lambda request: ""), Scripted(lambda request: "")
    simulated.simulated = True
    assert [case.subject.known for case in controls_for(real)] == [True, True]
    assert [case.subject.known for case in controls_for(simulated)] == [True, True, False]


@pytest.mark.parametrize(("value", "passed"), [("spurious", True), ("unsure", True), ("relevant", False)])
def test_what_passes(value, passed):
    for index in (-1, -2):
        assert read_controls([Verdict(index, 0, value, "m")])[0].passed is passed
    assert read_controls([Verdict(CORE, 0, value, "m")])[0].passed is (value != "spurious")
    assert read_controls([Verdict(-2, 0, "unsure", "m", problem="refused: an empty picture")])[0] == Control(
        "blank image", None, "refused: an empty picture"
    ), "no answer to an empty picture proves nothing against a critic"


def test_a_run_says_so_in_note_metrics_and_report(tmp_path):
    config = write_scripted(tmp_path)
    yes = {"image_observation": "x", "class_region": "y", "segments": {"S1": {"covers": "a", "reason": "b", "verdict": "relevant"}}}
    (tmp_path / "script.json").write_text(json.dumps({"fused": [json.dumps(yes)]}))
    edit(config, "base_url", 'mode = "fused"\nbase_url')
    edit(config, "components = 3", "components = 1")
    result = invoke("find", config, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert "fails the control 'plain background': it says relevant" in " ".join(result.stderr.split())
    metrics = json.loads(result.stdout)
    assert [control["passed"] for control in metrics["critic"]["controls"]] == [False, False]
    assert metrics["critic"]["mode"] == "fused" and list(metrics["critic"]["prompts"]) == ["fused"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The critic fails the control “blank image”" in page and metrics["critic"]["prompts"]["fused"] in page
    scored = json.loads(invoke("score", tmp_path / "run", "--json").stdout)
    assert scored["critic"]["controls"] == metrics["critic"]["controls"] and scored["critic"]["prompts"] == metrics["critic"]["prompts"]
