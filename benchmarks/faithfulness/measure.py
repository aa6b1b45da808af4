"""Which explanation finds the mark that a network uses? The product's two beside Captum, zennit's LRP, AttnLRP's rules, Grad-CAM and noise.

The networks are the studies' own shortcut models, trained where ``--out`` does not have them yet: solar's EfficientNet-Lite0, a small ResNet on
stamps, and the small transformer on DecoyMNIST. Every heatmap is smoothed as the product smooths it before it cuts segments.

What is measured on images that are decided by their mark (the answer changes if the mark, two pixels widened, is filled with the baselines' mean):
    lift        the mark's share of the positive effect over its share of the area; also on training images, by which explanations are chosen
    pointing    the share of images in which the largest effect lies in the mark, two pixels widened
    deletion    the probability of the answer while pixels are replaced by the baselines' mean, largest effect first: the area under that curve
    insertion   the same while they are put back into that mean
    agreement   Spearman's correlation with the heatmaps of the other seeds' networks, of the same images and classes (test images of seed 0)
    untrained   the same with heatmaps of the network with random weights: a heatmap that stays alike does not tell of what was learnt
    seconds     of the processor for each image

    python benchmarks/faithfulness/measure.py [--networks solar ...] [--explanations grad-cam ...] [--out benchmarks/results]
    python benchmarks/faithfulness/measure.py --table  # Markdown from the files: the tables of docs/results.md

One JSON file for each network, seed and explanation, so that it can be stopped and goes on. Captum 0.9.0 and zennit 0.5.1 (pip install captum zennit)
are needed for their rows alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.faithfulness.curves import correlate_ranks, count_hits, measure_areas
from benchmarks.faithfulness.explanations import EXPLANATIONS, Asked, explain
from benchmarks.faithfulness.table import print_tables

from rightreasons.common.files import write_atomically, write_text
from rightreasons.common.progress import Silent
from rightreasons.common.seeds import seeded
from rightreasons.data.loading import read_all
from rightreasons.explain.evidence import read_baselines, smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.networks.classifier import Classifier, as_classifier
from rightreasons.pipeline.find import trained_model
from rightreasons.project.project import Project, open_project
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.metrics import spurious_lift
from rightreasons.scoring.scores import NEAR_PIXELS, SCORED_BASELINES
from rightreasons.studies.store import place_model

CONVOLUTIONAL = ("deeplift-shap", "captum-deepliftshap", "lrp-epsilon-plus", "grad-cam", "noise", "integrated-gradients")
ATTENTION = ("deeplift-shap", "captum-deepliftshap", "attnlrp-epsilon", "attnlrp-gamma", "grad-cam", "noise", "integrated-gradients")
TRANSFORMER = {"source": "packaged:small-vit", "epochs": 30}
RESNET = {"source": "timm:test_resnet", "epochs": 20, "batch_size": 32, "learning_rate": 3e-3}


class Case(NamedTuple):
    """A network's configuration and explanations; its seeds; how many images are explained, and on how many heatmaps are compared with others."""

    tables: dict[str, Any]
    explanations: tuple[str, ...]
    seeds: int
    explained: int
    compared: int


CASES = {
    "stamps-resnet": Case({"data": {"path": "stamps", "size": 96}, "model": RESNET}, CONVOLUTIONAL, 3, 40, 16),
    "solar": Case({"data": {"path": "solar"}}, CONVOLUTIONAL, 2, 24, 8),
    "decoy-mnist-vit": Case({"data": {"path": "decoy-mnist:packaged"}, "model": TRANSFORMER}, ATTENTION, 2, 40, 16),
}
NEEDED = {"captum-deepliftshap": "captum", "lrp-epsilon-plus": "zennit"}
# How many images with a mark are looked at for those that it decides.
TRIED = 240


class Network(NamedTuple):
    """A trained network with the project that it belongs to, its baselines, and the width of smoothing."""

    project: Project
    model: Classifier
    baselines: Tensor
    smooth: float


class Decided(NamedTuple):
    """Images whose answer changes without their mark: their answers, their marks, and their share of the images with a mark that were tried."""

    images: Tensor
    answers: Tensor
    masks: Tensor
    share: float


@cache
def open_network(name: str, seed: int, out: Path) -> Network:
    project = open_project({**CASES[name].tables, "run": {"seed": seed}}, source=name, root=Path.cwd())
    folder = RunFolder(out / "faithfulness-work" / f"{name}-{seed}")
    place_model(project, folder, out / "models", Silent())
    model = as_classifier(trained_model(project, folder, Silent())).eval()
    return Network(
        project, model, read_baselines(model, project.train, project.config, SCORED_BASELINES), smooth_width(model, project.config.segment)
    )


