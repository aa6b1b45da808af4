"""Every configuration under examples/ on a small folder of exactly its form: read as it stands, and run with a small network and a critic at hand."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from rightreasons.common.progress import Silent
from rightreasons.config import merge_tables, parse_config
from rightreasons.data import open_data, task_defaults
from rightreasons.studies.study import open_study, run_study
from tests.support import folders
from tests.support.helpers import MODULE, invoke

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITERS = {
    "waterbirds": folders.write_waterbirds,
    "subpopbench": folders.write_subpopbench,
    "celeba": folders.write_celeba,
    "spuco": lambda root: folders.write_spuco(root) + folders.write_spuco(root, names=("landbirds", "waterbirds"), places=("land", "water")),
    "table": folders.write_table,
    "dicom": folders.write_dicom,
    "parquet": folders.write_parquet,
    "huggingface": folders.write_huggingface,
    "isic": folders.write_isic,
    "knees": folders.write_knees,
    "folder": lambda root: folders.write_class_folders(root, names=("scratch", "sound")),
}
STUDIES = {"isic-study": "isic", "knees-study": "knees"}
BUILT_IN = ("biased-mnist", "decoy-mnist", "solar", "stamps")
# What a laptop can do in a second: the rest of a configuration stays as it stands.
SMALL = {
    "data": {"size": 16, "mode": "rgb"},
    "model": {"source": "python:tag_model:build", "pretrained": False, "epochs": 2},
    "sample": {"size": 10},
    "attribute": {"baselines": 3},
    "segment": {"components": 3},
    "align": {"epochs": 1, "batch_size": 16},
}


def read(name: str) -> dict:
    return tomllib.loads((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"))


def set_up(root: Path, name: str) -> dict:
    """The folder that an example names, and its tables made small."""
    tables = read(name)
    WRITERS[name](root / tables["data"]["path"])
    (root / "tag_model.py").write_text(MODULE)
    tables["model"].pop("checkpoint", None)
    return merge_tables(tables, SMALL)


def test_every_example_is_run_here():
    named = {path.stem for path in EXAMPLES.glob("*.toml")}
    assert named == {*WRITERS, *STUDIES, *BUILT_IN}


@pytest.mark.parametrize("name", [*WRITERS, *BUILT_IN])
def test_an_example_is_valid_as_it_stands(name):
    tables = read(name)
    config = parse_config(tables, source=name, defaults=task_defaults(tables["data"]["path"]))
    assert config.critic.lvlm.startswith("openai:") or name in BUILT_IN


@pytest.mark.parametrize("name", WRITERS)
def test_an_example_reads_its_folder(tmp_path, name):
    tables = read(name)
    WRITERS[name](tmp_path / tables["data"]["path"])
    config = parse_config({**tables, "data": {"size": 16, **tables["data"]}}, source=name)
    task = open_data(config.data, root=tmp_path, seed=0)
    assert config.descriptions(task.classes) and all(len(part) for part in task.splits.values())


@pytest.mark.parametrize("name", WRITERS)
def test_an_example_finds(tmp_path, name):
    tables = set_up(tmp_path, name)
    ids = {f"S{number}": "spurious" if number == 1 else "relevant" for number in (1, 2, 3)}
    script = {"critic": ["\n".join(f"{segment}: A part." for segment in ids)], "judge": [json.dumps(ids)]}
    (tmp_path / "script.json").write_text(json.dumps(script))
    tables["critic"] = {"lvlm": f"scripted:{tmp_path / 'script.json'}"}
    config = tmp_path / "example.toml"
    config.write_text(parse_config(tables, source=name).to_toml(), encoding="utf-8")
    result = invoke("find", config, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["critic"]["spurious"] > 0 and metrics["data"]["images"]["train"] > 20
    has_groups = name in {"waterbirds", "subpopbench", "celeba", "spuco", "isic"}
    assert (metrics["before"]["worst_group_accuracy"] is not None) == has_groups
    assert (metrics["before"]["mu_align"] is not None) == (name in {"subpopbench", "isic"})


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_makes_its_table(tmp_path, name):
    """The skin's critic is simulated from the masks of the plasters; knees have none, so that theirs reads from a script."""
    tables = set_up(tmp_path, STUDIES[name])
    (tmp_path / f"{STUDIES[name]}.toml").write_text(parse_config(tables, source=name).to_toml(), encoding="utf-8")
    shutil.copy(EXAMPLES / f"{name}.toml", tmp_path)
    (tmp_path / "script.json").write_text(
        json.dumps({"critic": ["S1: A.\nS2: B.\nS3: C."], "judge": ['{"S1": "spurious", "S2": "relevant", "S3": "relevant"}']})
    )
    critic = "simulated:" if name == "isic-study" else f"scripted:{tmp_path / 'script.json'}"
    study = open_study(str(tmp_path / f"{name}.toml"), critics=[critic])
    table = run_study(study, seeds=range(2), methods=None, out=tmp_path / "out", reporter=Silent())
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == [*study.methods, *study.arms] and all(row["seeds"] == 2 for row in rows.values())
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / study.name).glob("*/[01].json"))]
    tested = len(open_data(parse_config(tables, source=name).data, root=tmp_path, seed=0).splits["test"])
    for method, row in rows.items():
        values = row["metrics"]["accuracy"]["values"]
        assert values == [result["metrics"]["accuracy"] for result in kept if result["method"] == method], "seed by seed, as the files have it"
        assert [value * tested for value in values] == pytest.approx([round(value * tested) for value in values]), "a share of the test images"
    other = study.arms[next(iter(study.arms))]["classes"]
    words = parse_config(tables, source=name).classes
    assert all(bool(words[label].description) != bool(other[label]["description"]) for label in words), "the other style"
