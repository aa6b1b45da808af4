"""A run folder: written whole or not at all, read back equal, and worked on by one process at a time."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch

from rightreasons.common.files import write_atomically, write_bytes, write_text
from rightreasons.config import parse_config
from rightreasons.errors import ConfigError, ModelError
from rightreasons.records import Attribution, Critique, Segmentation, Selection, Verdict
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import environment

TABLES = {
    "data": {"path": "images"},
    "model": {"source": "python:a:b"},
    "classes": {"a": {"description": "x"}, "b": {"description": "y"}},
    "critic": {"lvlm": "openai:m"},
}
CONFIG = parse_config(TABLES, source="test")


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "deep" / "run")
    made.start(CONFIG, manifest="abc", root=tmp_path, splits={})
    return made


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def half(part):
        part.write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path, stop, wrong = tmp_path / "file", threading.Event(), []
    write_bytes(path, b"0" * 200_000)

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            if len(content) != 200_000 or len(set(content)) != 1:
                wrong.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        write_bytes(path, b"%d" % (i % 10) * 200_000)
    stop.set()
    reader.join()
    assert not wrong
    assert [left.name for left in tmp_path.iterdir()] == ["file"], "no temporary name is left"


def test_files_and_folders_are_private(folder):
    write_text(folder.path / "text", "é")
    assert (folder.path / "text").read_bytes() == "é".encode()
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_start_writes_down_what_the_run_is_made_of(folder, tmp_path):
    assert folder.config() == CONFIG
    stored = folder.environment()
    assert {"rightreasons", "python", "torch", "device", "seed", "data", "root"} <= stored.keys()
    assert (stored["data"], stored["root"]) == ("abc", str(tmp_path))


def test_start_again_goes_on_only_with_the_same_configuration_and_data(folder, tmp_path):
    folder.start(CONFIG, manifest="abc", root=tmp_path, splits={})
    with pytest.raises(ConfigError, match=r"run\.seed was 0 and is now 1"):
        folder.start(parse_config({**TABLES, "run": {"seed": 1}}, source="test"), manifest="abc", root=tmp_path, splits={})
    with pytest.raises(ConfigError, match="the images are not those that"):
        folder.start(CONFIG, manifest="abd", root=tmp_path, splits={})


def test_start_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and not a run folder"):
        RunFolder(tmp_path).start(CONFIG, manifest="abc", root=tmp_path, splits={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="cannot make the run folder"):
        RunFolder(tmp_path / "thesis.tex").start(CONFIG, manifest="abc", root=tmp_path, splits={})


def test_start_goes_on_after_a_kill_while_the_folder_was_made(tmp_path):
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / ".config.toml.123.part").write_text("[da")
    RunFolder(tmp_path).start(CONFIG, manifest="abc", root=tmp_path, splits={})
    assert RunFolder(tmp_path).config() == CONFIG


def test_what_has_not_finished_is_none(folder):
    for name in ("selection", "attribution", "segmentation", "critiques", "verdicts", "metrics"):
        assert getattr(folder, f"load_{name}")() is None


def test_every_stage_is_read_back_as_it_was(folder):
    generator = torch.Generator().manual_seed(0)
    selection = Selection("low-entropy", torch.tensor([5, 2**40, 0]), torch.tensor([0, 1, 0]), torch.tensor([1e-7, 0.1, 0.3]))
    attribution = Attribution(torch.randn(3, 4, 5, generator=generator), torch.tensor([1, 0, 1]), torch.tensor([0.0, torch.nan, 1e-6]))
    pieces = torch.randint(-1, 3, (3, 4, 5), generator=generator)
    segmentation = Segmentation(pieces, pieces == 1, torch.rand(3, 3, generator=generator), ("segmented", "constant", "not-finite"))
    folder.save_selection(selection)
    folder.save_attribution(attribution)
    folder.save_segmentation(segmentation)
    for saved, read in (
        (selection, folder.load_selection()),
        (attribution, folder.load_attribution()),
        (segmentation, folder.load_segmentation()),
    ):
        for name, value in vars(saved).items():
            other = getattr(read, name)
            assert (
                torch.equal(value.nan_to_num(-1), other.nan_to_num(-1)) and value.dtype == other.dtype
                if isinstance(value, torch.Tensor)
                else value == other
            )


def test_critiques_and_verdicts_keep_every_character(folder):
    critiques = [Critique(1, 'S1: "é"\n\u2028 line\r\n</critique>\x00', None), Critique(2, "", "refused: no")]
    verdicts = [Verdict(1, 0, "spurious", "openai:m"), Verdict(2, 3, "unsure", "openai:m", "refused: \u0085 no")]
    folder.save_critiques(critiques)
    folder.save_verdicts(verdicts)
    assert folder.load_critiques() == critiques and folder.load_verdicts() == verdicts


def test_a_persons_verdicts_outlive_a_second_find(folder):
    human = Verdict(1, 0, "relevant", "human")
    folder.save_verdicts([Verdict(1, 0, "spurious", "m")])
    with (folder.path / "verdicts.jsonl").open("a") as lines:
        lines.write(json.dumps(vars(human)) + "\n")
    folder.save_verdicts([Verdict(1, 0, "unsure", "m")])
    assert folder.load_verdicts() == [Verdict(1, 0, "unsure", "m"), human]


def test_an_alignment_belongs_to_its_job(folder):
    folder.save_alignment("job", {"outcome": "aligned"}, {"epochs": 5})
    assert folder.load_alignment("job") == {"outcome": "aligned"} and folder.load_alignment("another") is None


LOCKED = """
import sys
from pathlib import Path
from rightreasons.errors import ConfigError, ModelError
from rightreasons.runs.folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).locked():
        print("mine")
except ConfigError as error:
    print(error)
"""


def second_process(folder) -> str:
    return subprocess.run([sys.executable, "-c", LOCKED, str(folder.path)], capture_output=True, text=True, env=environment(), check=True).stdout


def test_a_second_process_is_told(folder):
    with folder.locked():
        assert "another process is working on" in second_process(folder)
    assert second_process(folder) == "mine\n"


def _hold(path, ready):
    with RunFolder(path).locked():
        ready.set()
        threading.Event().wait()


def test_a_killed_process_leaves_no_lock(folder):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(folder.path, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match="another process"), folder.locked():
        pass
    holder.kill()
    holder.join()
    with folder.locked():
        pass


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_are_valid_json_or_an_error_that_names_the_key(folder, value):
    """RFC 8259, section 6: numbers that cannot be represented, such as Infinity and NaN, are not permitted."""
    folder.path.mkdir(exist_ok=True)
    with pytest.raises(ModelError, match=r"before\.groups\[1\] is not finite"):
        folder.save_metrics({"task": "x", "before": {"accuracy": None, "groups": [0.5, value]}})
    assert folder.load_metrics() is None
