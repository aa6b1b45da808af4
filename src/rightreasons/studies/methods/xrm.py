"""XRM, then GroupDRO (Pezeshki et al. 2024): groups are inferred from what twin networks get wrong, and balanced. Labels used: none.

The whole network is fine-tuned from the shortcut model, with the epochs, steps, batches and learning rate of ours; the paper trains it afresh.
"""

from __future__ import annotations

from torch import nn

from rightreasons.studies.methods.environments import infer_environments
from rightreasons.studies.methods.group_dro import GroupLoss, draw_balanced
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import Bench, Method
from rightreasons.studies.methods.training import drawn_per_epoch, fine_tune_equally, fine_tune_plainly, worst_group_accuracy


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """Fine-tunes with balanced inferred groups; plainly, with a note, if none could be inferred. Raises ModelError without a linear head."""
    run, groups = bench.run, infer_environments(bench)
    if groups is None:
        bench.reporter.note("xrm: the model is fine-tuned plainly")
        return fine_tune_plainly(bench)
    return fine_tune_equally(
        bench,
        lambda generator: draw_balanced(groups.train, drawn_per_epoch(run), generator),
        judge=lambda model: worst_group_accuracy(model, run.validation, groups.validation),
        loss=GroupLoss(groups.train),
    )


METHOD = Method(train, NoLabels, "one of 10 settings of the twins, by flip rate; epoch, by accuracy of the worst inferred group of held-out images")
