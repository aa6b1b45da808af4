"""The methods of a study: ours and those it is compared with. One file per method; each says which labels it sees."""

from __future__ import annotations

from typing import Any

from rightreasons.studies.methods import (
    afr,
    before,
    dfr,
    fine_tune_only,
    ground_truth_masks,
    group_dro,
    jtt,
    longer_training,
    mask_tune,
    ours,
    subg,
    without_shortcut,
    xrm,
)
from rightreasons.studies.methods.method import Method

METHODS: dict[str, Method[Any]] = {
    "before": before.METHOD,
    "fine-tune-only": fine_tune_only.METHOD,
    "ours": ours.METHOD,
    "ours-published-loss": ours.PUBLISHED,
    "ground-truth-masks": ground_truth_masks.METHOD,
    "without-shortcut": without_shortcut.METHOD,
    "subg": subg.METHOD,
    "group-dro": group_dro.METHOD,
    "jtt": jtt.METHOD,
    "dfr": dfr.METHOD,
    "longer-training": longer_training.METHOD,
    "mask-tune": mask_tune.METHOD,
    "xrm": xrm.METHOD,
    "afr": afr.METHOD,
}
