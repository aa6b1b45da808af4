"""The group of commands `lvlm`: their help, and the probe."""

from __future__ import annotations

import json

import pytest

from tests.support.fault_server import FaultServer
from tests.support.helpers import invoke, the_error, write_project, write_scripted


@pytest.mark.parametrize("name", ["probe", "estimate", "export", "import"])
def test_every_command_has_an_example(name):
    shown = " ".join(invoke("lvlm", name, "--help").output.split())
    assert f"Example: rightreasons lvlm {name}" in shown and "--json" in shown


def test_find_shows_its_options():
    shown = " ".join(invoke("find", "--help").output.split())
    assert "--max-usd" in shown and "--dry-run" in shown


def test_a_configuration_that_is_not_there(tmp_path):
    assert "cannot read the configuration" in the_error(invoke("lvlm", "estimate", tmp_path / "absent.toml"))


def test_a_budget_below_zero_is_refused(tmp_path):
    assert invoke("find", tmp_path / "x.toml", "--max-usd", "-1").exit_code == 2


def test_a_free_critic_is_within_any_budget(tmp_path):
    assert invoke("find", write_scripted(tmp_path), "--out", tmp_path / "run", "--max-usd", "0").exit_code == 0


def test_probe(tmp_path):
    with FaultServer() as stub:
        config = write_project(tmp_path, stub.base_url)
        found = json.loads(invoke("lvlm", "probe", config, "--json").stdout)
        shown = invoke("lvlm", "probe", config)
    assert set(found) == {"openai:stub"} and {"answers", "pictures", "json_schema", "seconds"} <= set(found["openai:stub"])
    assert shown.exit_code == 0 and "json_schema" in shown.stdout


def test_probe_needs_leave(tmp_path):
    assert "--allow-remote llm.example" in the_error(invoke("lvlm", "probe", write_project(tmp_path, "https://llm.example/v1")))
