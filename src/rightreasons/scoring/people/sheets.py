"""The results of a blind study as tables for people, and its answers and measures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rightreasons.common.text import clean_text
from rightreasons.runs.blind import Reply, Sample
from rightreasons.scoring.people.measures import Interval, Measure, StudyResult

# The most pairs of people that are printed; the CSV has all of them.
MOST_PAIRS = 15
# A spreadsheet takes text that starts with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table for people: every cell is text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tell_study(result: StudyResult) -> list[Table]:
    """The tables: the LVLM against people, people among themselves, and each person."""
    critic = f"{result.critic}{' (simulated)' if result.simulated else ''}"
    against = (
        ("agreement, all segments", result.agreement),
        ("agreement, called spurious by the LVLM", result.agreement_spurious),
        ("agreement with the critique's argument", result.agreement_argument),
        ("sensitivity, by the majority", result.majority.sensitivity),
        ("specificity, by the majority", result.majority.specificity),
    )
    rows = [(name, _percent(one.value), _percents(one.interval), _sampled(one), str(one.count), one.why or "") for name, one in against]
    tables = [Table(f"people and {critic}", ("", "of the run", "95 %", "in the sample", "count", ""), tuple(rows))]
    kappas = [("Fleiss, all people", result.fleiss), *((f"Cohen, {pair.first} and {pair.second}", pair.kappa) for pair in result.pairs)]
    shown = kappas[: MOST_PAIRS + 1]
    told = tuple((clean_text(name), _number(one.value), _numbers(one.interval), str(one.count), one.why or "") for name, one in shown)
    title = "kappa among people" + (f" (the first {MOST_PAIRS} of {len(result.pairs)} pairs)" if len(kappas) > len(shown) else "")
    tables.append(Table(title, ("", "kappa", "95 %", "segments", ""), told))
    people = tuple(
        (
            clean_text(one.name),
            f"{one.answered} of {result.drawn}",
            str(one.unsure),
            _percent(one.agreement.value),
            _percent(one.argument.value),
            _number(one.kappa.value) + (f" ({_numbers(one.kappa.interval)})" if one.kappa.interval else ""),
        )
        for one in result.people
    )
    tables.append(Table("each person and the LVLM", ("", "answered", "unsure", "agreement", "argument", "kappa with the LVLM"), people))
    return tables


def write_measures(result: StudyResult) -> str:
    """Every measure as CSV, one a row."""
    named: list[tuple[str, str, str, Measure]] = [
        ("agreement", "", "", result.agreement),
        ("agreement_spurious", "", "", result.agreement_spurious),
        ("agreement_argument", "", "", result.agreement_argument),
        ("sensitivity", "majority", "", result.majority.sensitivity),
        ("specificity", "majority", "", result.majority.specificity),
        ("fleiss_kappa", "", "", result.fleiss),
    ]
    for one in result.people:
        named += [("agreement", one.name, "", one.agreement), ("agreement_argument", one.name, "", one.argument)]
        named.append(("cohen_kappa", one.name, "the LVLM", one.kappa))
    named += [("cohen_kappa", pair.first, pair.second, pair.kappa) for pair in result.pairs]
    head = ("measure", "first", "second", "value", "low", "high", "in_sample", "in_sample_low", "in_sample_high", "count", "why")
    rows = []
    for name, first, second, one in named:
        low_high, inner = one.interval or (None, None), one.in_sample_interval or (None, None)
        rows.append((name, first, second, one.value, *low_high, one.in_sample, *inner, one.count, one.why))
    return _write_csv(head, rows)


def write_answers(sample: Sample, replies: Iterable[Reply]) -> str:
    """Every answer as CSV, one row for each person and segment."""
    asked = {question.place: question for question in sample.questions}
    head = ("image", "segment", "class", "lvlm", "person", "verdict", "agrees", "argument", "at")
    rows = []
    for reply in replies:
        question = asked[reply.place]
        agrees = None if reply.value == "unsure" else int(reply.value == question.value)
        at = reply.index, f"S{reply.segment + 1}"
        rows.append((*at, question.label, question.value, reply.by, reply.value, agrees, reply.opinion, reply.at))
    return _write_csv(head, rows)


def _write_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    text = clean_text(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _percents(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _sampled(one: Measure) -> str:
    interval = _percents(one.in_sample_interval)
    return _percent(one.in_sample) + (f" ({interval})" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _numbers(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
