"""The gate: what it measures, its exit codes, its files, and what it refuses."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
import yaml

from rightreasons.cli.check import _name_files, tell_bounds
from rightreasons.common.progress import Silent
from rightreasons.data.loading import StoredImages
from rightreasons.errors import ConfigError, ModelError
from rightreasons.pipeline.gate import measure
from rightreasons.pipeline.gate.bounds import MEASURES, Budget, read_budget
from rightreasons.pipeline.gate.check import check_models, judge_numbers
from rightreasons.pipeline.gate.measure import Measured, Number, measure_checkpoint, open_checkpoint, prepare_yardstick
from rightreasons.pipeline.gate.sarif import SCHEMA
from rightreasons.repair.propagate import Spread
from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.metrics import wilson_interval
from tests.support.helpers import MODULE, invoke, write_scripted
from tests.support.review import copy_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose critic calls the first segment of every image spurious, and a network that ignores everything."""
    root = tmp_path_factory.mktemp("gate")
    config = write_scripted(root)
    result = invoke("find", config, "--out", root / "run")
    assert result.exit_code == 0, result.stderr
    weights = safetensors.torch.load_file(root / "model.safetensors")
    safetensors.torch.save_file({name: torch.zeros_like(value) for name, value in weights.items()}, root / "blind.safetensors")
    return root


def checked(root, *arguments, code=0):
    result = invoke("check", root / "run", *arguments)
    assert result.exit_code == code, result.output
    return result


def refused(root, *arguments) -> str:
    result = checked(root, *arguments, code=2)
    assert result.stdout == "" and result.stderr.count("error: ") == 1
    return " ".join(result.stderr.split("error: ")[1].split())


def test_the_exit_code_says_whether_a_bound_is_past(finished):
    checked(finished, "--max-spurious-share", 1, "--max-flip-rate", 1)
    past = checked(finished, "--max-spurious-share", 0.01, "--max-flip-rate", 1, code=1)
    assert "past: the original model: spurious share, all images is" in " ".join(past.stdout.split())
    blind = finished / "blind.safetensors"
    checked(finished, "--model", blind, "--max-spurious-share", 0, "--max-flip-rate", 0)
    assert "accuracy, all images" in checked(finished, "--model", blind, "--max-flip-rate", 0, "--min-accuracy", 0.9, code=1).stdout


def test_several_checkpoints_are_measured_alike_and_class_by_class(finished):
    arguments = ("--max-flip-rate", 0.0, "--json")
    own, blind = finished / "model.safetensors", finished / "blind.safetensors"
    both = json.loads(checked(finished, "--model", own, "--model", blind, *arguments, code=1).stdout)
    assert [each["checkpoint"] for each in both["checkpoints"]] == ["model.safetensors", "blind.safetensors"]
    assert both["passed"] is False and both["split"] == "test"
    leaning, ignoring = both["checkpoints"]
    alone = json.loads(checked(finished, *arguments, code=1).stdout)["checkpoints"][0]
    assert alone["all"] == leaning["all"] and alone["classes"] == leaning["classes"], "the original model by another name"
    assert ignoring["all"]["swap_flip_rate"]["value"] == 0 == ignoring["all"]["spurious_share"]["value"]
    assert {finding["scope"] for finding in leaning["findings"]} == {None, "bolt", "nut"}
    assert all(finding["status"] == "within" for finding in ignoring["findings"])
    for each in leaning["all"], *leaning["classes"].values():
        hits = each["accuracy"]["value"] * each["accuracy"]["count"]
        assert each["accuracy"]["interval"] == pytest.approx(wilson_interval(round(hits), each["accuracy"]["count"]))


