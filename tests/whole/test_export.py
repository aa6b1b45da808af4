"""A model is handed over: every file opens without this package and gives the model's own answers, and the card says what is known."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

from rightreasons.data.decode import decode_image
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.presets import Preset
from rightreasons.pipeline.handover.card import escape_words, find_interval, list_limits, tell_judges, tell_verdict, write_card
from rightreasons.pipeline.handover.export import export_model
from rightreasons.pipeline.handover.formats import FORMATS, Formats, Written
from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.metrics import wilson_interval
from tests.support.helpers import environment, invoke, the_error, write_scripted

# What a process does that has never heard of this package: both programs and the weights, on images from a file.
ELSEWHERE = """
import sys
sys.modules["rightreasons"] = None  # from here on its import fails
import json, numpy, onnxruntime, torch
from safetensors.torch import load_file
folder, images = sys.argv[1], torch.load(sys.argv[2])
program = torch.export.load(f"{folder}/model.pt2").module()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
network.load_state_dict(load_file(f"{folder}/model.safetensors"))
found = {"torch": [], "onnx": [], "safetensors": []}
for batch in images.split([1, 3, 7]):
    found["torch"] += program(batch).tolist()
    found["onnx"] += session.run(None, {"images": batch.numpy()})[0].tolist()
    found["safetensors"] += network(batch).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run that is found, fixed and exported by the command line; and a copy of its folder from before the repair."""
    root = tmp_path_factory.mktemp("export")
    config = write_scripted(root, splits=True)
    for arguments in (["find", config, "--out", root / "run"], ["fix", root / "run"]):
        if arguments[0] == "fix":
            shutil.copytree(root / "run", root / "unfixed")
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
    result = invoke("export", root / "run", "--to", root / "out", "--json")
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(root=root, run=root / "run", out=root / "out", told=json.loads(result.stdout))


def test_a_process_without_this_package_gets_the_same_logits(project):
    run = load_run(RunFolder(project.run))
    images = torch.stack([run.validation[row][0] for row in range(11)])
    torch.save(images, project.root / "images.pt")
    code = [sys.executable, "-c", ELSEWHERE, str(project.out), str(project.root / "images.pt")]
    result = subprocess.run(code, capture_output=True, text=True, timeout=120, env=environment(), cwd=project.root)
    assert result.returncode == 0, result.stderr
    assert run.aligned is not None
    with torch.no_grad():
        expected = run.aligned(images)
        assert not torch.allclose(expected, run.model(images), atol=1e-3), "the original would pass as well"
    for name, logits in json.loads(result.stdout).items():
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-5), name


def test_the_card_s_own_code_classifies_a_file(project):
    """The snippet in the card, run as it stands beside a picture."""
    run = load_run(RunFolder(project.run))
    picture = project.root / "images" / run.validation.entries[0].name
    shutil.copy(picture, project.out / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (project.out / "README.md").read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project.out, env=environment(), timeout=60)
    (project.out / "image.png").unlink()
    assert run.aligned is not None
    with torch.no_grad():
        answer = run.aligned(run.validation[0][0][None]).argmax()
    assert result.stdout.strip() == run.project.task.classes[answer], result.stderr


def test_the_card_s_own_code_reads_a_turned_and_a_transparent_picture_as_this_package_does(project, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=turned)
    shutil.copytree(project.out, tmp_path, dirs_exist_ok=True)
    (code,) = re.findall(r"```python\n(.*?)```", (project.out / "README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", f"{code}\nnumpy.save('pixels.npy', pixels)"], check=True, cwd=tmp_path, env=environment(), timeout=60)
    expected = decode_image(tmp_path / "image.png", mode="rgb", size=(16, 16)).float() / 255
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "pixels.npy"))[0], expected)
    assert json.loads((project.out / "preprocessing.json").read_text())["read"] == {"orientation": "by EXIF", "transparency": "on white"}


def test_what_lies_beside_the_files(project):
    told = json.loads((project.out / "preprocessing.json").read_text())
    assert told["output"] == {"name": "logits", "classes": ["bolt", "nut"], "order_inside_network": None}
    assert told["input"]["shape"] == [None, 3, 16, 16] and told["resize"]["filter"] is None, "the images have that size"
    assert set(told["files"]) == {"model.safetensors", "model.pt2", "model.onnx"} and told["not_made"] == {}
    for entry in told["files"].values():
        for name, expected in entry["sha256"].items():
            assert hashlib.sha256((project.out / name).read_bytes()).hexdigest() == expected
        assert entry["largest_difference"] < 1e-4 and set(entry["differences_by_batch_size"]) == {"1", "2", "5"}
    assert {row["file"]: row["problem"] for row in project.told["formats"]} == dict.fromkeys(told["files"])


def test_no_file_names_a_folder_of_this_machine_or_an_image(project):
    names = {path.name for path in (project.root / "images").rglob("*.png")}
    folders = {str(project.root), str(next(iter(sys.path[1:]))), "site-packages", "/rightreasons/"}
    for path in project.out.iterdir():
        content = path.read_bytes()
        assert not [word for word in folders | names if word.encode() in content], path.name


def test_the_card_is_one_by_hugging_face_s_reader(project):
    card = huggingface_hub.ModelCard((project.out / "README.md").read_text())
    assert card.data.license is None, "that is the owner's to say"
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "pytorch"
    metrics = json.loads((project.run / "metrics.json").read_text())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == metrics["after"]["accuracy"] and results["swap_flip_rate"] == metrics["after"]["swap_flip_rate"]
    assert "A script gave the verdicts. No vision-language model took part" in card.text
    assert metrics["explanation"] in card.text and "To be stated by the owner" in card.text
    low, high = wilson_interval(round(metrics["after"]["accuracy"] * 20), 20)
    assert f"({low:.3f} to {high:.3f})" in card.text


def test_an_export_takes_the_place_of_an_earlier_one(project):
    again = shutil.copytree(project.out, project.root / "again")
    (again / ".export-killed").mkdir()
    assert invoke("export", project.run, "--to", again, "--formats", "safetensors").exit_code == 0
    assert sorted(path.name for path in again.iterdir()) == ["README.md", "model.safetensors", "preprocessing.json"]
    assert "model.onnx" not in (again / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{root}/unfixed", "--to", "{root}/new"], "was not repaired yet: run `rightreasons fix"),
        (["{root}/unfixed", "--to", "{root}/new", "--model", "rejected"], "has no rejected repair"),
        (["{run}", "--to", "{root}/images"], "is not empty and not an earlier export"),
        (["{run}", "--to", "{root}/parts.toml"], "is a file, and a folder was expected"),
        (["{run}", "--to", "{root}/new", "--formats", "tflite"], "unknown format 'tflite': choose of safetensors, torch, onnx"),
        (["{run}", "--to", "{root}/new", "--formats", ","], "unknown format (none was named)"),
        (["{root}/images", "--to", "{root}/new"], "is not a run folder"),
    ],
)
def test_what_is_refused(project, arguments, words):
    filled = [text.format(root=project.root, run=project.run) for text in arguments]
    assert words in the_error(invoke("export", *filled)).replace("\n", " ")
    assert not (project.root / "new").exists()


def test_the_original_is_handed_over_only_if_asked_for(project):
    result = invoke("export", project.root / "unfixed", "--to", project.root / "first", "--model", "original", "--formats", "safetensors", "--json")
    assert json.loads(result.stdout)["remarks"] == ["This is the model as it was before the repair."]
    card = (project.root / "first" / "README.md").read_text()
    assert "the original model" in card and "Nothing: these are the weights that were examined." in card and "| | before |" in card


def outcome(project, tmp_path, **changes):
    """A copy of the run whose repair ended in another way."""
    run = shutil.copytree(project.run, tmp_path / "run")
    stored = json.loads((run / "alignment.json").read_text())
    stored["result"] |= changes
    (run / "alignment.json").write_text(json.dumps(stored))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["alignment"] |= changes
    if changes["outcome"] == "original kept":
        shutil.copy(run / "aligned.safetensors", run / "rejected.safetensors")
        metrics["rejected"] = metrics["after"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def test_a_rejected_repair_needs_to_be_asked_for_and_its_card_says_so(project, tmp_path):
    run = outcome(project, tmp_path, outcome="original kept", reason="accuracy would fall from 0.9 to 0.5")
    error = the_error(invoke("export", run, "--to", tmp_path / "out"))
    assert "the harm guard rejected the repair" in error and "accuracy would fall from 0.9 to 0.5" in error and "--model rejected" in error
    result = invoke("export", run, "--to", tmp_path / "out", "--model", "rejected", "--formats", "safetensors")
    assert result.exit_code == 0 and "The harm guard rejected this repair: accuracy would fall" in result.stderr
    assert "**The harm guard rejected this repair: accuracy would fall from 0.9 to 0.5." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": "nothing to change"}, "Nothing was to be repaired"),
        ({"outcome": "accepted", "reason": "it answers one class"}, "a person accepted it all the same. The guard's reason: it answers one class"),
    ],
)
def test_the_other_ends_of_a_repair_are_exported_and_told(project, tmp_path, changes, words):
    done = export_model(load_run(RunFolder(outcome(project, tmp_path, **changes))), tmp_path / "out", formats=["safetensors"])
    assert any(words in remark for remark in done.remarks) and words in (tmp_path / "out" / "README.md").read_text()


class Branching(nn.Module):
    """Decides in Python on an image's pixels, which no program can follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 2)

    def forward(self, x):
        out = self.layer(x.flatten(1))
        return out if float(x.sum()) > -1 else -out


