"""The results as Markdown, one table for each network."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

OURS = "deeplift-shap"
HEAD = (
    *("explanation", "lift, training images", "higher than ours in", "lift", "points at the mark"),
    *("deletion (less is better)", "insertion", "agreement", "untrained", "seconds"),
)


def print_tables(results: Path) -> None:
    networks: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        networks[found["network"]][found["explanation"]].append(found)
    for network, rows in networks.items():
        if OURS not in rows:
            print(f"\n`{network}`: {OURS} has no results yet, beside which the others would stand")
            continue
        test = [found["test"] for found in rows[OURS]]
        images, decided = (" and ".join(format(part[key], form) for part in test) for key, form in (("images", "d"), ("decided", ".0%")))
        print(
            f"\n`{network}`, {len(test)} seeds, {images} test images; without the mark the answer changes in {decided} of those that have one; "
            f"the mark has {fmean(part['area'] for part in test):.1%} of their area\n"
        )
        print("| " + " | ".join(HEAD) + " |\n" + "|" + " --- |" * len(HEAD))
        for explanation, seeds in sorted(rows.items(), key=lambda row: -fmean(_lifts(row[1], "train"))):
            print("| " + " | ".join((explanation, *_cells(seeds, rows[OURS]))) + " |")


def _lifts(seeds: list[dict[str, Any]], split: str) -> list[float]:
    """Each seed's mean."""
    return [fmean(found[split]["lifts"]) for found in seeds]


def _cells(seeds: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[str]:
    """One row; of a seed that is not measured yet there is a dash."""
    told = []
    for split in ("train", "test"):
        by_seed = {found["seed"]: f"{mean:.2f}" for found, mean in zip(seeds, _lifts(seeds, split), strict=True)}
        told.append(f"{fmean(_lifts(seeds, split)):.2f} ({', '.join(by_seed.get(found['seed'], '-') for found in ours)})")
    beside = {found["seed"]: found["train"]["lifts"] for found in ours}
    higher = [one > other for found in seeds for one, other in zip(found["train"]["lifts"], beside[found["seed"]], strict=True)]
    shares = [f"{fmean(found['test'][key] for found in seeds):.2f}" for key in ("pointing", "deletion", "insertion")]
    alike = fmean(value for found in seeds for value in found["agreement"])
    untrained, seconds = (fmean(found[key] for found in seeds) for key in ("untrained", "seconds"))
    return [told[0], "-" if seeds is ours else f"{fmean(higher):.0%}", told[1], *shares, f"{alike:.2f}", f"{untrained:.2f}", f"{seconds:.2f}"]
