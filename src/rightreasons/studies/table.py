"""A study's table as one JSON value: for each row its metrics over seeds, and how it differs, seed by seed, from the row before and from ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rightreasons.studies.definition import OURS, UPPER, Row, Study
from rightreasons.studies.results import ResultFile, list_results, read_results
from rightreasons.studies.statistics import Comparison, compare_pairs, covered_share, holm, mean_interval

# The metrics that rows are compared in, and those of which the covered share is told.
COMPARED = ("worst_group_accuracy", "average_group_accuracy")
COVERED = (*COMPARED, "mu_align")

# What a study tells of a row's critic, of all that its result files have.
JUDGED = ("verdict_accuracy", "spurious_recall", "spurious_precision", "core_recall", "cost_usd")

# The results of a row, by seed.
Results = Mapping[int, dict[str, Any]]


def build_table(study: Study, chosen: Sequence[str], seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """The table of the rows that have a result; a row that they are compared with need not be among ``chosen``, if it is finished.

    Results that other settings made than the study has now are left out, and named in the table's ``notes``.
    """
    compared_with = {find_partner(study, name, wanted) for name in chosen for wanted in (study.reference, OURS, UPPER)}
    found = read_results(study, [name for name in study.names if name in {*chosen, *compared_with}], seeds, out)
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.names}
    for file in found:
        if file.counts:
            results[file.row][file.seed] = file.stored
    rows = [_row(study, name, results[name]) for name in chosen if results[name]]
    for key, wanted in (("against", study.reference), ("against_ours", OURS)):
        compared = {name: _compare(study, name, wanted, results) for name in chosen if results[name]}
        for metric in COMPARED:
            _correct(compared.values(), metric)
        for row in rows:
            row[key] = _stored(compared[row["method"]])
    for row in rows:
        row["covered"] = _cover(study, row["method"], results)
    head = {"study": study.name, "smoke": bool(study.smoke), "reference": study.reference, "figure": study.figure}
    return head | {"rows": rows, "notes": _notes(study, found)}


def find_partner(study: Study, name: str, wanted: str) -> str | None:
    """The row that stands for ``wanted`` where ``name`` is: the row or series of that name on the same data and network, first at the same x.

    Of several that several critics made it is that of the row's own critic, or of the first critic if the row asks none of them.
    """
    row = study.row(name)
    same = [
        other
        for other in map(study.row, study.names)
        if wanted in (other.name, study.plain_name(other.name), other.series) and _same_models(study, row, other)
    ]
    critic = _asked(study, row)
    first = min(same, key=lambda other: (other.x != row.x, other.x is not None, _asked(study, other) != critic), default=None)
    return None if first is None else first.name


def _asked(study: Study, row: Row) -> str | None:
    return study.critic(row) if study.uses_critic(row) else None


def _same_models(study: Study, one: Row, other: Row) -> bool:
    first, second = study.settings(one, 0), study.settings(other, 0)
    return all(first.get(table) == second.get(table) for table in ("data", "model"))


def _notes(study: Study, found: Sequence[ResultFile]) -> list[str]:
    """What a reader must know of the settings that made the results."""
    notes, outdated, silent = [], [file for file in found if not file.counts], [file for file in found if not file.has_key]
    if outdated:
        notes.append(
            f"Left out, since other settings made them than the study has now: {list_results(outdated)}. "
            "`rightreasons bench` runs them again if --methods names these rows, or none."
        )
    if silent:
        notes.append(
            f"Made before result files of {study.name} told their settings, and taken for results of the settings of now: {list_results(silent)}."
        )
    return notes


def _row(study: Study, name: str, results: Results) -> dict[str, Any]:
    found, row = list(results.values()), study.row(name)
    summaries = {part: _summaries([result[part] for result in found]) for part in ("inspected", "metrics")}
    return {
        "method": name,
        **{key: found[0][key] for key in ("critic", "labels_used", "selection")},
        "x": row.x,
        "series": row.series,
        "seeds": len(found),
        "seed_list": list(results),
        **summaries,
        "critic_scores": _summaries([{key: (result.get("critic_scores") or {}).get(key) for key in JUDGED} for result in found]),
        # One interval for each seed: seeds differ in their objects too, and the standard deviation shows that.
        "intervals": [result.get("intervals") for result in found],
        # A file from before times were kept has none.
        "seconds": _summaries([result.get("seconds", {}) for result in found]),
        "threads": sorted({result["threads"] for result in found if "threads" in result}),
    }


def _summaries(parts: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """A summary of each key that any seed has. A file from before a metric existed is without its key."""
    return {key: _summary([part.get(key) for part in parts]) for key in dict.fromkeys(key for part in parts for key in part)}


def _summary(values: list[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return {"mean": statistics.fmean(known), "std": deviation, "values": known, "interval": mean_interval(known)}


# The partner's name and a comparison for each metric; empty without a partner, or without a seed that both have.
_Compared = tuple[str | None, dict[str, Comparison]]


def _compare(study: Study, name: str, wanted: str, results: Mapping[str, Results]) -> _Compared:
    other = find_partner(study, name, wanted)
    if other is None or other == name:
        return None, {}
    compared = {}
    for metric in COMPARED:
        seeds = _shared(metric, results[name], results[other])
        if seeds:
            first, second = (_values(results[row], metric, seeds) for row in (name, other))
            compared[metric] = compare_pairs(seeds, [one - two for one, two in zip(first, second, strict=True)])
    return other, compared


def _correct(compared: Iterable[_Compared], metric: str) -> None:
    """Corrects the p-values of one metric for the number of rows, each kind of test apart."""
    tables = [table for _, table in compared if metric in table]
    for key in ("t_p", "wilcoxon_p"):
        tested = [table for table in tables if getattr(table[metric], key) is not None]
        for table, corrected in zip(tested, holm([getattr(table[metric], key) for table in tested]), strict=True):
            table[metric] = replace(table[metric], **{f"{key}_holm": corrected})


def _stored(compared: _Compared) -> dict[str, Any] | None:
    other, table = compared
    return {"row": other, **{metric: asdict(comparison) for metric, comparison in table.items()}} if other is not None and table else None


def _cover(study: Study, name: str, results: Mapping[str, Results]) -> dict[str, Any]:
    """The share of the distance from the reference to the upper bound that a row covers, by metric; None where there is no such distance."""
    low, high = find_partner(study, name, study.reference), find_partner(study, name, UPPER)
    covered: dict[str, Any] = dict.fromkeys(COVERED)
    if low is None or high is None or name in (low, high):
        return covered
    for metric in COVERED:
        seeds = _shared(metric, *(results[row] for row in (name, low, high)))
        share = covered_share(*(_values(results[row], metric, seeds) for row in (name, low, high)))
        covered[metric] = None if share is None else asdict(share)
    return covered


def _shared(metric: str, *rows: Results) -> list[int]:
    """The seeds in which all rows have the metric."""

    def has(row: Results, seed: int) -> bool:
        return seed in row and row[seed]["metrics"].get(metric) is not None

    return [seed for seed in rows[0] if all(has(row, seed) for row in rows)]


def _values(row: Results, metric: str, seeds: Sequence[int]) -> list[float]:
    return [row[seed]["metrics"][metric] for seed in seeds]
