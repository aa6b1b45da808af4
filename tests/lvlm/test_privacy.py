"""What leaves this machine, and what stays in the run folder: no key, no file name, no metadata."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rightreasons.errors import LVLMUnavailable
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request, get_reply
from rightreasons.lvlm.wire import privacy
from tests.support.fault_server import FaultServer, error
from tests.support.helpers import invoke, pictures, run, start, write_project

KEY = "sk-secret-8c1f0a77d1"
PATIENT = "Mustermann-Erika-1964-08-12"


@pytest.fixture
def named(tmp_path):
    """A project whose image files carry a patient's name: in the file's name, in EXIF and in text chunks."""

    def write(base_url):
        config = write_project(tmp_path, base_url)
        for name, arrays in pictures().items():
            for i, array in enumerate(arrays):
                old = tmp_path / "images" / name / f"{i:02d}.png"
                old.unlink()
                info, exif = PngInfo(), Image.Exif()
                info.add_text("Comment", PATIENT)
                info.add_itxt("PatientName", PATIENT)
                exif[0x010E] = PATIENT
                Image.fromarray(array).save(old.with_name(f"{PATIENT}-{i:02d}.png"), pnginfo=info, exif=exif)
        assert PATIENT.encode() in next((tmp_path / "images").rglob("*.png")).read_bytes()
        return config

    return write


def everything(folder):
    """Every file of a folder, by name and content; pictures in a page or database are in base64 there, and metadata would be too."""
    for path in folder.rglob("*"):
        yield path.name, path.read_bytes() if path.is_file() else b""


def test_a_whole_run_keeps_names_metadata_and_the_key_to_itself(named, tmp_path, monkeypatch):
    """Even where the server repeats the key, and with the courier's command line looked at while it runs."""
    echo = lambda seen: error(500, f"bad key {seen.headers['authorization']}") if seen.number == 1 else None  # noqa: E731
    with FaultServer(misbehave=echo) as stub:
        config = named(stub.base_url)
        find = run("find", config, "--out", tmp_path / "run", "--json", OPENAI_API_KEY=KEY)
        assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in stub.seen), "the key was in use"
        for seen in stub.seen:
            assert PATIENT not in json.dumps(seen.body) and str(tmp_path) not in json.dumps(seen.body)
            assert not seen.problems, "each picture is IHDR, IDAT and IEND and nothing else"
            assert all(not picture.info and not picture.getexif() for picture in seen.pictures)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shown = invoke("find", config, "--out", tmp_path / "run", "--dry-run")
    fresh = invoke("find", config, "--out", tmp_path / "fresh", "--dry-run")
    exported = invoke("lvlm", "export", tmp_path / "fresh", "--to", tmp_path / "fresh" / "requests.jsonl")
    assert shown.exit_code == fresh.exit_code == exported.exit_code == 0
    for name, content in [*everything(tmp_path / "run"), *everything(tmp_path / "fresh")]:
        assert KEY.encode() not in content and KEY not in name
        assert PATIENT.encode() not in content and PATIENT not in name
    for result in (find, shown, fresh, exported):
        for text in (result.stdout, result.stderr):
            assert KEY not in text and PATIENT not in text


def test_the_courier_has_no_key_on_its_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(delay=0.2) as stub:
        process = start("find", write_project(tmp_path, stub.base_url), "--out", tmp_path / "run", start_new_session=True)
        try:
            stub.wait_for(1, alive=lambda: process.poll() is None)
            listed = subprocess.run(["ps", "-eo", "pid,ppid,args", "-ww"], capture_output=True, text=True).stdout
        finally:
            os.killpg(process.pid, 9)
            process.wait()
    ours = [line for line in listed.splitlines() if f" {process.pid} " in f" {line} "]
    assert any("rightreasons.lvlm.ledger.courier" in line for line in ours), listed
    assert KEY not in listed


def test_a_run_folder_is_for_its_owner_alone(tmp_path):
    """While requests are under way too: the database's journals have its mode."""
    with FaultServer(delay=0.2) as stub:
        process = start("find", write_project(tmp_path, stub.base_url), "--out", tmp_path / "run", start_new_session=True)
        try:
            stub.wait_for(1, alive=lambda: process.poll() is None)
            names = {path.name for path in (tmp_path / "run").iterdir()}
            assert {"lvlm.sqlite", "lvlm.sqlite-wal", "lvlm.sqlite-shm"} <= names
            check_modes(tmp_path / "run")
        finally:
            os.killpg(process.pid, 9)
            process.wait()
    with FaultServer() as stub:
        (tmp_path / "whole").mkdir()
        config, folder = write_project(tmp_path / "whole", stub.base_url), tmp_path / "whole" / "run"
        for arguments in (["find", config, "--out", folder], ["fix", folder]):
            assert invoke(*arguments).exit_code == 0
        check_modes(folder)


def check_modes(folder):
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, f"{path.name} is open to others"


def test_a_remote_host_hears_of_nothing_until_it_is_allowed_and_the_message_says_what_it_would_hear():
    with pytest.raises(LVLMUnavailable, match="--allow-remote llm.example") as refused:
        privacy.check_permission("llm.example", ())
    for words in ("pixels", "true label", "class descriptions", "no file name", "--dry-run"):
        assert words in str(refused.value)
    privacy.check_permission("llm.example", ("llm.example",))
    privacy.check_permission("127.0.0.1", ())
    with pytest.raises(LVLMUnavailable, match="--allow-remote sub.llm.example"):
        privacy.check_permission("sub.llm.example", ("llm.example",))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine(host):
    assert privacy.is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "0.0.0.0", "10.0.0.1", "localhost.example", "example.com", ""])
def test_another_machine(host):
    assert not privacy.is_loopback(host)


