"""find and fix in two processes of torchrun, on gloo: the same results as in one, one clear error, and a kill that loses nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from rightreasons.errors import MissingExtra
from rightreasons.networks import team
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.records import Drawing
from rightreasons.runs.appended import now
from rightreasons.runs.drawings import add_drawings
from rightreasons.runs.folder import RunFolder
from tests.support.fault_server import FaultServer
from tests.support.helpers import SIDE, TAG, children, edit, environment, invoke, pictures, write_scripted
from tests.support.together import invoke_alone, run_together

MODULE = """
from torch import nn


def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16 * 16, classes),
    )
"""
# An odd number of images in a batch, which two processes cannot share evenly; and the last batch is a short one.
CHANGES = {"baselines = 4": "baselines = 4\nchunk = 3", "epochs = 3\nbatch_size = 16": "epochs = 1\nbatch_size = 15"}


def command(*arguments: object, size: int, folder, code: int = 0) -> str:
    """What the processes of a command have written; all end with ``code``."""
    ended = run_together(call, [str(argument) for argument in arguments], size=size, folder=folder)
    output = "".join(part.output for part in ended)
    assert [part.code for part in ended] == [code] * size and "Traceback" not in output, output[-4000:]
    return output


def call(arguments):
    """The command, which loads Accelerate under torchrun alone."""
    try:
        invoke_alone(*arguments, batch=9)
    finally:
        assert ("accelerate" in sys.modules) == ("TORCHELASTIC_RUN_ID" in os.environ and arguments[0] != "score")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a network of convolutions and BatchNorm that goes by the tag."""
    root = tmp_path_factory.mktemp("distributed")
    write_scripted(root, changes=CHANGES)
    (root / "tag_model.py").write_text(MODULE)
    space: dict = {}
    exec(MODULE, space)
    arrays = pictures()
    images = torch.stack([torch.tensor(array).permute(2, 0, 1) / 255 for name in ("bolt", "nut") for array in arrays[name]])
    images[:, :, TAG[0].stop :], images[:, :, :, TAG[1].stop :] = 0.35, 0.35  # only the tag can be learnt
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space["build"](2)
    train_plainly(network, torch.utils.data.TensorDataset(images, torch.arange(80) // 40), recipe=Recipe(12, 1e-2), batch_size=16, seed=0)
    safetensors.torch.save_file(network.state_dict(), root / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def found(project):
    """The run folders of find in one process, and in two."""
    for size in (1, 2):
        command("find", project / "parts.toml", "--out", project / f"find-{size}", size=size, folder=project)
    return project / "find-1", project / "find-2"


def tensors(path):
    return safetensors.torch.load_file(path)


def test_two_processes_find_the_same_bit_for_bit(found):
    one, two = found
    for name in ("selection.json", "answers.json", "verdicts.jsonl", "manifest.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for name in ("heatmaps", "segments"):
        parts = [tensors(folder / f"{name}.safetensors") for folder in found]
        assert all(parts[0][key].equal(parts[1][key]) for key in parts[0]), name
    assert json.loads((one / "metrics.json").read_text())["before"] == json.loads((two / "metrics.json").read_text())["before"]


def test_two_processes_fix_to_the_same_weights(found, project):
    """A person has marked the tags, so that the probe can learn them and all processes score the other images."""
    selection, tag = RunFolder(found[0]).load_selection(), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    tag[TAG] = True
    marked = [
        Drawing(index, tag if label == 0 else torch.zeros_like(tag), ~tag if label == 0 else torch.ones_like(tag), "Ann", now())
        for index, label in zip(selection.indices.tolist(), selection.labels.tolist(), strict=True)
    ]
    for size in (1, 2):
        shutil.copytree(found[0], project / f"fix-{size}")
        add_drawings(RunFolder(project / f"fix-{size}"), marked)
        command("fix", project / f"fix-{size}", size=size, folder=project)
    stored = [json.loads((project / f"fix-{size}" / "alignment.json").read_text())["result"] for size in (1, 2)]
    assert stored[0] == stored[1] and stored[0]["spread"]["found"] > 0
    before = tensors(project / "model.safetensors")
    one, two = (tensors(project / f"fix-{size}" / "aligned.safetensors") for size in (1, 2))
    assert not one["3.weight"].equal(before["3.weight"]) and one["1.running_mean"].equal(before["1.running_mean"])
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_one_killed_process_ends_the_command_and_one_process_goes_on(found, project):
    """torchrun itself. The helper is killed while the main process asks, and afterwards nothing is asked twice."""
    config, out = project / "asking.toml", project / "killed"
    with FaultServer(delay=0.1) as stub:
        server = f'lvlm = "openai:stub"\nbase_url = "{stub.base_url}"'
        config.write_text(re.sub(r"lvlm = .*\nbase_url = .*", server, (project / "parts.toml").read_text()))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rightreasons"]
        process = subprocess.Popen([*launch, "find", str(config), "--out", str(out)], env=environment(), stderr=subprocess.PIPE, text=True)
        stub.wait_for(5, alive=lambda: process.poll() is None)
        os.kill(helper_of(process), signal.SIGKILL)
        _, told = process.communicate(timeout=120)
        assert process.returncode != 0 and "Signal 9" in told, told
        assert not (out / "verdicts.jsonl").exists(), "the kill came too late to test anything"
        stub.delay = 0.0
        result = invoke("find", config, "--out", out)
        assert result.exit_code == 0, result.stderr
        assert max(stub.bodies.values()) == 1, "a request was repeated"
    assert all(verdict.problem is None for verdict in RunFolder(out).load_verdicts())
    for name in ("selection.json", "segments.safetensors"):
        assert (found[0] / name).read_bytes() == (out / name).read_bytes(), name


def helper_of(process) -> int:
    """The number of torchrun's process whose rank is 1."""
    for number in children(process):
        with open(f"/proc/{number}/environ", "rb") as file:
            if b"RANK=1" in file.read().split(b"\0"):
                return number
    raise AssertionError("torchrun has no helper")


def test_an_error_of_all_is_told_once(project):
    edit(project / "parts.toml", "[run]", "[run]\nseeds = 1")
    try:
        told = command("find", project / "parts.toml", "--out", project / "wrong", size=2, folder=project, code=1)
    finally:
        edit(project / "parts.toml", "[run]\nseeds = 1", "[run]")
    assert told.count("error:") == 1 and "unknown key 'run.seeds'" in told and "process 1" not in told


def fail_in_helper(arguments):
    """The network of the helper alone fails at the heatmaps."""
    from rightreasons.errors import ModelError
    from rightreasons.explain import evidence

    def refuse(*_, **__):
        raise ModelError("its disk is full of holes")

    if os.environ["RANK"] == "1":
        evidence.attribute_images = refuse
    call(arguments)


def test_an_error_of_one_ends_all_and_is_told_once(project):
    ended = run_together(fail_in_helper, ["find", str(project / "parts.toml"), "--out", str(project / "holes")], size=2, folder=project)
    output = "".join(part.output for part in ended)
    assert [part.code for part in ended] == [1, 1] and "Traceback" not in output, output
    assert output.count("error:") == 1 and "error: process 1 of 2 on " in output and "its disk is full of holes" in output


def test_a_helper_with_other_images_is_refused(project, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(project / "images", other / "images")
    for name in ("parts.toml", "tag_model.py", "model.safetensors"):
        shutil.copy(project / name, other / name)
    next((other / "images").rglob("*.png")).unlink()
    ended = run_together(find_by_rank, [str(project), str(other)], str(tmp_path / "run"), size=2, folder=tmp_path)
    output = "".join(part.output for part in ended)
    assert [part.code for part in ended] == [1, 1] and "process 1 of 2" in output and "every machine needs the same files" in output, output


def find_by_rank(roots, out):
    call(["find", f"{roots[int(os.environ['RANK'])]}/parts.toml", "--out", out])


def test_other_commands_are_the_work_of_one_process(tmp_path):
    told = command("score", tmp_path, size=2, folder=tmp_path, code=1)
    assert told.count("error:") == 1 and "score is the work of one process: start it without torchrun" in told


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"'accelerate'.*rightreasons\[distributed\]"), team.joined():
        pytest.fail("it joined")
