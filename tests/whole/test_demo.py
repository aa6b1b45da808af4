"""The demo keeps its promise, and the page it writes opens in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

from tests.support.helpers import run_in_turn

# Long computations in torch, whose lines other tests cover: measuring them again costs a third of their time.
pytestmark = pytest.mark.no_cover


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Its folder, its metrics, and what the same command prints for people afterwards."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    metrics, shown = run_in_turn(["demo", "--out", folder, "--json"], ["demo", "--out", folder])
    return folder, json.loads(metrics), shown


def test_the_shortcut_is_found_and_removed(demo):
    _, metrics, _ = demo
    before, after, clean = metrics["before"], metrics["after"], metrics["reference"]["without-shortcut"]
    assert metrics["outcome"] == "shortcut found" and metrics["critic"]["simulated"]
    assert before["accuracy"] < 0.75 and after["accuracy"] > clean["accuracy"] - 0.03
    assert after["mu_align"] > 0.98 > before["mu_align"]
    assert after["swap_flip_rate"] < 0.05 < before["swap_flip_rate"]
    assert metrics["completeness_error"] < 1e-4


def test_the_table_for_people(demo):
    """The same command goes on where it was: nothing is trained again, what the repair is compared with included."""
    folder, metrics, shown = demo
    again = json.loads((folder / "metrics.json").read_text())
    assert again["after"] == metrics["after"] and again["reference"] == metrics["reference"]
    assert again["seconds"]["train"] == metrics["seconds"]["train"] and again["seconds"]["align"] == metrics["seconds"]["align"]
    for words in ("before", "after", "ground-truth-masks", "without-shortcut", "report.html", "simulated", "openai:MODEL"):
        assert words in re.sub(r"\s+", " ", shown) or words in re.sub(r"\W", "", shown), words


def test_harmless_on_digits_without_a_patch(tmp_path):
    """Even a critic that is wrong on 13 % of the segments costs at most half a point."""
    wrong, right = tmp_path / "wrong.toml", tmp_path / "right.toml"
    wrong.write_text('[data]\npath = "decoy-mnist:packaged:without-patch"\n[critic]\nlvlm = "simulated:0.87"\n')
    # The same classifier, which need not be trained twice.
    right.write_text(wrong.read_text().replace("0.87", "") + f'[model]\ncheckpoint = "{tmp_path / "run" / "model.safetensors"}"\n')
    runs = ["--out", tmp_path / "run", "--json"], ["--out", tmp_path / "other", "--json"]
    _, metrics, found, fixed = map(
        json.loads,
        run_in_turn(["find", wrong, *runs[0]], ["fix", tmp_path / "run", "--json"], ["find", right, *runs[1]], ["fix", tmp_path / "other", "--json"]),
    )
    assert metrics["after"]["accuracy"] >= metrics["before"]["accuracy"] - 0.005
    assert found["outcome"] == "no shortcut found" and found["before"]["accuracy"] == metrics["before"]["accuracy"]
    assert fixed["alignment"]["outcome"] == "nothing to change" and fixed["after"] == fixed["before"]


def test_the_report_in_a_browser(demo, tmp_path):
    """Chromium, without any network, draws the page with pictures in it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    folder, *_ = demo
    picture = tmp_path / "report.png"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", "--window-size=1200,2400", (folder / "report.html").as_uri()]
    subprocess.run([chromium, *quiet, *where], check=True, capture_output=True, timeout=120)
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 200, "a page with heatmaps has many colours"
