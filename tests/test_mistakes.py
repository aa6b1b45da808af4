"""What people get wrong: each mistake is one clear error, before any long work starts."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from rightreasons.cli import app
from tests.openai_stub import OpenAIStub, completion
from tests.plates import write_folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(root, config, *expected, out="run"):
    """Exit code 1, one error on standard error with these words, and no stage's result on disk."""
    result = invoke("find", config, "--out", root / out)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for words in expected:
        assert words in result.stderr, result.stderr
    assert not list((root / out).glob("selection.json"))


@pytest.fixture
def folder(tmp_path):
    with OpenAIStub() as stub:
        yield tmp_path, write_folder(tmp_path, stub.base_url, count=20), stub


def edit(config, old, new):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def test_missing_folder(folder):
    root, config, _ = folder
    edit(config, 'path = "images"', 'path = "nowhere"')
    fails(root, config, "nowhere", "does not exist", "decoy-mnist")


def test_a_file_in_place_of_a_folder(folder):
    root, config, _ = folder
    edit(config, 'path = "images"', 'path = "plate_model.py"')
    fails(root, config, "is a file")


def test_folder_without_classes(folder):
    root, config, _ = folder
    (root / "empty").mkdir()
    edit(config, 'path = "images"', 'path = "empty"')
    fails(root, config, "0 class folder(s)", "at least two")


def test_class_without_a_description(folder):
    root, config, _ = folder
    edit(config, "[classes.bright]", "[classes.bryght]")
    fails(root, config, "no description for class 'bright'", "[classes.bright]")


def test_description_of_a_class_that_does_not_exist(folder):
    root, config, _ = folder
    config.write_text(config.read_text() + '\n[classes.rusty]\ndescription = "Brown."\n')
    fails(root, config, "'rusty'", "'bright', 'dark'")


def test_description_with_neither_half(folder):
    root, config, _ = folder
    edit(config, 'description = "Light metal."', "")
    fails(root, config, "classes.bright", "description")


def test_model_of_another_width(folder):
    root, config, _ = folder
    edit(config, "plate_model:build", "plate_model:three")
    (root / "plate_model.py").write_text((root / "plate_model.py").read_text() + "\n\ndef three():\n    return build(3)\n")
    fails(root, config, "3 outputs", "2 classes")


def test_checkpoint_of_another_network(folder):
    root, config, _ = folder
    torch.save({"0.weight": torch.zeros(2, 2)}, root / "other.pt")
    edit(config, "epochs = 8", 'epochs = 8\ncheckpoint = "other.pt"')
    fails(root, config, "does not fit")


def test_checkpoint_that_would_run_code(folder):
    root, config, _ = folder
    marker = root / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    torch.save(Evil(), root / "evil.pt")
    edit(config, "epochs = 8", 'epochs = 8\ncheckpoint = "evil.pt"')
    fails(root, config, "not a plain state dict")
    assert not marker.exists()


def test_images_of_mixed_size(folder):
    root, config, _ = folder
    Image.new("RGB", (30, 24)).save(root / "images/train/dark/0.png")
    fails(root, config, "mixed size", "24x24", "30x24", "[data] size")


def test_images_of_mixed_mode(folder):
    root, config, _ = folder
    Image.new("L", (24, 24)).save(root / "images/train/dark/0.png")
    fails(root, config, "mixed or unusual mode", "grey", "[data] mode")


def test_size_and_mode_bring_mixed_images_together(folder):
    root, config, _ = folder
    Image.new("L", (30, 20)).save(root / "images/train/dark/0.png")
    edit(config, 'path = "images"', 'path = "images"\nsize = 24\nmode = "rgb"')
    assert invoke("find", config, "--out", root / "run").exit_code == 0


