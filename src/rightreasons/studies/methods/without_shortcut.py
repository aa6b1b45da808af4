"""Upper bound: the same network, trained as long as ours in all, on the same images without the correlation. Labels used: none, but other data."""

from __future__ import annotations

import math

from torch import nn

from rightreasons.data.loading import count_images
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.project.project import fresh_model
from rightreasons.repair.align import images_seen
from rightreasons.studies.methods.labels import OtherImages
from rightreasons.studies.methods.method import LAST, Bench, Method


def train(bench: Bench, labels: OtherImages) -> nn.Module:
    """Plain training from the first weights, on as many images as the shortcut model and ours see together."""
    project, config = bench.run.project, bench.run.config
    data = labels.train
    model = fresh_model(project)
    extra = math.ceil(images_seen(config.align, count_images(data)) / count_images(data))
    with bench.reporter.stage("train") as advance:
        train_plainly(
            model,
            data,
            recipe=Recipe(config.model.epochs + extra, config.model.learning_rate),
            batch_size=config.model.batch_size,
            seed=config.run.seed,
            flips=config.data.flips,
            progress=advance,
        )
    return model


METHOD = Method(train, OtherImages, LAST)
