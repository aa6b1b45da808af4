"""A folder of small pictures with a bright tag in the top left corner of nearly all of one class, a network that was trained on them, and the
command line as people use it and as it is called in this process."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer import testing

from rightreasons.critic.case import Case
from rightreasons.records import ClassDescription, Pictures, Subject

# Typer would read the signatures of all commands anew for each command that is tried.
testing._get_command = functools.cache(testing._get_command)

SIDE = 16
TAG = (slice(0, 4), slice(0, 4))
MODULE = '''
from torch import nn


def build(classes):
    """Flat pixels in, logits out."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.ReLU(), nn.Linear(16, classes))


def three():
    return build(3)
'''
CONFIG = """
[data]
path = "images"
[model]
source = "python:tag_model:build"
checkpoint = "model.safetensors"
[classes.bolt]
description = "The bright bar near the bottom."
irrelevant = "A tag in a corner."
[classes.nut]
description = "The bright disc at the right."
[sample]
size = 12
[attribute]
baselines = 4
[segment]
components = 3
[critic]
lvlm = "openai:stub"
base_url = "BASE_URL"
[align]
epochs = 3
batch_size = 16
[run]
seed = 0
"""


def draw(random: np.random.Generator, *, bolt: bool, tag: bool) -> np.ndarray:
    """(height, width, 3) in 0 to 255: a faint bar or disc in noise, and perhaps a tag."""
    pixels = random.normal(90, 25, (SIDE, SIDE, 3))
    pixels[(slice(12, 14), slice(4, 13)) if bolt else (slice(5, 9), slice(11, 15))] += 45
    if tag:
        pixels[TAG] = (250, 240, 60)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@functools.cache
def pictures(count: int = 40) -> dict[str, list[np.ndarray]]:
    """By class; the tag is on 95 % of the bolts and 5 % of the nuts."""
    random = np.random.default_rng(3)
    return {name: [draw(random, bolt=name == "bolt", tag=(i % 20 != 0) == (name == "bolt")) for i in range(count)] for name in ("bolt", "nut")}


@functools.cache
def trained_weights() -> dict[str, torch.Tensor]:
    """Of the network in MODULE, trained on ``pictures`` in a second."""
    arrays = pictures()
    images = torch.tensor(np.array([*arrays["bolt"], *arrays["nut"]])).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([0] * len(arrays["bolt"]) + [1] * len(arrays["nut"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.state_dict()


def write_project(root: Path, base_url: str = "http://127.0.0.1:9/v1", *, splits: bool = False, changes: dict[str, str] | None = None) -> Path:
    """Images, network, checkpoint and configuration; the path of the configuration, with ``changes`` of its text."""
    for name, arrays in pictures().items():
        for i, array in enumerate(arrays):
            folder = root / "images" / (("train", "train", "validation", "test")[i % 4] if splits else "") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{i:02d}.png")
    (root / "tag_model.py").write_text(MODULE)
    safetensors.torch.save_file(trained_weights(), root / "model.safetensors")
    config = root / "parts.toml"
    config.write_text(CONFIG.replace("BASE_URL", base_url))
    for old, new in (changes or {}).items():
        edit(config, old, new)
    return config


def write_scripted(root: Path, **options) -> Path:
    """The same project with a critic that answers from a script: no server, and no courier to wait for."""
    config = write_project(root, **options)
    ids = {f"S{number}": "spurious" if number == 1 else "relevant" for number in (1, 2, 3)}
    script = {"critic": ["\n".join(f"{name}: A part." for name in ids)], "judge": [json.dumps(ids)]}
    (root / "script.json").write_text(json.dumps(script))
    edit(config, '"openai:stub"', json.dumps(f"scripted:{root / 'script.json'}"))
    return config


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))


def png(shade: int = 0, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of (width, height) pixels in one red."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and key != "OPENAI_API_KEY"}
    return {**clean, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", **more}


def measured() -> dict[str, str]:
    """An environment in which resident memory is what the work holds: freed tensors go back at once, whatever the machine's cores and allocator."""
    return environment(MALLOC_MMAP_THRESHOLD_=str(2**20), MALLOC_ARENA_MAX="1")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rightreasons.cli", *map(str, arguments)]


def run(*arguments: object, code: int = 0, **more: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=environment(**more))
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert "Traceback" not in result.stderr, result.stderr
    return result


SEVERAL = """
import json, sys
from rightreasons.cli import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as stopped:
        if stopped.code:
            raise
    print(sys.argv[2], flush=True)
"""


def run_in_turn(*commands: Sequence[object]) -> list[str]:
    """What each of several commands prints, in one process, so that libraries are imported and packaged digits are read once."""
    mark, words = "=== the next command ===", json.dumps([[str(argument) for argument in arguments] for arguments in commands])
    result = subprocess.run([sys.executable, "-c", SEVERAL, words, mark], capture_output=True, text=True, timeout=400, env=environment())
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout.split(f"{mark}\n")[:-1]


def start(*arguments: object, **options: object) -> subprocess.Popen:
    """The command in a process of its own, which the test will kill."""
    return subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def invoke(*arguments: object):
    """The command in this process: quicker, and an error nobody raised on purpose fails the test with its own traceback."""
    from rightreasons.cli import app

    result = testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{type(result.exception).__name__} reached the user: {result.exception}") from result.exception
    return result


def the_error(result: object) -> str:
    """The one error of a command that failed as it should."""
    assert result.exit_code == 1, result.output
    assert result.stdout == "", "standard output is for results"
    assert "Traceback" not in result.stderr
    before, *errors = result.stderr.split("error: ")
    assert len(errors) == 1, f"one error was expected:\n{result.stderr}"
    return errors[0]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


class Direct:
    """Opens backends without a courier, which takes seconds to start, and closes them; everything else about them is real."""

    def __init__(self):
        self._opened = []

    def __call__(self, stub, model="stub", **options):
        from rightreasons.lvlm import open_lvlm

        lvlm = open_lvlm(f"openai:{model}", base_url=getattr(stub, "base_url", stub), **options)
        lvlm.address = None
        self._opened.append(lvlm)
        return lvlm

    def close(self) -> None:
        for lvlm in self._opened:
            lvlm.close()


def children(process: subprocess.Popen) -> list[int]:
    """The processes that this one has started."""
    return [int(pid) for pid in subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()]


def make_case(pictures: Pictures, subject: Subject, *, label: int, descriptions: Sequence[ClassDescription], shares: Sequence[float]) -> Case:
    """A case of which nothing is drawn: its pictures are there already."""
    return Case(torch.zeros(3, 1, 1), subject.segments, pictures, subject, label, descriptions, shares)