def test_corrupt_files_are_named_skipped_and_counted(folder):
    root, config, _ = folder
    whole = (root / "images/train/dark/0.png").read_bytes()
    (root / "images/train/dark/0.png").write_bytes(whole[: len(whole) // 2])
    (root / "images/train/bright/1.png").write_text("not a picture")
    result = invoke("find", config, "--out", root / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["skipped_images"] == 2
    notes = re.sub(r"\s+", "", result.stderr)
    assert "train/dark/0.png" in notes and "train/bright/1.png" in notes


def test_alignment_set_larger_than_the_data(folder):
    root, config, _ = folder
    edit(config, "size = 12", "size = 1000")
    result = invoke("find", config, "--out", root / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["selection"]["size"] == 40
    assert "size = 1000 is more than the 40 training images" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("size = 12", "sise = 12", ("unknown key 'sample.sise'", "did you mean 'size'")),
        ("[sample]", "[smaple]", ("unknown key 'smaple'", "sample")),
        ("size = 12", "size = 0", ("sample.size = 0", "greater than or equal to 1")),
        ("size = 12", 'size = "many"', ("sample.size = 'many'", "integer")),
        ("[sample]", "[sample]\nstrategy = 'clever'", ("sample.strategy = 'clever'", "low-entropy")),
        ('lvlm = "openai:stub"', "", ("critic.lvlm", "missing")),
        ('lvlm = "openai:stub"', 'lvlm = "magic:x"', ("magic:x", "openai:MODEL")),
        ('lvlm = "openai:stub"', 'lvlm = "simulated:"', ("ground-truth masks", "openai:MODEL")),
        ("python:plate_model:build", "keras:x", ("keras:x", "python:module:function")),
        ("[critic]", "[critic", ("not valid TOML",)),
    ],
)
def test_configuration_mistakes(folder, old, new, expected):
    root, config, _ = folder
    edit(config, old, new)
    fails(root, config, *expected)


def test_no_configuration_at_all(tmp_path):
    fails(tmp_path, tmp_path / "none.toml", "cannot read the configuration", "No such file")


def test_server_that_is_down(tmp_path):
    config = write_folder(tmp_path, "http://127.0.0.1:9/v1", count=20)
    fails(tmp_path, config, "no LVLM server answers at http://127.0.0.1:9/v1", "base_url")
    assert not (tmp_path / "run").exists(), "not even the model was trained"


def test_remote_host_without_leave(tmp_path):
    config = write_folder(tmp_path, "https://api.example.com/v1", count=20)
    fails(tmp_path, config, "--allow-remote api.example.com", "would be sent")


def always(content, status=200, kind="application/json"):
    return lambda number, body: (status, {"content-type": kind}, content.encode())


@pytest.mark.parametrize("answer", ["I like trains.", '{"S99": "spurious"}', "S99: It covers the plate."])
def test_server_that_answers_garbage(tmp_path, answer):
    """Nothing of it becomes a verdict; the run says so at its end, with everything saved."""
    with OpenAIStub(misbehave=always(json.dumps(completion(answer)))) as stub:
        config = write_folder(tmp_path, stub.base_url, count=20)
        result = invoke("find", config, "--out", tmp_path / "run")
        asked = stub.requests
        invoke("find", config, "--out", tmp_path / "run")
        assert stub.requests == asked, "garbage was paid for as well, and is not asked for again"
    assert result.exit_code == 1
    assert "no usable verdict" in result.stderr
    verdicts = [json.loads(line) for line in (tmp_path / "run/verdicts.jsonl").read_text().splitlines()]
    assert {verdict["value"] for verdict in verdicts} == {"unsure"}
    assert all(verdict["problem"].startswith("malformed") for verdict in verdicts)


def test_judge_that_names_segments_that_do_not_exist(tmp_path):
    def misbehave(number, body):
        pictures = any(part["type"] == "image_url" for part in body["messages"][0]["content"])
        return None if pictures else always(json.dumps(completion('{"S1": "spurious", "S77": "spurious"}')))(number, body)

    with OpenAIStub(misbehave=misbehave) as stub:
        config = write_folder(tmp_path, stub.base_url, count=20)
        result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "segments that do not exist: S77" in result.stderr


def test_server_of_another_kind(tmp_path):
    with OpenAIStub(misbehave=always("<html>hello</html>", kind="text/html")) as stub:
        config = write_folder(tmp_path, stub.base_url, count=20)
        result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "not as an OpenAI-compatible server does" in result.stderr
    assert stub.requests <= 8, "at most what was under way, twice"


def test_run_folder_made_with_another_configuration(folder):
    root, config, _ = folder
    assert invoke("find", config, "--out", root / "run").exit_code == 0
    edit(config, "size = 12", "size = 13")
    result = invoke("find", config, "--out", root / "run")
    assert result.exit_code == 1 and "sample.size was 12 and is now 13" in result.stderr


def test_run_folder_made_from_other_data(folder):
    root, config, _ = folder
    assert invoke("find", config, "--out", root / "run").exit_code == 0
    shutil.copy(root / "images/train/dark/0.png", root / "images/train/dark/new.png")
    result = invoke("find", config, "--out", root / "run")
    assert result.exit_code == 1 and "other data" in result.stderr


def test_somebody_elses_folder(folder):
    root, config, _ = folder
    fails(root, config, "not empty and not a run folder", out="images")


def test_fix_before_find(tmp_path):
    (tmp_path / "run").mkdir()
    result = invoke("fix", tmp_path / "run")
    assert result.exit_code == 1 and "not a run folder" in result.stderr


def test_two_commands_on_one_folder(folder):
    from rightreasons.runs import RunFolder

    root, config, _ = folder
    assert invoke("find", config, "--out", root / "run").exit_code == 0
    with RunFolder(root / "run").locked():
        result = invoke("find", config, "--out", root / "run")
    assert result.exit_code == 1 and "another process is working on" in result.stderr
