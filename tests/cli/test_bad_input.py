"""Bad input to the commands: one clear error that names what came, exit code 1 and no traceback; what can be left out is named and counted.

Here belongs what any part of a project can get wrong (configuration, checkpoint, server, run folder) and a broken image as `find` tells it. A mistake
in a table of labels is a case of tests/data/test_label_mistakes.py; an odd file that must be read or left out one of
tests/data/test_messy_folder.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from PIL import Image

from tests.support.fault_server import FaultServer, always, html, says, wrong_ids
from tests.support.helpers import edit, invoke, read_lines, run, start, the_error, trained_weights, write_project, write_scripted

STAGES = ("selection.json", "heatmaps.safetensors", "segments.safetensors", "pictures", "verdicts.jsonl")
DESCRIPTION = 'description = "The bright disc at the right."'


@pytest.fixture(scope="module")
def server():
    with FaultServer() as stub:
        yield stub


@pytest.fixture
def parts(tmp_path, server):
    return write_project(tmp_path, server.base_url)


@pytest.fixture
def offline(tmp_path):
    return write_scripted(tmp_path)


def find(config, *more):
    return invoke("find", config, "--out", config.parent / "run", *more)


def refused(config, *expected):
    """``find`` fails before any stage, with one error that has all these words."""
    said = the_error(find(config))
    for words in expected:
        assert words in said
    assert not any((config.parent / "run" / stage).exists() for stage in STAGES), "long work was begun"


def image(config, name):
    return config.parent / "images" / name


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('path = "images"', 'path = "imges"', ["imges", "does not exist", "decoy-mnist"]),
        ('path = "images"', 'path = "tag_model.py"', ["tag_model.py", "is a file", "folder"]),
        ('path = "images"', 'path = "images/bolt"', ["images/bolt", "0 class folder", "at least two"]),
        ('path = "images"', f'path = "{"x" * 300}"', ["[data] path"]),
        ('path = "images"', 'path = "decoy-mnist:packged"', ["packged", "packaged"]),
        ('path = "images"', "path = 3", ["data.path = 3", "string"]),
        ("[classes.nut]\n" + DESCRIPTION, "", ["without a description", "'nut'", "[classes.nut]"]),
        ("[classes.nut]", "[classes.screw]\n" + DESCRIPTION + "\n[classes.nut]", ["'screw'", "'bolt', 'nut'"]),
        (DESCRIPTION, "description = ' '", ["classes.nut", "neither"]),
        ('tag_model:build"\ncheckpoint = "model.safetensors"', 'tag_model:three"', ["3 outputs", "2 classes", "bolt, nut"]),
        ("tag_model:build", "tag_model:absent", ["tag_model:absent", "absent"]),
        ("tag_model:build", "no_such_module:build", ["no_such_module"]),
        ("python:tag_model:build", "resnet50", ["resnet50", "torchvision:NAME"]),
        ("model.safetensors", "absent.safetensors", ["absent.safetensors"]),
        ("[sample]\nsize", "[sample]\nsise", ["sample.sise", "did you mean 'size'"]),
        ("[segment]", "[segmnet]", ["segmnet", "did you mean 'segment'"]),
        (DESCRIPTION, DESCRIPTION.replace("description", "descripton"), ["classes.nut.descripton", "did you mean 'description'"]),
        ("size = 12", "size = 0", ["sample.size = 0", "greater than or equal to 1"]),
        ("size = 12", 'size = "twelve"', ["sample.size = 'twelve'", "integer"]),
        ("size = 12", 'size = 12\nper_class = "of"', ["sample.per_class = 'of'", "auto"]),
        ("epochs = 3", "epochs = 2.5", ["align.epochs = 2.5", "integer"]),
        ("batch_size = 16", "batch_size = 16\nlearning_rate = inf", ["align.learning_rate", "finite"]),
        ('lvlm = "openai:stub"', 'lvlm = "opnai:stub"', ["opnai:stub", "openai:MODEL"]),
        ('lvlm = "openai:stub"', 'lvlm = "openai:"', ["nothing after the colon"]),
        ('lvlm = "openai:stub"', 'lvlm = "simulated:"', ["ground-truth masks"]),
        ("[run]", "[run", ["TOML"]),
    ],
)
def test_what_a_configuration_can_get_wrong(parts, old, new, expected):
    edit(parts, old, new)
    refused(parts, *expected)


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1/v1", "127.0.0.1:8000", "http://", "http://[::1/v1", "http://127.0.0.1:port/v1", "http://127.0.0.1:99999/v1"]
)
def test_an_address_that_is_none(parts, server, address):
    edit(parts, server.base_url, address)
    refused(parts, address)


def test_class_names_that_look_like_types_are_named_in_full(parts):
    edit(parts, "[classes.nut]", "[classes.interior]\ndescripton = 'The inside.'\n[classes.nut]")
    refused(parts, "classes.interior.descripton")


def test_examples_are_read_before_a_model_is_trained(parts):
    edit(parts, 'checkpoint = "model.safetensors"', "epochs = 1")
    edit(parts, 'lvlm = "openai:stub"', 'lvlm = "openai:stub"\nexamples = "absent.toml"')
    refused(parts, "absent.toml")
    assert not (parts.parent / "run" / "model.safetensors").exists()


def test_a_configuration_that_is_missing_or_no_text(tmp_path):
    refused(tmp_path / "absent.toml", "absent.toml", "there is no such file", "rightreasons init")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    refused(tmp_path / "binary.toml", "binary.toml")
    refused(tmp_path, str(tmp_path))


def test_a_configuration_in_a_process_of_its_own(tmp_path):
    """The whole way once: exit code, standard error, nothing on standard output."""
    config = write_project(tmp_path, changes={'path = "images"': 'path = "elsewhere"'})
    result = run("find", config, "--out", tmp_path / "run", "--json", code=1)
    assert result.stdout == "" and result.stderr.count("error:") == 1 and "elsewhere" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_class_without_images(parts):
    shutil.rmtree(image(parts, "nut"))
    image(parts, "nut").mkdir()
    refused(parts, "nut")


def test_images_of_mixed_size(parts):
    Image.new("RGB", (20, 16)).save(image(parts, "nut/07.png"))
    refused(parts, "mixed size", "16x16 (79 files", "20x16 (1 files", "nut/07.png", "[data] size")


def test_images_of_mixed_mode_are_read_in_colour(offline):
    Image.new("L", (16, 16)).save(image(offline, "nut/07.png"))
    result = find(offline)
    assert result.exit_code == 0 and "1 of 80 images are grey" in result.stderr


def test_images_whose_size_the_model_does_not_fit(parts):
    edit(parts, 'path = "images"', 'path = "images"\nsize = 24')
    refused(parts, "the model fails on images of shape (15, 3, 24, 24)")


def test_mixed_images_can_be_converted(offline):
    Image.new("L", (20, 18)).save(image(offline, "nut/07.png"))
    edit(offline, 'path = "images"', 'path = "images"\nsize = 16\nmode = "rgb"')
    assert find(offline).exit_code == 0


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def left_out(result, *names):
    """The run went on without these files, and named and counted them."""
    assert result.exit_code == 0, result.output
    stderr = re.sub(r"\s+", " ", result.stderr)
    for name in names:
        assert re.search(rf"left out \S*{re.escape(name)}", stderr), f"{name} is not named:\n{result.stderr}"
    assert json.loads(result.stdout)["skipped_images"] == len(names)


def test_corrupt_files_are_named_and_left_out(tmp_path):
    config = write_scripted(tmp_path, splits=True)
    truncate(image(config, "train/bolt/04.png"))
    image(config, "train/nut/05.png").write_text("this is no picture")
    image(config, "train/nut/08.png").write_bytes(b"")
    left_out(find(config, "--json"), "train/bolt/04.png", "train/nut/05.png", "train/nut/08.png")


def test_corrupt_files_outside_the_training_split_are_named_as_well(tmp_path):
    config = write_scripted(tmp_path, splits=True)
    truncate(image(config, "test/bolt/03.png"))
    truncate(image(config, "validation/nut/02.png"))
    left_out(find(config, "--json"), "test/bolt/03.png", "validation/nut/02.png")


def test_the_first_files_may_be_the_corrupt_ones(tmp_path):
    config = write_scripted(tmp_path, splits=True)
    truncate(image(config, "train/bolt/00.png"))
    truncate(image(config, "train/bolt/01.png"))
    left_out(find(config, "--json"), "train/bolt/00.png", "train/bolt/01.png")


def test_nothing_but_corrupt_files(parts):
    for path in image(parts, "").rglob("*.png"):
        path.write_text("this is no picture")
    refused(parts, "none of 80 files is a readable image")


def test_more_images_wanted_than_there_are(tmp_path):
    config = write_scripted(tmp_path, splits=True, changes={"size = 12": "size = 5000"})
    result = find(config, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["selection"]["size"] == 40
    assert "5000 is more than the 40 training images" in re.sub(r"\s+", " ", result.stderr)


def test_a_checkpoint_that_does_not_fit(parts):
    torch.save({"1.weight": torch.zeros(16, 5), "1.bias": torch.zeros(16)}, parts.parent / "other.pt")
    edit(parts, "model.safetensors", "other.pt")
    refused(parts, "other.pt", "does not fit")


def test_a_checkpoint_with_code_is_not_run(parts):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(parts.parent / "code-has-run"),)

    torch.save({"1.weight": Code()}, parts.parent / "evil.pt")
    (parts.parent / "evil.pkl").write_bytes(pickle.dumps(Code()))
    shutil.copy(parts.parent / "evil.pkl", parts.parent / "evil.safetensors")
    last = "model.safetensors"
    for name in ("evil.pt", "evil.pkl", "evil.safetensors"):
        edit(parts, f'"{last}"', f'"{name}"')
        last = name
        refused(parts, name)
    assert not (parts.parent / "code-has-run").exists()


def test_a_checkpoint_that_holds_something_else(parts):
    torch.save([1, 2, 3], parts.parent / "list.pt")
    edit(parts, "model.safetensors", "list.pt")
    refused(parts, "list.pt", "state dict")


def test_a_checkpoint_of_nan(parts):
    torch.save({name: torch.full(shape, torch.nan) for name, shape in _SHAPES.items()}, parts.parent / "nan.pt")
    edit(parts, "model.safetensors", "nan.pt")
    refused(parts, "NaN")


_SHAPES = {"1.weight": (16, 768), "1.bias": (16,), "3.weight": (2, 16), "3.bias": (2,)}


def test_a_server_that_is_down(tmp_path):
    config = write_project(tmp_path, "http://127.0.0.1:9/v1", changes={'checkpoint = "model.safetensors"\n': "epochs = 100000\n"})
    refused(config, "http://127.0.0.1:9/v1", "base_url")
    assert not (tmp_path / "run").exists(), "not even a model was trained"


def test_a_server_that_speaks_something_else(tmp_path):
    with FaultServer(models=html(None)) as stub:
        refused(write_project(tmp_path, stub.base_url), stub.base_url, "not as an OpenAI-compatible server")
        assert stub.requests == 0


def test_a_server_that_wants_a_key(tmp_path):
    with FaultServer(models=always(401, "no key")(None)) as stub:
        refused(write_project(tmp_path, stub.base_url), "OPENAI_API_KEY")
        assert stub.requests == 0


def test_a_remote_host_without_leave(parts, server):
    edit(parts, server.base_url, "https://api.example.com/v1")
    refused(parts, "api.example.com", "--allow-remote api.example.com")


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [
        (says("bzzt \x00\x1b[31m {{{ </critique>"), "malformed"),
        (wrong_ids, "no paragraph names a segment"),
        (says(None), "empty answer"),
        (says(None, refusal="I can't help with that."), "refused: I can't help with that."),
    ],
)
def test_a_server_that_answers_garbage(tmp_path, misbehave, words):
    """Everything it said is kept, every segment is unsure with the reason, and that no verdict came of it is an error.

    Every other kind of garbage is a row of tests/lvlm/test_fault_table.py.
    """
    with FaultServer(misbehave=misbehave) as stub:
        config = write_project(tmp_path, stub.base_url, changes={"size = 12": "size = 4"})
        result = find(config)
        asked = stub.requests
        assert result.exit_code == 1 and result.stderr.count("error:") == 1, result.output
        assert "no usable verdict" in result.stderr and words in result.stderr
        lines = read_lines(tmp_path / "run" / "verdicts.jsonl")
        assert lines and all(line["value"] == "unsure" and line["problem"] for line in lines)
        assert find(config).exit_code == 1 and stub.requests == asked, "the same garbage is not paid for again"
    assert "\x1b" not in result.stderr, "a terminal obeys what it is sent"


def test_some_segments_that_do_not_exist(tmp_path):
    """One bad critique among good ones, the first after the controls, costs its own image and no other."""
    with FaultServer(misbehave=lambda seen: wrong_ids(seen) if seen.number == 5 or "S77" in seen.text else None) as stub:
        result = find(write_project(tmp_path, stub.base_url), "--json")
    assert result.exit_code == 0, result.output
    lines = read_lines(tmp_path / "run" / "verdicts.jsonl")
    bad = {line["index"] for line in lines if line["problem"]}
    assert len(bad) == 1 and {line["value"] for line in lines if line["index"] in bad} == {"unsure"}
    assert json.loads(result.stdout)["critic"]["unsure"] == sum(line["index"] in bad for line in lines)


def test_a_server_that_stops_taking_requests(tmp_path):
    """A rejection in the middle stops the run; what was answered is kept, and the same command goes on."""
    with FaultServer(misbehave=lambda seen: always(403, "quota")(seen) if seen.number == 6 else None) as stub:
        config = write_project(tmp_path, stub.base_url)
        assert "quota" in the_error_after_stages(find(config))
        stub.misbehave = None
        assert find(config).exit_code == 0
        assert stub.repeated == 1, "only the request that was rejected is sent again"


def the_error_after_stages(result) -> str:
    assert result.exit_code == 1 and result.stderr.count("error: ") == 1 and result.stdout == ""
    return result.stderr.split("error: ")[1]


def test_a_run_folder_of_another_configuration(offline):
    assert find(offline).exit_code == 0
    edit(offline, "components = 3", "components = 4")
    assert "segment.components was 3 and is now 4" in the_error(find(offline))


def test_a_run_folder_from_other_data_or_another_checkpoint(offline):
    assert find(offline).exit_code == 0
    shutil.copy(image(offline, "nut/07.png"), image(offline, "nut/more.png"))
    assert "the images are not those that" in the_error(find(offline))
    image(offline, "nut/more.png").unlink()
    torch.save({name: -weights for name, weights in trained_weights().items()}, offline.parent / "other.pt")
    edit(offline, "model.safetensors", "other.pt")
    assert "the checkpoint has other weights" in the_error(find(offline))


def test_a_folder_that_is_no_run_folder(offline):
    assert "is not empty and not a run folder" in the_error(invoke("find", offline, "--out", offline.parent / "images"))
    assert sorted(path.name for path in image(offline, "").iterdir()) == ["bolt", "nut"], "nothing was written there"
    assert str(offline) in the_error(invoke("find", offline, "--out", offline))
    for command in ("fix", "score"):
        assert "not a run folder" in the_error(invoke(command, offline.parent / "images"))
        assert "not a run folder" in the_error(invoke(command, offline.parent / "absent"))


def test_fix_before_find_has_finished(offline):
    assert find(offline).exit_code == 0
    (offline.parent / "run" / "verdicts.jsonl").unlink()
    assert "not finished" in the_error(invoke("fix", offline.parent / "run"))


def test_who_judged_stays_the_same_from_find_to_score(offline):
    """A scripted critic is no real one, whichever command says so."""
    found = find(offline, "--json")
    scored = invoke("score", offline.parent / "run", "--json")
    assert json.loads(scored.stdout)["critic"] == json.loads(found.stdout)["critic"]


@pytest.mark.parametrize("text", ["x = 1\n", "[[[", 'methods = ["before"]\n', 'methods = ["before"]\n[config]\ndata = 3\n'])
def test_a_study_that_is_none(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    assert "mine" in the_error(invoke("bench", tmp_path / "mine.toml", "--out", tmp_path / "out"))


def test_two_processes_on_one_run_folder(tmp_path):
    with FaultServer(delay=1.0) as stub:
        config = write_project(tmp_path, stub.base_url)
        process = start("find", config, "--out", tmp_path / "run")
        try:
            stub.wait_for(1, alive=lambda: process.poll() is None)
            assert "another process is working on" in the_error(find(config))
        finally:
            process.kill()
            process.wait()