def test_the_numbers_are_those_of_the_scores_written_out_as_loops(finished):
    """Every held-out image gets the spurious part of an inspected image of another class; the share is that of the inspected images."""
    run = load_run(RunFolder(finished / "run"))
    yardstick = prepare_yardstick(run, Silent())
    measured = measure_checkpoint(run.model, "own", yardstick)
    assert "inspected training images" in yardstick.explained.told, "a network without feature maps"
    masks, labels = run.masks, run.selection.labels
    flips = {0: [], 1: []}
    inspected = StoredImages(run.train, run.selection.indices)
    for image, label in zip(yardstick.hosts.images, yardstick.hosts.labels.tolist(), strict=True):
        answers = {
            bool((run.model(torch.where(masks[row], inspected[row], image)[None]).argmax(1) != run.model(image[None]).argmax(1)).item())
            for row in range(len(labels))
            if int(labels[row]) != label and masks[row].any()
        }
        flips[label].append(answers)
    for label, name in enumerate(yardstick.names):
        number = measured.numbers["swap_flip_rate"][name]
        least, most = (sum(of) for of in ([answers == {True} for answers in flips[label]], [True in answers for answers in flips[label]]))
        assert number.count == len(flips[label]) and least <= number.value * number.count <= most
    shares = {name: measured.numbers["spurious_share"][name] for name in (None, *yardstick.names)}
    counts = torch.bincount(labels).tolist()
    assert shares[None].value == pytest.approx(sum(shares[name].value * count for name, count in zip(yardstick.names, counts, strict=True)) / 12)
    stored = json.loads((finished / "run" / "metrics.json").read_text())["before"]["spurious_share"]
    assert shares[None].value == pytest.approx(stored, abs=1e-6), "as find measured it"


def test_where_the_features_tell_the_share_is_that_of_held_out_images(finished, tmp_path, monkeypatch):
    """The probe itself is tested in test_propagate; here its marks are made by hand, so that the share is known."""

    def corners(model, dataset, inspected, spurious, relevant, clear):
        assert len(dataset) == 12, "the probe reads the held-out images, not the training set"
        scores = torch.full((12, 4, 4), -1.0)
        scores[::2, 0, 0] = 9.0
        return Spread(scores, 0.9)

    monkeypatch.setattr(measure, "spread_verdicts", corners)
    run = load_run(RunFolder(finished / "run"))
    yardstick = prepare_yardstick(run, Silent())
    assert yardstick.explained.told == "12 held-out images, 6 of which show the shortcut"
    assert sum(yardstick.explained.marked) == 6 and sum(yardstick.explained.total) == 12
    measured = measure_checkpoint(run.model, "own", yardstick).numbers["spurious_share"]
    assert 0 < measured[None].value < 1
    assert {name: measured[name].count for name in yardstick.names} == dict(zip(yardstick.names, yardstick.explained.total, strict=True))


def test_a_budget_has_bounds_for_each_class(finished, tmp_path):
    budget = tmp_path / "budget.toml"
    budget.write_text("max_flip_rate = 0.0\n[classes.nut]\nmax_flip_rate = 1.0\n[classes.bolt]\nmax_flip_rate = 1.0\nmin_accuracy = 0.0\n")
    said = json.loads(checked(finished, "--budget", budget, "--json", code=1).stdout)["checkpoints"][0]["findings"]
    assert [(finding["measure"], finding["scope"], finding["bound"]) for finding in said] == [
        ("swap_flip_rate", None, 0.0),
        ("swap_flip_rate", "bolt", 1.0),
        ("accuracy", "bolt", 0.0),
        ("swap_flip_rate", "nut", 1.0),
    ]
    checked(finished, "--budget", budget, "--max-flip-rate", 1)  # an option comes before the file


