"""TOML in, complete and validated; TOML out, and equal when it is read back."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from rightreasons.config import ClassConfig, ColumnsConfig, Config, CriticConfig, describe_difference, parse_config, read_config
from rightreasons.data import task_defaults
from rightreasons.errors import ConfigError
from rightreasons.project.project import find_server

WORDS = [
    "plain",
    "two words",
    "dotted.name",
    'with "quotes"',
    "it's",
    "back\\slash",
    "Läsion 損傷 🩺",
    "tab\tand\nnew line",
    "# no comment",
    "[table]",
    "=",
    "",
    "-",
    "1.5",
    "true",
    "$label {x} %s",
    "\u007f\u0000\u001b",
]


def tables(**more):
    return {
        "data": {"path": "images"},
        "model": {"source": "torchvision:resnet18"},
        "classes": {"a": {"description": "x"}, "b": {"irrelevant": "y"}},
        "critic": {"lvlm": "openai:m"},
        **more,
    }


def parse(**more) -> Config:
    return parse_config(tables(**more), source="test.toml")


def test_defaults_are_those_of_the_documentation():
    config = parse()
    assert (config.sample.strategy, config.sample.size, config.sample.per_class) == ("low-entropy", 100, "auto")
    assert (config.segment.components, config.segment.smooth) == (5, "auto")
    assert (config.critic.votes, config.critic.base_url, config.critic.judge) == (1, None, None)
    assert (config.align.term, config.align.epochs, config.align.ratio) == ("swap+penalty", 5, 0.25) and config.run.seed == 0


def test_the_spelling_of_earlier_run_folders_is_read():
    """What they mean has not changed, so that those folders resume and their repairs are not made again."""
    old = parse(segment={"peak_share": "auto"}, align={"term": "auto"}, model={"source": "python:rightreasons.models:small_mlp"})
    new = parse(model={"source": "packaged:small-mlp"})
    assert old == new and (new.segment.peak_share, new.align.term) == (0.15, "swap+penalty")


@pytest.mark.parametrize("word", WORDS)
def test_written_and_read_back_it_is_equal(tmp_path, word):
    config = parse(
        data={"path": f"images/{word}"},
        classes={word: {"description": word or "x", "irrelevant": word}, "another": {"irrelevant": word + "."}},
        align={"lambda": 0.5, "ratio": 0.125, "gamma": 1e-7},
        segment={"components": "auto", "smooth": 0.02},
        sample={"per_class": 3},
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert read_config(path) == config
    assert read_config(path).to_toml() == config.to_toml()


@pytest.mark.parametrize("task", ["decoy-mnist", "decoy-mnist:packaged"])
def test_a_built_in_task_brings_what_is_missing_and_is_overruled(task):
    config = parse_config({"data": {"path": task}, "sample": {"size": 7}}, source="test", defaults=task_defaults(task))
    assert config.sample.size == 7 and len(config.classes) == 10 and config.critic.lvlm == "simulated:"
    assert parse_config(tomllib.loads(config.to_toml()), source="test", defaults=task_defaults(task)) == config


def test_the_written_form_has_every_key(tmp_path):
    stored = tomllib.loads(parse().to_toml())
    assert set(stored) == {"data", "model", "classes", "sample", "attribute", "segment", "critic", "align", "run"}
    assert stored["align"]["lambda"] == "auto" and "lambda_" not in stored["align"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"sample": {"sizes": 3}}, ["unknown key 'sample.sizes'", "did you mean 'size'", "strategy, size, per_class"]),
        ({"samples": {}}, ["unknown key 'samples'", "did you mean 'sample'"]),
        ({"align": {"lamda": 3}}, ["unknown key 'align.lamda'", "did you mean 'lambda'"]),
        ({"zzz": 1}, ["unknown key 'zzz'", "valid here: data, model"]),
        ({"sample": {"size": -3}}, ["sample.size = -3", "greater than or equal to 1"]),
        ({"sample": {"strategy": "entropy"}}, ["sample.strategy = 'entropy'", "low-entropy", "random", "high-entropy"]),
        ({"align": {"ratio": 1.0}}, ["align.ratio = 1.0", "less than 1"]),
        ({"align": {"lambda": "big"}}, ["align.lambda = 'big'", "auto"]),
        ({"segment": {"components": 0}}, ["segment.components = 0", "auto"]),
        ({"critic": {}}, ["'critic.lvlm' is missing"]),
        ({"critic": {"lvlm": "openai:m", "votes": 2}}, ["critic.votes = 2", "odd"]),
        ({"critic": {"lvlm": "openai:m", "mode": "one-call"}}, ["critic.mode = 'one-call'", "two-call", "fused"]),
        ({"run": {"seed": -1}}, ["run.seed = -1"]),
        ({"data": {"path": "x", "mode": "cmyk"}}, ["data.mode = 'cmyk'", "grey", "rgb"]),
        ({"classes": {"a": {"description": "  "}}}, ["classes.a", "neither"]),
        ({"classes": {"integer": {"descr": "x"}}}, ["classes.integer.descr"]),
        ({"model": 3}, ["model = 3"]),
        ({"align": {"learning_rate": float("nan")}}, ["align.learning_rate"]),
        ({"align": {"gamma": float("inf")}}, ["align.gamma"]),
    ],
)
def test_errors_name_file_key_value_and_what_was_expected(more, expected):
    with pytest.raises(ConfigError) as error:
        parse(**more)
    for words in ("test.toml", *expected):
        assert words in str(error.value), str(error.value)


def test_several_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse(sample={"size": 0}, run={"sed": 1})
    assert "sample.size" in str(error.value) and "run.sed" in str(error.value)


def test_descriptions_come_in_the_order_of_the_classes():
    assert [words.name for words in parse().descriptions(("b", "a"))] == ["b", "a"]
    with pytest.raises(ConfigError, match=r"a class without a description: 'my c'.*\[classes\.\"my c\"\]"):
        parse().descriptions(("a", "b", "my c"))
    with pytest.raises(ConfigError, match="'b'.*the classes are 'a'"):
        parse().descriptions(("a",))


def test_the_near_miss_of_a_class_name_is_named():
    with pytest.raises(ConfigError, match=r"a class without a description: 'B'.*There is \[classes\.b\]: call it as the data do"):
        parse().descriptions(("a", "B"))
    with pytest.raises(ConfigError, match=r"irrelevant$"):
        parse().descriptions(("a", "nothing like it"))


def test_the_difference_between_two_configurations_is_one_key_in_words():
    assert describe_difference(parse(), parse()) is None
    assert describe_difference(parse(), parse(align={"lambda": 2.0})) == "align.lambda was 'auto' and is now 2.0"
    assert "classes.a.description was 'x'" in describe_difference(parse(), parse(classes={"a": {"description": "z"}, "b": {"irrelevant": "y"}}))


@pytest.mark.parametrize(
    ("critic", "server"),
    [
        ({"lvlm": "openai:a", "base_url": "http://127.0.0.1:1/v1"}, ("openai:a", "http://127.0.0.1:1/v1")),
        ({"lvlm": "openai:a", "base_url": "http://127.0.0.1:1/v1", "judge": "openai:b"}, ("openai:b", "http://127.0.0.1:1/v1")),
        ({"lvlm": "openai:a", "base_url": "http://127.0.0.1:1/v1", "judge": "anthropic:b"}, ("anthropic:b", None)),
        (
            {"lvlm": "openai:a", "base_url": "http://127.0.0.1:1/v1", "judge": "openai:b", "judge_base_url": "https://x.example/v1"},
            ("openai:b", "https://x.example/v1"),
        ),
    ],
)
def test_a_judge_of_another_provider_is_not_looked_for_at_the_critics_address(critic, server):
    """Its key would go there."""
    config = CriticConfig.model_validate(critic)
    assert find_server(config, "judge") == server and find_server(config, "critic") == ("openai:a", "http://127.0.0.1:1/v1")


def test_the_page_on_configurations_has_every_key_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for title, table in Config.model_fields.items():
        model = ClassConfig if title == "classes" else table.annotation
        section = page.split(f"## [{title}{'.NAME' if title == 'classes' else ''}]")[1].split("\n## ")[0]
        rows = {row[0]: row[-1] for row in re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.MULTILINE)}
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert list(rows) == list(fields)
        for name, field in fields.items():
            said, value = rows[name], field.default
            if field.is_required() or value in (None, "", (), {}) or isinstance(value, ColumnsConfig):
                assert said == ("needed" if field.is_required() else "none"), (title, name)
            else:
                assert json.loads(said.strip("`")) == value, (title, name)