class Counting(Branching):
    """Divides by the number of images, which a trace takes for a constant."""

    def forward(self, x):
        return self.layer(x.flatten(1)) / float(len(x))


def formats(network, folder):
    return Formats(Classifier(network), torch.rand(8, 3, 4, 4), ("a", "b"), folder)


def test_a_format_that_cannot_express_the_network_says_why_and_the_others_are_made(tmp_path, build_seeded):
    written = {name: formats(build_seeded(Branching), tmp_path).write(name) for name in FORMATS}
    assert written["torch"].problem and written["torch"].difference is None
    assert written["safetensors"].problem is None and written["onnx"].problem is None, "a trace has the branch that every image takes"


def test_a_batch_axis_of_fixed_length_is_found_out(tmp_path, build_seeded):
    problem = formats(build_seeded(Counting), tmp_path).write("onnx").problem
    assert problem and "differ from the model's by more than 0.001 of the largest" in problem


def test_normalisation_order_and_grey_images_go_into_the_programs(tmp_path, build_seeded):
    preset = Preset(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channels=(2, 1, 0))
    network = build_seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    maker = Formats(Classifier(network, preset, order=(1, 0)), torch.rand(8, 1, 4, 4), ("a", "b"), tmp_path)
    for name in ("safetensors", "torch"):  # ONNX is made of the latter
        written = maker.write(name)
        assert written.problem is None and written.difference < 1e-5, name


