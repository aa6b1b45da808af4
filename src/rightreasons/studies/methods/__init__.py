"""The methods of a study: ours and those it is compared with. One file per method; each says which labels it sees."""

from __future__ import annotations

from typing import Any

from rightreasons.studies.methods import before, fine_tune_only, ground_truth_masks, ours, without_shortcut
from rightreasons.studies.methods.method import Method

METHODS: dict[str, Method[Any]] = {
    "before": before.METHOD,
    "fine-tune-only": fine_tune_only.METHOD,
    "ours": ours.METHOD,
    "ours-published-loss": ours.PUBLISHED,
    "ground-truth-masks": ground_truth_masks.METHOD,
    "without-shortcut": without_shortcut.METHOD,
}
