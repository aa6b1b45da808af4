"""What a few seeds can tell, against scipy, published examples, and loops over every case."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import scipy.stats

from rightreasons.studies import statistics

# Darwin's fifteen pairs of maize plants, cross-fertilised minus self-fertilised, in eighths of an inch (Fisher 1935, The Design of Experiments).
DARWIN = [float(eighths) for eighths in (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)]


def test_darwins_plants():
    """Fisher found t = 2.148 on 14 degrees of freedom, where 5 % lies at 2.145."""
    assert statistics.paired_t(DARWIN) == pytest.approx(0.0497, abs=5e-5)
    assert statistics.t_quantile(0.95, 14) == pytest.approx(2.145, abs=5e-4)
    assert statistics.mean_interval(DARWIN) == (pytest.approx(0.03, abs=0.01), pytest.approx(41.8, abs=0.05))
    assert statistics.signed_rank(DARWIN) == pytest.approx(scipy.stats.wilcoxon(DARWIN, method="exact").pvalue)


@pytest.mark.parametrize("freedom", range(1, 25))
def test_students_distribution(freedom):
    for t in (0.0, 0.1, 0.7, 1.0, 2.5, 8.0, 60.0):
        assert statistics.t_inside(t, freedom) == pytest.approx(1 - 2 * scipy.stats.t.sf(t, freedom), abs=1e-12)
    for level in (0.5, 0.95, 0.999):
        assert statistics.t_quantile(level, freedom) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@pytest.mark.parametrize("count", range(3, 16))
def test_paired_tests_against_scipy(count):
    draw = random.Random(count)
    differences = [draw.gauss(0.3, 1) for _ in range(count)]
    assert statistics.paired_t(differences) == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=1e-12)
    assert statistics.signed_rank(differences) == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue, abs=1e-12)
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert statistics.mean_interval(differences) == (pytest.approx(interval.low), pytest.approx(interval.high))


@pytest.mark.parametrize("differences", [[1.0, 1.0, -1.0, 2.0], [0.0, 0.5, 0.5, -0.25, 0.0], [3.0, -3.0, 3.0, 3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]])
def test_signed_ranks_by_every_assignment_of_signs(differences):
    """With ties and zeros, for which scipy has only an approximation: each of the 2^n signs once."""
    sizes = [abs(value) for value in differences if value != 0]
    ranks = [sum(other < size for other in sizes) + (sum(other == size for other in sizes) + 1) / 2 for size in sizes]
    seen = sum(rank for rank, value in zip(ranks, [value for value in differences if value != 0], strict=True) if value > 0)
    centre, hits, total = sum(ranks) / 2, 0, 0
    for signs in itertools.product((0, 1), repeat=len(ranks)):
        total += 1
        hits += abs(sum(rank * sign for rank, sign in zip(ranks, signs, strict=True)) - centre) >= abs(seen - centre)
    assert statistics.signed_rank(differences) == pytest.approx(hits / total)


def test_the_least_p_of_three_seeds():
    assert statistics.signed_rank([0.1, 0.2, 0.3]) == 0.25
    compared = statistics.compare_pairs([0, 1, 2], [0.1, 0.2, 0.3])
    assert compared.wilcoxon_p == compared.least_wilcoxon_p == 0.25 and compared.why is None


def test_fewer_than_three_seeds_have_no_p_value():
    for differences in ([0.4], [0.4, 0.5]):
        compared = statistics.compare_pairs(range(len(differences)), differences)
        assert compared.t_p is compared.wilcoxon_p is None and "fewer than 3 seeds" in compared.why
        assert compared.mean == pytest.approx(sum(differences) / len(differences))
        assert (compared.interval is None) == (compared.std is None) == (len(differences) == 1)


def test_many_seeds_have_a_t_test_alone():
    compared = statistics.compare_pairs(range(21), [random.Random(seed).gauss(1, 1) for seed in range(21)])
    assert compared.t_p < 0.01 and compared.wilcoxon_p is None and "more than 20" in compared.why


def test_differences_without_spread():
    assert statistics.paired_t([0.0, 0.0, 0.0]) == statistics.signed_rank([0.0, 0.0, 0.0]) == 1.0
    assert statistics.paired_t([0.5, 0.5, 0.5]) == 0.0


def test_a_sign_turned_changes_no_p_value():
    draw = random.Random(7)
    for _ in range(20):
        differences = [draw.gauss(0.2, 1) for _ in range(7)]
        turned = [-value for value in reversed(differences)]
        assert statistics.paired_t(turned) == pytest.approx(statistics.paired_t(differences))
        assert statistics.signed_rank(turned) == statistics.signed_rank(differences)


def test_holms_own_example():
    """Four hypotheses with p = 0.005, 0.011, 0.02, 0.04: each is at most its alpha / (m - i + 1) for alpha = 0.05, so all are rejected."""
    assert statistics.holm([0.02, 0.04, 0.005, 0.011]) == [pytest.approx(p) for p in (0.04, 0.04, 0.02, 0.033)]
    assert statistics.holm([]) == [] and statistics.holm([0.3]) == [0.3]


def test_holm_with_loops():
    draw = random.Random(3)
    for count in (1, 2, 5, 9):
        for _ in range(20):
            values = [draw.choice([draw.random(), 0.01, 0.2]) for _ in range(count)]
            expected = []
            for value in values:
                highest = 0.0
                for other in values:  # every p-value that is no larger
                    if other <= value:
                        rank_from_above = sum(1 for third in values if third > other) + 1
                        equal = sum(1 for third in values if third == other)
                        highest = max(highest, min(1.0, (rank_from_above + equal - 1) * other))
                expected.append(highest)
            corrected = statistics.holm(values)
            assert corrected == [pytest.approx(p) for p in expected]
            assert all(given <= after <= 1 for given, after in zip(values, corrected, strict=True))
            # Rejecting step by step at 0.05 gives the same rows as corrected values up to 0.05.
            rejected, order = set(), sorted(range(count), key=lambda row: values[row])
            for place, row in enumerate(order):
                if values[row] > 0.05 / (count - place):
                    break
                rejected.add(row)
            assert {row for row in range(count) if corrected[row] <= 0.05} == rejected


def test_covered_share_by_hand():
    row, low, high = [0.79, 0.76, 0.73], [0.28, 0.15, 0.16], [0.84, 0.73, 0.74]
    gained, whole = [a - b for a, b in zip(row, low, strict=True)], [a - b for a, b in zip(high, low, strict=True)]
    share = sum(gained) / sum(whole)
    error = math.sqrt(sum((a - share * b) ** 2 for a, b in zip(gained, whole, strict=True)) / 6) / (sum(whole) / 3)
    covered = statistics.covered_share(row, low, high)
    assert (covered.share, covered.error) == (pytest.approx(share), pytest.approx(error))


def test_covered_share_at_its_ends():
    low, high = [0.1, 0.2, 0.3], [0.5, 0.9, 0.7]
    assert statistics.covered_share(high, low, high).share == pytest.approx(1) and statistics.covered_share(high, low, high).error == pytest.approx(0)
    assert statistics.covered_share(low, low, high).share == 0
    one = statistics.covered_share([0.3], [0.1], [0.5])
    assert one.share == pytest.approx(0.5) and one.error is None
    assert statistics.covered_share(low, high, low) is None, "the upper bound is below the reference"
    assert statistics.covered_share([], [], []) is None


def test_the_jackknife_agrees_with_the_standard_error():
    """Another way to the error of a ratio of means: leave out one seed at a time."""
    draw = random.Random(1)
    low = [draw.gauss(0.2, 0.05) for _ in range(15)]
    high, row = ([start + draw.gauss(gain, 0.05) for start in low] for gain in (0.6, 0.5))
    covered = statistics.covered_share(row, low, high)
    without = [statistics.covered_share(*([*part[:k], *part[k + 1 :]] for part in (row, low, high))).share for k in range(15)]
    mean = sum(without) / 15
    assert covered.error == pytest.approx(math.sqrt(14 / 15 * sum((share - mean) ** 2 for share in without)), rel=0.1)


def test_rounding_makes_no_ranks_and_no_differences():
    """Three gains of a tenth, told apart in the 16th digit, are ties; two averages that are equal but for rounding differ by nothing."""
    differences = [0.7 - 0.6, 0.8 - 0.7, 0.9 - 1.0, 0.3]
    assert len({abs(difference) for difference in differences}) > 2
    assert statistics.compare_pairs(range(4), differences).wilcoxon_p == statistics.signed_rank([1.0, 1.0, -1.0, 3.0]) == 0.5
    same = [(0.1 + 0.2 + 0.3) / 3 - 0.2, 0.1 + 0.2 - 0.3, 0.0]
    assert any(same)
    compared = statistics.compare_pairs(range(3), same)
    assert compared.t_p == compared.wilcoxon_p == 1 and compared.mean == 0