def test_bounds_are_counted_as_they_were_given(finished):
    def tell(past, bounds, classes=None):
        findings = [
            SimpleNamespace(measure=measure, scope=scope, status="past" if (measure, scope) in past else "within") for measure, scope in places
        ]
        report = SimpleNamespace(findings=[findings], past=[finding for finding in findings if finding.status == "past"])
        return tell_bounds(report, Budget(bounds, classes or {}))

    places = [("swap_flip_rate", None), ("swap_flip_rate", "bolt"), ("swap_flip_rate", "nut")]
    one = tell(places[:2], {"max_flip_rate": 0.1})
    assert one == "the bound given is past: 2 of 3 numbers, of all images and of each class, are on the wrong side"
    assert tell(places[:2], {"max_flip_rate": 0.1}, {"nut": {"max_flip_rate": 0.5}}).startswith("1 of the 2 bounds given is past: 2 of 3")
    assert tell(places, {"max_flip_rate": 0.1}, {"nut": {"max_flip_rate": 0.5}}).startswith("2 of the 2 bounds given are past: 3 of 3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_flip = 0.1", "unknown key 'max_flip'; did you mean 'max_flip_rate'?"),
        ("max_flip_rate = 5", "max_flip_rate = 5; expected a share from 0 to 1"),
        ("max_flip_rate = true", "expected a share from 0 to 1"),
        ("classes = 3", "classes = 3; expected a table of bounds"),
        ("[classes.screw]\nmax_flip_rate = 0.1", "bounds for the class 'screw', which the data do not have; the classes are bolt, nut"),
        ("[classes]\nbolt = 0.1", "classes.bolt = 0.1; expected a table with max_spurious_share, max_flip_rate, min_accuracy"),
        ("max_flip_rate = ", "is not valid TOML"),
    ],
)
def test_a_budget_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "budget.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_budget(tmp_path / "budget.toml", ("bolt", "nut"))


def test_bad_input_is_one_error_and_exit_code_2(finished, tmp_path):
    assert "there is no bound to check" in refused(finished)
    assert "--max-flip-rate = 3.0; expected a share" in refused(finished, "--max-flip-rate", 3)
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    assert "is not a file that torch or safetensors saved" in refused(finished, "--model", tmp_path / "torn.pt", "--max-flip-rate", 1)
    scope: dict = {}
    exec(MODULE, scope)
    torch.save(scope["three"]().state_dict(), tmp_path / "three.pt")
    words = refused(finished, "--model", tmp_path / "three.pt", "--max-flip-rate", 1)
    assert "three.pt does not fit the network" in words and "(3, 16) in the file and (2, 16) in the network" in words
    assert "cannot write" in refused(finished, "--max-flip-rate", 1, "--junit", tmp_path / "no" / "junit.xml")
    assert "is not a run folder" in " ".join(invoke("check", tmp_path, "--max-flip-rate", 1).stderr.split())


def test_a_model_that_is_missing_or_not_finite_is_refused(finished, tmp_path):
    run = load_run(RunFolder(finished / "run"))
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        open_checkpoint(run, tmp_path / "none.pt", Silent())
    weights = safetensors.torch.load_file(finished / "model.safetensors")
    safetensors.torch.save_file({key: value * math.nan for key, value in weights.items()}, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        measure_checkpoint(open_checkpoint(run, tmp_path / "nan.safetensors", Silent()), "nan", prepare_yardstick(run, Silent()))


def test_a_run_without_verdicts_passes_no_model(finished, tmp_path):
    run = copy_run(finished, tmp_path / "copy")
    lines = [json.loads(line) | {"value": "unsure"} for line in (run / "verdicts.jsonl").read_text().splitlines()]
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "there is nothing to check a model against" in refused(run.parent, "--max-flip-rate", 1)
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line | {"value": "relevant"}) + "\n" for line in lines))
    told = checked(run.parent, "--max-flip-rate", 0, "--max-spurious-share", 0)
    assert "Nothing was judged spurious" in " ".join(told.stdout.split())


def test_a_bound_that_nobody_can_measure_is_not_kept(finished, tmp_path):
    yardstick = prepare_yardstick(load_run(RunFolder(finished / "run")), Silent())
    numbers = {key: {name: Number(None, 0) for name in (None, "bolt", "nut")} for key in MEASURES}
    found = judge_numbers(Measured("new", "", numbers), Budget({"max_flip_rate": 0.5}), ["bolt", "nut"])
    assert {finding.status for finding in found} == {"not measured"}
    only_bolts = yardstick.hosts.labels == 0
    donors = yardstick.donors.labels == 0
    images = StoredImages(yardstick.donors.images.dataset, yardstick.donors.images.indices[donors])
    of_bolts = dataclasses.replace(yardstick.donors, images=images, labels=yardstick.donors.labels[donors], masks=yardstick.donors.masks[donors])
    hosts = type(yardstick.hosts)(*(column[only_bolts] for column in vars(yardstick.hosts).values()))
    alone = dataclasses.replace(yardstick, hosts=hosts, donors=of_bolts)
    with pytest.raises(ConfigError, match="swap flip rate, all images could not be measured"):
        check_models([("own", alone.run.model)], Budget({"max_flip_rate": 0.5}), alone, Silent())