@pytest.fixture
def store():
    """The real package with a store in memory, whose ``fails`` is what reading it raises."""
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class InMemory(KeyringBackend):
        priority = 1
        fails = None

        def get_password(self, service, username):
            if self.fails is not None:
                raise self.fails
            return {("rightreasons", "OPENAI_API_KEY"): "from-the-keyring"}.get((service, username))

        def set_password(self, service, username, password):
            raise NotImplementedError("nothing here writes a key")

    before, backend = keyring.get_keyring(), InMemory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def test_a_key_from_the_environment_or_a_keyring(store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert privacy.read_key("OPENAI_API_KEY") == "from-the-keyring" and privacy.read_key("GEMINI_API_KEY") is None
    assert privacy.redact("it said from-the-keyring") == "it said ***"
    with FaultServer() as stub:
        lvlm = open_lvlm("openai:stub", base_url=stub.base_url)
        with contextlib.closing(lvlm):
            get_reply(lvlm, Request("judge", ("Now the critique to judge:\n<critique>\nS1: x\n</critique>\nkeys are exactly S1, each",)))
        assert stub.seen[0].headers["authorization"] == "Bearer from-the-keyring"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert privacy.read_key("OPENAI_API_KEY") == KEY, "the environment comes first"


def test_without_the_extra(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert privacy.read_key("OPENAI_API_KEY") is None


def test_a_keyring_that_cannot_be_read(store, monkeypatch):
    from keyring.errors import KeyringLocked, NoKeyringError

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    store.fails = NoKeyringError("none here")
    assert privacy.read_key("OPENAI_API_KEY") is None, "a machine without a keyring has no key in it"
    store.fails = KeyringLocked("locked")
    with pytest.raises(LVLMUnavailable, match="unlock it, or set OPENAI_API_KEY"):
        privacy.read_key("OPENAI_API_KEY")


def test_errors_show_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert privacy.redact(f"x {KEY} y {KEY}") == "x *** y ***"
    result = invoke("find", tmp_path / f"{KEY}.toml")
    assert result.exit_code == 1 and KEY not in result.stderr and "***" in result.stderr


def test_lettering_is_warned_of_before_anything_is_sent(tmp_path, monkeypatch):
    from rightreasons.common.progress import Silent
    from rightreasons.pipeline.find import find
    from rightreasons.project.project import read_project
    from rightreasons.runs.folder import RunFolder

    monkeypatch.setattr("rightreasons.critic.case.has_lettering", lambda pixels: True)  # 16 pixels are too few to write on
    reporter, heard = Silent(), []
    with FaultServer(misbehave=lambda seen: heard.append(len(reporter.notes))) as stub:
        find(read_project(write_project(tmp_path, stub.base_url)), RunFolder(tmp_path / "run"), reporter=reporter)
    (told,) = [note for note in reporter.notes[: heard[0]] if "12 of 12 inspected images seem to have text burned into them" in note]
    assert PATIENT not in told


def test_the_way_out_of_the_house_is_encrypted_or_asked_for_by_name():
    with pytest.raises(LVLMUnavailable, match="--allow-remote http://llm.example") as refused:
        open_lvlm("openai:m", base_url="http://llm.example/v1", allow_remote=("llm.example",))
    assert "not encrypted" in str(refused.value)
    for address, leave in (
        ("http://llm.example/v1", "http://llm.example"),
        ("https://llm.example/v1", "llm.example"),
        ("http://192.168.0.7/v1", "192.168.0.7"),
        ("http://[fd00::7]:8000/v1", "fd00::7"),
        ("http://vllm:8000/v1", "vllm"),
    ):
        open_lvlm("openai:m", base_url=address, allow_remote=(leave,))
        with pytest.raises(LVLMUnavailable, match=re.escape(f"--allow-remote {leave.removeprefix('http://')}")):
            open_lvlm("openai:m", base_url=address, allow_remote=())


def test_an_unencrypted_way_in_the_house_is_noted_before_anything_is_sent(tmp_path, monkeypatch):
    def stop(lvlm):
        raise LVLMUnavailable("the first word to the server")

    monkeypatch.setattr(OpenAICompatible, "check", stop)
    (tmp_path / "prices.toml").write_text('["openai:stub"]\ndate = 2026-01-01\ninput_usd = 0\noutput_usd = 0\n')
    config = write_project(tmp_path, "http://10.0.0.7:8000/v1", changes={"[critic]": '[critic]\nprices = "prices.toml"'})
    said = invoke("find", config, "--out", tmp_path / "run", "--allow-remote", "10.0.0.7").stderr
    assert said.index("http://10.0.0.7:8000/v1 is not encrypted") < said.index("the first word to the server")


@pytest.mark.parametrize("ending", ["\r", "\n", " "])
def test_a_stray_line_ending_is_no_part_of_a_key(monkeypatch, ending):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + ending)
    assert privacy.read_key("OPENAI_API_KEY") == KEY


@pytest.mark.parametrize("inside", ["\r", "\n", "\u00e9", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch, inside):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}{inside}{KEY}")
    with FaultServer() as stub:
        with pytest.raises(LVLMUnavailable, match="set it again") as refused:
            open_lvlm("openai:m", base_url=stub.base_url).check()
        assert not stub.seen
    assert KEY not in str(refused.value)


def test_an_answer_that_repeats_the_key_is_kept_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(answer=lambda seen: f"you sent {seen.headers['authorization']}") as stub, Ledger(tmp_path / "lvlm.sqlite") as ledger:
        answer = ledger.ask(open_lvlm("openai:m", base_url=stub.base_url), Request("judge", ("What?",)))
    assert answer.text == "you sent Bearer ***"
    assert all(KEY.encode() not in content for _, content in everything(tmp_path))
