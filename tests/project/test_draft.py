"""`init`: what is read off a folder, what waits for a person, and that nothing is written over."""

from __future__ import annotations

import tomllib

import pytest
import safetensors.torch
import torch
from PIL import Image

from rightreasons.config import UNFILLED, parse_config, read_config
from rightreasons.networks.guess import COMMON
from tests.support.helpers import invoke, the_error, write_project

EVIL = 'a"]\n[critic]\nlvlm = "openai:evil'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The pictures of a project, in class folders and without splits; the current folder is the project's."""
    write_project(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill_in(path) -> None:
    path.write_text(path.read_text().replace(UNFILLED, "The bright bar near the bottom"))


def test_what_is_found_is_written_and_what_is_missing_is_named(folder):
    result = invoke("init", "images")
    assert result.exit_code == 0 and "(2 places)" in result.stdout and "rightreasons find images.toml" in result.stdout
    text = (folder / "images.toml").read_text()
    assert "# train: " in text and "bolt " in text and "# sizes: 16x16 (80)" in text and 'path = "images"' in text
    error = the_error(invoke("find", "images.toml"))
    assert "classes.bolt.description is not filled in yet: write what in the picture shows that it is 'bolt'" in error
    assert "classes.nut.description is not filled in yet" in error
    assert not (folder / "runs").exists()
    fill_in(folder / "images.toml")
    config = read_config(folder / "images.toml")
    assert config.model.source == "packaged:efficientnet-lite0" and config.data.mode == "rgb" and list(config.classes) == ["bolt", "nut"]


def test_nothing_is_written_over_without_being_told(folder):
    (folder / "images.toml").write_text("mine")
    assert "is there already" in the_error(invoke("init", "images")) and (folder / "images.toml").read_text() == "mine"
    assert invoke("init", "images", "--force").exit_code == 0 and "mine" not in (folder / "images.toml").read_text()
    (folder / "below").mkdir()
    assert invoke("init", "images", "--out", "below/other.toml").exit_code == 0
    assert 'path = "../images"' in (folder / "below" / "other.toml").read_text()


def test_bad_input_is_refused(folder):
    for arguments, words in (
        (("nowhere",), "does not exist"),
        (("solar",), "is a built-in task"),
        (("parts.toml",), "is a configuration already"),
        (("images", "--out", "config.yaml"), "ends in .toml"),
        (("images", "--out", "absent/config.toml"), "does not exist"),
        (("images", "--checkpoint", "images/bolt/00.png"), "is not a file that torch or safetensors saved"),
    ):
        assert words in the_error(invoke("init", *arguments)), arguments
    assert not list(folder.glob("images.*"))


def test_a_missing_configuration_says_what_to_do(folder):
    assert "`rightreasons init FOLDER --out absent.toml`" in the_error(invoke("find", "absent.toml"))
    assert "`rightreasons init images`" in the_error(invoke("find", "images"))


def test_weights_beside_the_folder_are_told_apart(folder):
    """A checkpoint of no common network leaves the source to a person; two files are not guessed between; what is no checkpoint is left out."""
    safetensors.torch.save_file({"own.weight": torch.zeros(2, 3)}, folder / "one.safetensors")
    assert "fits no common network" in invoke("init", "images").stdout
    tables = tomllib.loads((folder / "images.toml").read_text())
    assert tables["model"]["checkpoint"] == "one.safetensors"
    assert "model.source is not filled in yet: write the network that one.safetensors belongs to" in the_error(invoke("find", "images.toml"))
    (folder / "two.pth").write_bytes(b"x")
    assert "2 files may be" in invoke("init", "images", "--force").stdout
    (folder / "one.safetensors").unlink()
    assert "two.pth is no checkpoint that can be used" in invoke("init", "images", "--force").stdout


def test_a_checkpoint_s_network_is_guessed(folder):
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.mobilenet_v3_small(num_classes=2)
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}, "epoch": 3}, folder / "best.ckpt")
    assert invoke("init", "images").exit_code == 0
    tables = tomllib.loads((folder / "images.toml").read_text())
    assert tables["model"] == {"source": "torchvision:mobilenet_v3_small", "checkpoint": "best.ckpt"}
    names = [name for family in COMMON.values() for name in family]
    assert len(set(names)) == len(names) and set(names) <= set(torchvision.models.list_models())


def test_injection_of_toml_by_the_name_of_a_class(folder):
    """A folder's name with quotation marks and line ends stays a name."""
    for name in (EVIL, "# comment"):
        place = folder / "odd" / name
        place.mkdir(parents=True)
        for shade in range(12):
            Image.new("RGB", (20, 16 + shade), (shade, 0, 0)).save(place / f"{shade}.png")
    assert invoke("init", "odd").exit_code == 0
    fill_in(folder / "odd.toml")
    tables = tomllib.loads((folder / "odd.toml").read_text())
    assert tables["critic"]["lvlm"] == "openai:qwen2.5-vl" and len(tables["classes"]) == 2
    assert parse_config(tables, source="odd.toml").classes.keys() == tables["classes"].keys()
