"""A real model with random weights, in process: it says nothing of sense, and under a schema nothing but valid answers."""

from __future__ import annotations

import json

import pytest

from rightreasons.critic.judge import parse_verdicts
from rightreasons.errors import ConfigError, LVLMTooBig, LVLMUnavailable
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request, get_reply
from tests.support.helpers import invoke, png, read_lines, write_project, write_scripted
from tests.support.tiny_vlm import build_tiny_vlm

SIZE = (64, 48)
IDS = ["S1", "S2", "S3"]
VERDICTS = {
    "type": "object",
    "properties": {name: {"type": "string", "enum": ["relevant", "spurious", "unsure"]} for name in IDS},
    "required": IDS,
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_vlm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(folder):
    return open_lvlm(f"local:{folder}")


def answer(lvlm: LVLM, request: Request):
    return lvlm.parse(get_reply(lvlm, request))


def test_it_is_there(tiny):
    tiny.check()
    assert isinstance(tiny, LVLM) and tiny.address is None and tiny.concurrency == (1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_under_a_schema_every_answer_is_valid(tiny, seed):
    got = answer(tiny, Request("judge", (f"Judge {seed}.", png(seed, SIZE)), schema=VERDICTS, max_tokens=512))
    assert got.problem is None and set(parse_verdicts(got.text, IDS)) == set(IDS)


def test_words_under_a_schema_are_bounded(tiny):
    schema = {"type": "object", "properties": {"why": {"type": "string", "maxLength": 20}}, "required": ["why"], "additionalProperties": False}
    said = json.loads(answer(tiny, Request("fused", ("Why?",), schema=schema, max_tokens=512)).text)
    assert len(said["why"]) <= 20


def test_it_sees_the_pictures(tiny):
    """Noise, but not the same noise: what is shown changes what is said, and the same question gets the same answer."""
    dark, light = png(0, SIZE), png(250, SIZE)
    ask = [answer(tiny, Request("critic", ("Look.", *pictures), max_tokens=24)).text for pictures in ([], [dark], [light], [dark], [dark] * 3)]
    assert ask[1] == ask[3] and len({ask[0], ask[1], ask[2], ask[4]}) == 4


def test_what_is_cut_off_says_so_and_is_counted(tiny):
    got = answer(tiny, Request("critic", ("Look.", png(1, SIZE)), max_tokens=5))
    assert got.outcome == "truncated" and got.usage.output_tokens == 5
    # 16 patches of the picture, the words' bytes, and the two tokens of the template.
    assert got.usage.input_tokens == 16 + len("Look.") + 2


def test_more_than_it_can_read_is_too_big(tiny):
    with pytest.raises(LVLMTooBig, match="16384"):
        answer(tiny, Request("critic", ("x" * 17_000,)))


def test_through_the_ledger(tiny, tmp_path):
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    request = Request("judge", ("Judge.",), schema=VERDICTS)
    first, second = ledger.ask(tiny, request), ledger.ask(tiny, request)
    ledger.close()
    assert first.text == second.text and second.cached and ledger.sent == 1


def test_a_folder_that_is_no_model(tmp_path, folder):
    with pytest.raises(ConfigError, match="safetensors"):
        open_lvlm(f"local:{tmp_path}")
    (tmp_path / "model.safetensors").touch()
    for config, words in (
        ('{"model_type": "bert"}', "does not take pictures"),
        ("{}", "cannot be read"),
        ('{"auto_map": {"AutoConfig": "evil.Config"}}', "cannot be read"),
    ):
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder was run')")
        with pytest.raises(LVLMUnavailable, match=words):
            open_lvlm(f"local:{tmp_path}").check()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(LVLMUnavailable, match="cannot be loaded"):
        answer(open_lvlm(f"local:{tmp_path}"), Request("critic", ("?",)))


def test_find_with_a_judge_in_process(tmp_path, folder):
    """The whole run: under the schema even noise is one verdict per segment, whichever it is."""
    config = write_scripted(tmp_path, changes={"[align]": f'judge = "local:{folder}"\n[align]', "size = 12": "size = 3"})
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
    verdicts = read_lines(tmp_path / "run" / "verdicts.jsonl")
    assert verdicts and not any(verdict["problem"] for verdict in verdicts)


def test_find_with_a_critic_in_process(tmp_path, folder):
    """Its prose is noise, with a schema or without: no verdict."""
    changes = {"openai:stub": f"local:{folder}", "size = 12": "size = 1", "base_url": "max_tokens = 64\nbase_url"}
    config = write_project(tmp_path, changes=changes)
    result = invoke("find", config, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "no usable verdict" in result.stderr
    assert all(verdict["value"] == "unsure" and verdict["problem"] for verdict in read_lines(tmp_path / "run" / "verdicts.jsonl"))
