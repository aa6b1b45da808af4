"""What stands before every command, and the device that commands work on."""

from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

import rightreasons as rr
from rightreasons.cli import app
from rightreasons.common.device import DEVICE, best_device
from rightreasons.errors import ConfigError


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output == f"rightreasons {version('rightreasons')}\n"
    assert rr.__version__ == version("rightreasons")


def test_the_public_names_can_be_completed_in_a_notebook():
    assert {*rr.__all__, "__version__"} <= set(dir(rr))


def test_completion_can_be_installed():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def test_the_device_that_is_named(monkeypatch):
    monkeypatch.setenv(DEVICE, "cpu")
    assert best_device() == torch.device("cpu")
    monkeypatch.setenv(DEVICE, "meta")  # stands in for a second accelerator: torch always has it
    assert best_device() == torch.device("meta")


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "cpu:x"])
def test_a_device_that_is_not_there_is_one_clear_error(monkeypatch, name):
    monkeypatch.setenv(DEVICE, name)
    with pytest.raises(ConfigError, match=rf"the device '{name}' cannot be used: .*[^.]\. Give another --device, such as cpu"):
        best_device()


def test_the_option_is_one_clear_error_too(monkeypatch, tmp_path):
    monkeypatch.setenv(DEVICE, "cpu")  # put back afterwards
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "run"), "--device", "gpu"])
    assert result.exit_code == 1 and "the device 'gpu' cannot be used" in result.stderr
