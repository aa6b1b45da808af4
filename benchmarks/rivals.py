"""SUBG, GroupDRO and JTT beside SpuCo's: what each shows the network, GroupDRO's loss step by step, and accuracy on a small planted problem.

Needs SpuCo beside this package: pip install spuco==2.0.3 (Python 3.11).

python benchmarks/rivals.py [--seeds 5] --json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.planted import make_bench, worst

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch, count_images, read_batches
from rightreasons.networks.predictions import predict_labels
from rightreasons.studies.methods import METHODS
from rightreasons.studies.methods.group_dro import GroupLoss
from rightreasons.studies.methods.jtt import repeat_errors
from rightreasons.studies.methods.subg import subsample_groups
from rightreasons.studies.methods.training import drawn_per_epoch

GROUPS, UPWEIGHT, BATCH = 4, 20, 64


def compare_losses(steps: int = 200) -> dict[str, float]:
    """The largest relative difference between the two losses, and between the groups' weights, over random batches with all groups in them."""
    weighted_loss = import_module("spuco.robust_train.group_dro").GroupWeightedLoss
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(GROUPS).repeat(BATCH // GROUPS)
    ours, theirs = GroupLoss(groups), weighted_loss(nn.CrossEntropyLoss(reduction="none"), GROUPS)
    losses, weights = 0.0, 0.0
    for _ in range(steps):
        logits, labels = torch.randn(BATCH, 2, generator=generator), torch.randint(2, (BATCH,), generator=generator)
        one, other = ours(Batch(images=logits, labels=labels, indices=torch.arange(BATCH)), logits).item(), theirs(logits, labels, groups).item()
        losses = max(losses, abs(one - other) / abs(other))
        weights = max(weights, (ours.weights - theirs.group_weights).abs().max().item())
    return {"loss": losses, "weights": weights}


def compare_on(seed: int) -> dict[str, dict[str, object]]:
    """What each shows and reaches (accuracy of the worst test group), from one shortcut model. Theirs take as many steps, and their last weights."""
    robust, data = import_module("spuco.robust_train"), import_module("spuco.datasets")
    import_module("spuco.utils.random_seed").set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder), seed=seed)
        run, align = bench.run, bench.run.config.align
        (train,) = read_batches(run.train, batch_size=count_images(run.train))
        names = sorted(set(run.project.task.truth["train"].groups))
        groups = torch.tensor([names.index(name) for name in run.project.task.truth["train"].groups])
        images = TensorDataset(train.images, train.labels)
        partition = {(0, group): (groups == group).nonzero().flatten().tolist() for group in range(GROUPS)}
        answers = predict_labels(run.model, read_batches(run.train))
        wrong = import_module("spuco.group_inference").JTTInference(answers.predicted.tolist(), train.labels.tolist()).infer_groups()[0, 1]
        errors = answers.indices[~answers.correct]
        shown = repeat_errors(len(train), errors, UPWEIGHT)
        steps = align.epochs * math.ceil(drawn_per_epoch(run) / align.batch_size)

        def trained(method: Any, shown_from: Any, per_epoch: int, **more: object) -> tuple[float, Any]:
            model = copy.deepcopy(run.model)
            optimizer = torch.optim.Adam(model.parameters(), lr=align.learning_rate)
            epochs = math.ceil(steps / math.ceil(per_epoch / align.batch_size))
            trainer = method(model=model, trainset=shown_from, batch_size=align.batch_size, optimizer=optimizer, num_epochs=epochs, **more)
            trainer.train()
            return worst(model), trainer

        smallest = int(groups.bincount().min())
        subg, sampler = trained(robust.DownSampleERM, images, GROUPS * smallest, group_partition=partition)
        dro, _ = trained(robust.GroupDRO, data.GroupLabeledDatasetWrapper(images, partition), len(images))
        jtt, _ = trained(robust.CustomSampleERM, images, len(shown), indices=shown.tolist())
        kept = subsample_groups(groups, seeded(seed))
        return {
            "before": {"ours": worst(run.model)},
            "subg": {
                "ours": worst(METHODS["subg"](bench)),
                "spuco": subg,
                "same_shown": groups[kept].bincount().tolist() == groups[sampler.indices].bincount().tolist(),
            },
            "group-dro": {"ours": worst(METHODS["group-dro"](bench)), "spuco": dro},
            "jtt": {"ours": worst(METHODS["jtt"](bench)), "spuco": jtt, "same_shown": sorted(wrong) == sorted(errors.tolist())},
        }


def main() -> None:
    sys.path.remove(str(Path(__file__).parent))  # its coverage.py hides a package that SpuCo needs
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "spuco": metadata.version("spuco"),
        "group_dro_difference": compare_losses(),
        "seeds": [compare_on(seed) for seed in range(options.seeds)],
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"SpuCo {result['spuco']}; GroupDRO, largest differences over 200 steps: {result['group_dro_difference']}")
    for seed, row in enumerate(result["seeds"]):
        print(f"seed {seed}: " + "; ".join(f"{name} {figures}" for name, figures in row.items()))


if __name__ == "__main__":
    main()
