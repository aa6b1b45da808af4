"""What a few seeds can tell: intervals, paired tests, Holm's correction, and the share of a distance that is covered (docs/method.md, section 7).

Pure functions on lists of numbers, one for each seed. Nothing but the standard library, so that a table never goes without them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Below this number of pairs no p-value is given.
FEWEST_PAIRS = 3
# Up to this number of pairs every assignment of signs is counted, a million at most.
MOST_PAIRS = 20
TOO_FEW = f"no p-value: fewer than {FEWEST_PAIRS} seeds"
TOO_MANY = f"no p-value by ranks: more than {MOST_PAIRS} seeds"
# Digits of a difference that count. 0.8 - 0.7 and 0.7 - 0.6 differ in the 16th, and are ties; an accuracy has nothing to tell that far.
DIGITS = 12

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Differences by seed: their mean, standard deviation and 95 % interval, and two-sided p-values by the paired t test and by signed ranks.

    ``least_wilcoxon_p`` is the smallest p-value that so few seeds can have. The p-values ending in ``holm`` are corrected for the other rows of the
    table, by ``correct_comparisons``. What cannot be computed is None, and ``why`` says why there is no p-value.
    """

    seeds: tuple[int, ...]
    mean: float
    std: float | None
    interval: Interval | None
    t_p: float | None
    wilcoxon_p: float | None
    least_wilcoxon_p: float | None = None
    t_p_holm: float | None = None
    wilcoxon_p_holm: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Covered:
    """The share of a distance that is covered, with the standard error over seeds, which is None for one seed."""

    share: float
    error: float | None


def compare_pairs(seeds: Sequence[int], differences: Sequence[float]) -> Comparison:
    """The comparison of two rows by their ``differences``, one for each of at least one seed; they are rounded to ``DIGITS``."""
    differences = [round(difference, DIGITS) for difference in differences]
    count = len(differences)
    mean, std = statistics.fmean(differences), statistics.stdev(differences) if count > 1 else None
    interval = mean_interval(differences)
    if count < FEWEST_PAIRS:
        return Comparison(tuple(seeds), mean, std, interval, None, None, why=TOO_FEW)
    ranked = count <= MOST_PAIRS
    return Comparison(
        tuple(seeds),
        mean,
        std,
        interval,
        paired_t(differences),
        signed_rank(differences) if ranked else None,
        least_wilcoxon_p=2.0 ** (1 - count) if ranked else None,
        why=None if ranked else TOO_MANY,
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's interval of the mean, mean ± t s / sqrt(n) (eq. 9c); None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = t_quantile(level, len(values) - 1) * error
    return mean - reach, mean + reach


def paired_t(differences: Sequence[float]) -> float:
    """The two-sided p-value of the t test that the mean difference is 0 (eq. 9d). Without any spread it is 1 if all are 0, and else 0."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    if error == 0:
        return float(mean == 0)
    return max(0.0, 1 - t_inside(abs(mean) / error, len(differences) - 1))


def signed_rank(differences: Sequence[float]) -> float:
    """The exact two-sided p-value of Wilcoxon's signed-rank test (1945), by counting every assignment of signs (eq. 9e).

    Differences of 0 are left out, as by Wilcoxon, and equal sizes share the mean of their ranks; 1 if all are 0. For at most ``MOST_PAIRS``.
    """
    known = [value for value in differences if value != 0]
    ranks = _mean_ranks([abs(value) for value in known])
    centre = sum(ranks) / 2
    seen = abs(sum(rank for rank, value in zip(ranks, known, strict=True) if value > 0) - centre)
    # Ranks are multiples of a half, which floats add without error. Sums are counted one rank at a time, as many equal ones meet.
    counts = {0.0: 1}
    for rank in ranks:
        grown = dict(counts)
        for total, count in counts.items():
            grown[total + rank] = grown.get(total + rank, 0) + count
        counts = grown
    return sum(count for total, count in counts.items() if abs(total - centre) >= seen) / 2 ** len(ranks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: the i-th smallest of m is multiplied by m - i + 1, is at least the one before it, and at most 1 (eq. 9f)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=lambda row: p_values[row])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[row]))
        corrected[row] = highest
    return corrected


def covered_share(row: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Covered | None:
    """How much of the distance from ``low`` to ``high`` a row covers: R = mean(row - low) / mean(high - low), paired by seed (eq. 9g).

    The standard error is that of a ratio of means, sqrt(sum (a - R b)^2 / (n (n - 1))) / mean(b). None where ``high`` is not above ``low``.
    """
    gained = [value - start for value, start in zip(row, low, strict=True)]
    whole = [end - start for end, start in zip(high, low, strict=True)]
    if not whole or statistics.fmean(whole) <= 0:
        return None
    share, count = statistics.fmean(gained) / statistics.fmean(whole), len(whole)
    if count < 2:
        return Covered(share, None)
    left = sum((part - share * full) ** 2 for part, full in zip(gained, whole, strict=True))
    return Covered(share, math.sqrt(left / (count * (count - 1))) / statistics.fmean(whole))


def t_inside(t: float, freedom: int) -> float:
    """The probability that Student's t lies between -t and t, for a whole number of degrees of freedom.

    The finite series in the angle atan(t / sqrt(freedom)) (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    if freedom % 2:
        terms = _series([2 * k / (2 * k + 1) for k in range(1, (freedom - 1) // 2)], math.cos(angle), math.cos(angle) ** 2) if freedom > 1 else 0.0
        return 2 / math.pi * (angle + math.sin(angle) * terms)
    return math.sin(angle) * _series([(2 * k - 1) / (2 * k) for k in range(1, freedom // 2)], 1.0, math.cos(angle) ** 2)


def t_quantile(level: float, freedom: int) -> float:
    """The t between whose negative and itself Student's t lies with probability ``level``."""
    low, high = 0.0, 1.0
    while t_inside(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, freedom) < level else (low, middle)
    return high


def _series(factors: Sequence[float], first: float, step: float) -> float:
    """first + first f1 step + first f1 f2 step^2 + ..."""
    terms = [first]
    for factor in factors:
        terms.append(terms[-1] * factor * step)
    return math.fsum(terms)


def _mean_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) + 1) / 2 for value in values]