def test_junit_is_as_pytest_writes_it(finished, tmp_path):
    """The elements and attributes that pytest's own file has (its schema xunit2), and the counts add up."""
    path = tmp_path / "junit.xml"
    arguments = ("--model", finished / "model.safetensors", "--model", finished / "blind.safetensors", "--max-flip-rate", 0, "--junit", path)
    checked(finished, *arguments, code=1)
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites" and len(root) == 2
    for suite in root:
        assert set(suite.attrib) == {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases) == 3
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
        assert float(suite.get("time")) == pytest.approx(sum(float(case.get("time")) for case in cases), abs=0.01)
        assert {frozenset(case.attrib) for case in cases} == {frozenset({"classname", "name", "time"})}
        assert {prop.get("name") for prop in suite.findall("properties/property")} == {"weights", "split", "images"}
    leaning, blind = root
    assert leaning.get("name") == "model.safetensors" and int(leaning.get("failures")) > 0 and blind.get("failures") == "0"
    failure = leaning.find("testcase/failure")
    assert failure.get("type") == "max_flip_rate" and "at most 0 was asked for" in failure.get("message") == failure.text


# What SARIF 2.1.0 requires of each object (its schema's "required"), and of what GitHub reads in addition.
REQUIRED = {
    "log": {"version", "runs"},
    "run": {"tool", "results"},
    "driver": {"name", "rules", "version"},
    "rule": {"id", "shortDescription", "fullDescription", "help"},
    "result": {"message", "ruleId", "ruleIndex", "level", "locations", "partialFingerprints"},
}


def test_sarif_has_what_its_schema_requires(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    path = tmp_path / "check.sarif"
    checked(finished, "--model", finished / "model.safetensors", "--max-flip-rate", 0, "--max-spurious-share", 0.01, "--sarif", path, code=1)
    log = json.loads(path.read_text())
    assert log["version"] == "2.1.0" and log["$schema"] == SCHEMA and REQUIRED["log"] <= log.keys()
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert REQUIRED["run"] <= run.keys() and REQUIRED["driver"] <= driver.keys()
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]
    for rule in driver["rules"]:
        assert REQUIRED["rule"] <= rule.keys() and all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))
    assert run["results"] and len({result["partialFingerprints"]["bound/v1"] for result in run["results"]}) == len(run["results"])
    for result in run["results"]:
        assert REQUIRED["result"] <= result.keys() and result["kind"] == "fail" and result["level"] in ("none", "note", "warning", "error")
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] and result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"] == {"artifactLocation": {"uri": "model.safetensors"}, "region": {"startLine": 1}}
    checked(finished, "--max-flip-rate", 1, "--sarif", path)
    assert json.loads(path.read_text())["runs"][0]["results"] == [], "within all bounds there is nothing to show"


def test_the_example_is_a_workflow_that_calls_the_command(finished, tmp_path):
    """The command in the workflow is one that exists, with options that it has, and both files are uploaded also where it fails."""
    file = Path(__file__).parents[2] / "examples" / "github-action.yml"
    (job,) = yaml.safe_load(file.read_text())["jobs"].values()
    steps = job["steps"]
    command = next(step["run"] for step in steps if "rightreasons check" in step.get("run", ""))
    words = command.replace("\\\n", " ").split()
    options = {word for word in words[words.index("check") :] if word.startswith("--")}
    shown = invoke("check", "--help").output
    assert options >= {"--model", "--budget", "--junit", "--sarif"} and all(option in shown for option in options)
    uploads = [step for step in steps if "upload" in step.get("uses", "")]
    assert len(uploads) == 2 and all("always()" in step["if"] for step in uploads)


def test_two_files_of_one_name_keep_apart():
    paths = [Path("/a/x/new.pt"), Path("/a/y/new.pt"), Path("/a/old.pt")]
    assert _name_files([*paths, paths[0]]) == {"x/new.pt": paths[0], "y/new.pt": paths[1], "old.pt": paths[2]}
