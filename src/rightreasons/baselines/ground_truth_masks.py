"""Upper bound: ours with the true masks of the inspected images in place of judged segments. Labels used: masks."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rightreasons.align import align_model, build_alignment_set
from rightreasons.baselines import Bench


def train(bench: Bench) -> nn.Module:
    """Fine-tunes with one segment per image: its ground-truth mask."""
    run = bench.run
    truth = bench.project.task.truth["train"]
    found = [truth.mask(index) for index in run.selection.indices.tolist()]
    empty = torch.zeros(run.attribution.heatmaps.shape[1:], dtype=torch.bool)
    masks = torch.stack([empty if mask is None else mask for mask in found])
    alignment = build_alignment_set(run.train, run.selection.indices, masks=masks, protected=torch.zeros_like(masks), segments=masks.long() - 1)
    model = copy.deepcopy(run.model)
    with bench.reporter.stage("align") as advance:
        align_model(model, run.train, alignment, config=run.config.align, seed=run.config.run.seed, progress=advance)
    return model