@cache
def choose_decided(name: str, seed: int, out: Path, split: str) -> Decided:
    """Some of the images with a mark, drawn by the seed."""
    network = open_network(name, seed, out)
    truth = network.project.task.truth[split]
    marked = [index for index in range(len(truth.groups)) if truth.mask(index) is not None]
    drawn = torch.randperm(len(marked), generator=seeded(seed, "faithfulness", split))[:TRIED].tolist()
    chosen = [marked[place] for place in drawn]
    images = read_all(network.project.task.splits[split], chosen).images
    masks = torch.stack([mask for index in chosen if (mask := truth.mask(index)) is not None])
    answers = predict(network.model, images).argmax(1)
    without = torch.where(widen(masks)[:, None], network.baselines.mean(0), images)
    changed = predict(network.model, without).argmax(1) != answers
    kept = changed.nonzero()[: CASES[name].explained, 0]
    return Decided(images[kept], answers[kept], masks[kept], float(changed.double().mean()))


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Probabilities."""
    with torch.no_grad():
        return torch.cat([model(part).softmax(1) for part in images.split(64)])


def widen(masks: Tensor) -> Tensor:
    return F.max_pool2d(masks[:, None].float(), 2 * NEAR_PIXELS + 1, stride=1, padding=NEAR_PIXELS)[:, 0] > 0


def smoothed(network: Network, explanation: str, images: Tensor, targets: Tensor) -> Tensor:
    return smooth_heatmaps(explain(explanation, Asked(network.model, images, network.baselines, targets)), network.smooth)


def shared_images(name: str, out: Path) -> tuple[Tensor, Tensor]:
    """Images on which all seeds' networks are compared, and the classes that are explained: answers of seed 0's network."""
    shared, count = choose_decided(name, 0, out, "test"), CASES[name].compared
    return shared.images[:count], shared.answers[:count]


def compared_heatmaps(name: str, seed: int, explanation: str, out: Path) -> Tensor:
    """Heatmaps by this seed's network of the shared images, kept in a file for the other seeds."""
    kept = out / "faithfulness-work" / "heatmaps" / f"{name}-{seed}-{explanation}.safetensors"
    if not kept.exists():
        heatmaps = smoothed(open_network(name, seed, out), explanation, *shared_images(name, out))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda part: safetensors.torch.save_file({"heatmaps": heatmaps.contiguous()}, part))
    return safetensors.torch.load_file(kept)["heatmaps"]


def untrained(network: Network, images: Tensor) -> Network:
    """The same network with new random weights, and with the statistics of these images where it has any."""
    model = copy.deepcopy(network.model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train(bool(norms))(images)
    return network._replace(model=model.eval())


def measure(name: str, seed: int, explanation: str, out: Path) -> dict[str, Any]:
    network = open_network(name, seed, out)
    found: dict[str, Any] = {"network": name, "seed": seed, "explanation": explanation}
    for split in ("train", "test"):
        decided = choose_decided(name, seed, out, split)
        start = time.process_time()
        heatmaps = smoothed(network, explanation, decided.images, decided.answers)
        found["seconds"] = round((time.process_time() - start) / len(heatmaps), 3)
        lifts = [spurious_lift(heatmap[None], mask[None]) or 0.0 for heatmap, mask in zip(heatmaps, decided.masks, strict=True)]
        found[split] = {
            "images": len(heatmaps),
            "decided": round(decided.share, 3),
            "area": round(float(decided.masks.double().mean()), 4),
            "lifts": [round(lift, 2) for lift in lifts],
            "pointing": round(count_hits(heatmaps, widen(decided.masks)), 3),
        }
    areas = measure_areas(
        lambda images: predict(network.model, images).gather(1, decided.answers[:, None])[:, 0], decided.images, network.baselines.mean(0), heatmaps
    )
    found["test"] |= {key: round(value, 4) for key, value in areas._asdict().items()}
    own = compared_heatmaps(name, seed, explanation, out)
    others = [compared_heatmaps(name, other, explanation, out) for other in range(CASES[name].seeds) if other != seed]
    found["agreement"] = [round(correlate_ranks(own, other), 3) for other in others]
    images, answers = shared_images(name, out)
    found["untrained"] = round(correlate_ranks(own, smoothed(untrained(network, images), explanation, images, answers)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--explanations", nargs="+", default=list(EXPLANATIONS), choices=list(EXPLANATIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = options.out / "faithfulness"
    if options.table:
        print_tables(results)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        for explanation in (row for row in CASES[name].explanations if row in options.explanations):
            if explanation in NEEDED and importlib.util.find_spec(NEEDED[explanation]) is None:
                print(f"{name} {explanation}: left out, since {NEEDED[explanation]} is not installed", flush=True)
                continue
            for seed in range(CASES[name].seeds):
                place = results / f"{name}-{seed}-{explanation}.json"
                if not place.exists():
                    write_text(place, json.dumps(measure(name, seed, explanation, options.out)) + "\n")
                print(place.read_text(encoding="utf-8"), end="", flush=True)


if __name__ == "__main__":
    main()
