"""Ours with the true masks of the inspected images in place of judged segments. Labels used: masks."""

from __future__ import annotations

import torch
from torch import nn

from rightreasons.networks.classifier import copy_model
from rightreasons.pipeline.fix import align, build_alignment
from rightreasons.studies.methods.labels import TrueMasks
from rightreasons.studies.methods.method import PASTED, Bench, Method


def train(bench: Bench, labels: TrueMasks) -> nn.Module:
    """Fine-tunes with one spurious segment per image, its ground-truth mask; all beside it is relevant."""
    run = bench.run
    found = [labels.mask(index) for index in run.selection.indices.tolist()]
    empty = torch.zeros(run.attribution.heatmaps.shape[1:], dtype=torch.bool)
    masks = torch.stack([empty if mask is None else mask for mask in found])
    marked = masks.flatten(1).any(1)
    model = copy_model(run.model)
    # An image without a mark may be filled anywhere, as any other image without one.
    align(model, run, build_alignment(run, masks, ~masks & marked[:, None, None], ~marked, bench.reporter), reporter=bench.reporter)
    return model


METHOD = Method(train, TrueMasks, PASTED)