def test_the_command_ends_with_an_error_if_a_format_is_missing(project, monkeypatch):
    def refuse(self, path):
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setitem(FORMATS, "onnx", ("model.onnx", refuse))
    target = ["--formats", "safetensors,onnx", "--to"]
    result = invoke("export", project.run, *target, project.root / "partly")
    assert result.exit_code == 1 and "model.onnx: RuntimeError: no such operator. The others are in" in result.stderr.replace("\n", " ")
    assert json.loads((project.root / "partly" / "preprocessing.json").read_text())["not_made"] == {"model.onnx": "RuntimeError: no such operator"}
    assert "model.onnx could not be made: RuntimeError: no such operator" in (project.root / "partly" / "README.md").read_text()
    monkeypatch.setitem(FORMATS, "safetensors", ("model.safetensors", refuse))
    assert "no format could be made of this model" in the_error(invoke("export", project.run, *target, project.root / "none"))


def test_the_card_says_whether_the_model_is_fit_for_use(project):
    fitness = json.loads((project.run / "metrics.json").read_text())["fitness"]
    card = (project.out / "README.md").read_text()
    (section,) = re.findall(r"## Is it fit for use\?\n(.*?)\n## ", card, re.DOTALL)
    said = {"fit for use": "**Fit for use**", "not fit": "**Not fit for use**", "cannot tell": "**Cannot tell**"}[fitness["verdict"]]
    assert said in section and "The verdict is about shortcuts alone" in section
    for name, item in fitness["classes"].items():
        assert f"| {name} | {item['verdict']} | {escape_words('; '.join(item['reasons']))} |" in section


def test_the_verdict_is_that_of_the_exported_model():
    fitness = {
        "verdict": "fit for use",
        "model": "after",
        "classes": {
            "a": {"verdict": "fit for use", "reasons": ["it is right", "it is rid of it"], "before": "not fit"},
            "b": {"verdict": "fit for use", "reasons": ["it is right"], "before": "cannot tell"},
        },
    }
    after, before, rejected = (tell_verdict({"fitness": fitness}, scores) for scores in ("after", "before", "rejected"))
    assert after.verdict == "fit for use" and after.classes[0] == ("a", "fit for use", "it is right; it is rid of it") and not after.remark
    assert before.verdict == "not fit" and [told for _, told, _ in before.classes] == ["not fit", "cannot tell"]
    assert rejected.verdict is None and not rejected.classes and "No verdict was given of this model" in rejected.remark
    assert "by a version that gave none" in tell_verdict({}, "after").remark


