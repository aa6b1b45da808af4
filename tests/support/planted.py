"""A small problem with a planted shortcut on which rivals are tried: two pixels, one of which tells the class and the other the attribute."""

from __future__ import annotations

import torch
from torch import nn

from rightreasons.common.progress import Silent
from rightreasons.config import parse_config
from rightreasons.data.task import Task, TensorImages
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.project.project import Project
from rightreasons.project.rehearsal import Rehearsal
from rightreasons.records import Attribution, Criticism, GroundTruth, Segmentation, Selection
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder
from rightreasons.studies.methods.method import Bench
from rightreasons.studies.methods.training import worst_group_accuracy


def plant(counts, seed):
    """Two pixels: a noisy one tells the class, a clear one the attribute. ``counts`` are those of (class, attribute)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for (label, _), count in counts.items() for _ in range(count)])
    attributes = torch.tensor([attribute for (_, attribute), count in counts.items() for _ in range(count)])
    core = 80 + 90 * labels + 35 * torch.randn(len(labels), generator=generator)
    pixels = torch.stack([core.clamp(0, 255), 255.0 * attributes], 1).to(torch.uint8).view(-1, 1, 1, 2)
    truth = GroundTruth([f"{label}{attribute}" for label, attribute in zip(labels.tolist(), attributes.tolist(), strict=True)], lambda _: None)
    return TensorImages(pixels, labels), truth


def make_bench(folder, few=15, train=True, seed=0):
    counts = {(0, 0): 285, (0, 1): few, (1, 0): few, (1, 1): 285}
    images, truth = plant({key: count for key, count in counts.items() if count}, 0)
    held_out, held_truth = plant(dict.fromkeys(counts, 80), 1)
    settings = {
        "data": {"path": "x"}, "model": {"source": "x"}, "classes": {"zero": {"description": "x"}, "one": {"description": "x"}},
        "critic": {"lvlm": "simulated:"}, "align": {"epochs": 12, "learning_rate": 0.03}, "run": {"seed": seed},
    }  # fmt: skip
    torch.manual_seed(seed)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)))
    if train:
        train_plainly(model, images, recipe=Recipe(4, 0.01), batch_size=64, seed=seed)
    config = parse_config(settings, source="x")
    splits = {"train": images, "validation": held_out, "test": held_out}
    task = Task("planted", ("zero", "one"), splits, "x", truth={"train": truth, "validation": held_truth})
    project = Project(config, folder, task, (), model, Rehearsal({}), is_trained=True)
    nothing = torch.zeros(0, dtype=torch.long)
    run = Run(
        project, RunFolder(folder), model, Selection("random", nothing, nothing, torch.zeros(0)),
        Attribution(torch.zeros(0, 1, 2), nothing, torch.zeros(0)),
        Segmentation(torch.zeros(0, 1, 2, dtype=torch.long), torch.zeros(0, 1, 2, dtype=torch.bool), torch.ones(0, 1), ()),
        [], [], [], Criticism("simulated:", True),
    )  # fmt: skip
    return Bench(run, folder, Silent())


def worst(model):
    images, truth = plant(dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)], 100), 2)
    names = sorted(set(truth.groups))
    return worst_group_accuracy(model, images, torch.tensor([names.index(group) for group in truth.groups]))