def test_a_repair_that_did_not_take_is_told_with_its_numbers(project, tmp_path):
    run = outcome(project, tmp_path, outcome="aligned", effect="did not take")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["before"]["swap_flip_rate"], metrics["after"]["swap_flip_rate"] = 0.429, 0.238
    (run / "metrics.json").write_text(json.dumps(metrics))
    done = export_model(load_run(RunFolder(run)), tmp_path / "out", formats=["safetensors"])
    words = "The repair did not take: pasting what was judged spurious in still changes 23.8 % of the answers, and it was 42.9 % before."
    assert words in done.remarks


def test_a_card_of_deep_images_says_that_its_code_reads_others(project, tmp_path):
    run, metrics = load_run(RunFolder(project.run)), json.loads((project.run / "metrics.json").read_text())
    written = [Written("onnx", "model.onnx", differences={1: 0.0})]
    write_card(tmp_path / "README.md", run, metrics, which="aligned", scores="after", written=written, remarks=())
    assert "through the `window`" not in (tmp_path / "README.md").read_text()
    deep = replace(run, project=replace(run.project, task=replace(run.project.task, windows={"whole numbers": (0.0, 4095.0)})))
    write_card(tmp_path / "README.md", deep, metrics, which="aligned", scores="after", written=written, remarks=())
    assert "Those of more go through the `window` of preprocessing.json first" in (tmp_path / "README.md").read_text()


def test_words_from_outside_stay_words_in_the_card(project, tmp_path):
    run, metrics = load_run(RunFolder(project.run)), json.loads((project.run / "metrics.json").read_text())
    metrics |= {"task": 'a"\n- b: <script>', "explanation": "see [this](http://x) | that"}
    write_card(tmp_path / "README.md", run, metrics, which="aligned", scores="after", written=(), remarks=("<b>loud</b>",))
    card = huggingface_hub.ModelCard((tmp_path / "README.md").read_text())
    assert card.data.eval_results[0].dataset_name == 'a"\n- b: <script>'
    assert "<script>" not in card.text and "<b>" not in card.text and r"\[this\]" in card.text and r"\| that" in card.text
    assert escape_words("a\n# b") == r"a \# b"


def test_who_judged_is_told_without_folders():
    critic = {"backend": "openai", "model": "Qwen/VL_7", "simulated": False, "overruled": 0, "segments": 9}
    assert tell_judges(critic) == r"The vision-language model Qwen/VL\_7 (openai) gave the verdicts."
    assert tell_judges(critic | {"backend": "local", "model": "/home/ann/VL", "overruled": 2}) == (
        "The vision-language model VL (local) gave the verdicts, and people decided on 2 of 9 segments."
    )
    assert tell_judges(critic | {"simulated": True}).startswith("A simulated critic, made of ground-truth masks")


def test_intervals_of_scores():
    groups = {"a": {"accuracy": 0.5, "count": 10}, "b": {"accuracy": 0.9, "count": 30}}
    scores = {"accuracy": 0.8, "worst_group_accuracy": 0.5, "groups": groups, "mu_align": 0.9}
    assert find_interval(scores, "accuracy", 40) == wilson_interval(32, 40)
    assert find_interval(scores, "worst_group_accuracy", 40) == wilson_interval(5, 10)
    assert find_interval(scores, "mu_align", 40) is None
    assert find_interval(scores | {"intervals": {"accuracy": [0.7, 0.9]}}, "accuracy", 40) == (0.7, 0.9), "over objects, where they are known"


def test_the_limits_are_this_run_s(project):
    metrics = json.loads((project.run / "metrics.json").read_text())
    assert any("Only 12 training images" in limit for limit in list_limits(metrics, "test"))
    metrics["critic"] |= {"simulated": True, "waiting": 3}
    metrics["coverage"]["judged"] -= 2
    told = " ".join(list_limits(metrics, "validation"))
    assert "a real critic errs more often" in told and "3 verdicts wait" in told and "2 of 36 segments" in told and "no test split" in told
