"""Kappas against published examples and scikit-learn; the measures of a blind study by hand."""

from __future__ import annotations

import csv
import io
import itertools
import random

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from rightreasons.common.seeds import seeded
from rightreasons.runs.blind import Question, Reply, Sample
from rightreasons.scoring.metrics import wilson_interval
from rightreasons.scoring.people.agreement import bootstrap_interval, cohen_kappa, fleiss_kappa, fleiss_parts, measure_sums
from rightreasons.scoring.people.measures import SAME, TOO_FEW, measure_study
from rightreasons.scoring.people.sheets import tell_study, write_answers, write_measures

AT = "2026-01-01T00:00:00+00:00"
# Fleiss 1971, table 1: 30 patients, how many of 6 psychiatrists gave each of 5 diagnoses.
PATIENTS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031 00501 30012 51000 02040 10203 00006 01050 02013 20040
10041 05010 40002 02040 10500 00006
"""


def test_cohen_of_a_published_table():
    """Fleiss, Levin and Paik 2003, table 18.1: 100 subjects, three diagnoses; p_o = 0.89, p_e = 0.66, kappa = 0.68."""
    counts = torch.tensor([[75.0, 1.0, 4.0], [5.0, 4.0, 1.0], [0.0, 0.0, 10.0]])
    assert float(cohen_kappa(counts)) == pytest.approx((0.89 - 0.66) / (1 - 0.66), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cohen_is_that_of_scikit_learn(seed):
    dice = random.Random(seed)
    one = [dice.randrange(2 + seed % 2) for _ in range(40)]
    other = [value if dice.random() < 0.6 else dice.randrange(2 + seed % 2) for value in one]
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for first, second in zip(one, other, strict=True):
        counts[first, second] += 1
    assert float(cohen_kappa(counts)) == pytest.approx(cohen_kappa_score(one, other))
    assert float(cohen_kappa(counts.T)) == pytest.approx(float(cohen_kappa(counts))), "it does not matter who is first"


def test_fleiss_of_fleiss_own_table():
    """Fleiss 1971: the shares of the diagnoses are .144, .144, .167, .306 and .239, P = .556, P_e = .220, kappa = .430."""
    table = torch.tensor([[int(digit) for digit in patient] for patient in PATIENTS.split()])
    assert table.shape == (30, 5) and (table.sum(1) == 6).all()
    sums = fleiss_parts(table).sum(0)
    assert [round(float(share), 3) for share in sums[2:] / sums[2:].sum()] == [0.144, 0.144, 0.167, 0.306, 0.239]
    assert round(float(sums[0] / sums[1]), 3) == 0.556 and round(float(fleiss_kappa(sums)), 3) == 0.430


def test_fleiss_by_loops_where_the_number_of_raters_differs():
    ratings = [[0, 0, 1], [1, 1], [0], [0, 0, 0, 1], [1, 0]]
    table = torch.tensor([[said.count(0), said.count(1)] for said in ratings])
    rated = [said for said in ratings if len(said) > 1]
    agree = sum(sum(a == b for a, b in itertools.combinations(said, 2)) / (len(said) * (len(said) - 1) / 2) for said in rated) / len(rated)
    flat = [value for said in rated for value in said]
    chance = sum((flat.count(value) / len(flat)) ** 2 for value in (0, 1))
    assert measure_sums(fleiss_parts(table), fleiss_kappa) == pytest.approx((agree - chance) / (1 - chance))


def test_kappas_do_not_exist_where_all_say_the_same():
    assert measure_sums(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]).flatten(1), lambda sums: cohen_kappa(sums.unflatten(-1, (2, 2)))) is None
    assert measure_sums(fleiss_parts(torch.tensor([[3, 0], [2, 0]])), fleiss_kappa) is None
    assert float(cohen_kappa(torch.tensor([[5.0, 0.0], [0.0, 5.0]]))) == 1.0


def test_the_interval_draws_images_not_segments():
    """Ten copies of a segment on each image are no more than one: the interval stays as wide. And it is that of a loop over samples."""
    images = torch.arange(20)
    hits = torch.tensor([1.0, 0.0] * 8 + [1.0] * 4, dtype=torch.float64)
    parts = torch.stack([hits, torch.ones(20, dtype=torch.float64)], 1)

    def rate(sums):
        return sums[..., 0] / sums[..., 1]

    alone = bootstrap_interval(parts, images, rate, seeded(0, "here"))
    copied = bootstrap_interval(parts.repeat(10, 1), images.repeat(10), rate, seeded(0, "here"))
    assert alone is not None and copied == pytest.approx(alone)
    dice = random.Random(1)
    means = sorted(sum(dice.choices(hits.tolist(), k=20)) / 20 for _ in range(4000))
    assert alone == pytest.approx((means[100], means[3900]), abs=0.051)
    assert bootstrap_interval(parts, images, rate, seeded(0, "here")) == alone, "seeded"
    assert bootstrap_interval(parts[-4:], images[-4:], rate, seeded(0, "here")) is None, "all hits: no sample differs, which is no certainty"
    assert bootstrap_interval(parts[:0], images[:0], rate, seeded(0, "here")) is None


# Six segments on four images: the model calls the first three spurious. The run has 3 spurious and 9 relevant ones.
PLACES = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0))
VALUES = ("spurious", "spurious", "spurious", "relevant", "relevant", "relevant")


def make_sample(*, simulated: bool = False, words: str = "A tag.", judged: dict | None = None) -> Sample:
    questions = tuple(Question(*place, "bolt", value, words) for place, value in zip(PLACES, VALUES, strict=True))
    return Sample("abc", 0, "openai:stub", simulated, judged or {"spurious": 3, "relevant": 9, "unsure": 1}, questions)


def reply(by: str, said: str, opinions: str = "aaaaaa") -> list[Reply]:
    """One person's answers: s, r, u for each segment, . for none; and a, d, c on the argument."""
    values = {"s": "spurious", "r": "relevant", "u": "unsure"}
    thinks = {"a": "agree", "d": "disagree", "c": "cannot tell", ".": None}
    return [
        Reply(*place, by, values[value], AT, thinks[opinion]) for place, value, opinion in zip(PLACES, said, opinions, strict=True) if value != "."
    ]


def test_the_measures_by_hand():
    """Ann: s s r | r r s. Bob: s r s | r r r."""
    result = measure_study(make_sample(), [*reply("Ann", "ssrrrs", "aadaac"), *reply("Bob", "srsrrr", "aaaddd")])
    # On the spurious 4 of 6 agree, on the relevant 5 of 6; the run has 3 and 9 of them.
    assert result.agreement.value == pytest.approx((3 * 4 / 6 + 9 * 5 / 6) / 12)
    assert result.agreement.in_sample == pytest.approx(9 / 12) and result.agreement.count == 12
    assert result.agreement_spurious.value == result.agreement_spurious.in_sample == pytest.approx(4 / 6)
    # Argument: Ann a a d | a a c, Bob a a a | d d d: 5 of 6 on spurious, 2 of 5 on relevant ones.
    assert result.agreement_argument.value == pytest.approx((3 * 5 / 6 + 9 * 2 / 5) / 12)
    assert result.agreement_argument.in_sample == pytest.approx(7 / 11) and result.agreement_argument.count == 11
    ann, bob = result.people
    assert (ann.name, ann.answered, ann.unsure) == ("Ann", 6, 0) and ann.agreement.in_sample == pytest.approx(4 / 6)
    model = [value == "spurious" for value in VALUES]
    assert ann.kappa.value == pytest.approx(cohen_kappa_score(model, [1, 1, 0, 0, 0, 1]))
    assert bob.kappa.value == pytest.approx(cohen_kappa_score(model, [1, 0, 1, 0, 0, 0]))
    (pair,) = result.pairs
    assert pair.kappa.value == pytest.approx(cohen_kappa_score([1, 1, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0])) and pair.kappa.count == 6
    # With two raters of everything Fleiss' kappa is Scott's pi: 3 of 6 agree, shares 5/12 and 7/12.
    chance = (5 / 12) ** 2 + (7 / 12) ** 2
    assert result.fleiss.value == pytest.approx((0.5 - chance) / (1 - chance)) and result.fleiss.count == 6
    # No majority where they differ: segments 2, 3 and 6. Left: one spurious that the model called so, two relevant ones that it called so.
    assert (result.majority.segments, result.majority.ties) == (3, 3)
    assert result.majority.sensitivity.in_sample == 1.0 and result.majority.specificity.in_sample == 1.0
    assert result.majority.sensitivity.in_sample_interval == wilson_interval(1, 1)
    assert any("3 segments have as many" in note for note in result.notes) and any("unsure of 1 segments" in note for note in result.notes)


def test_sensitivity_is_projected_to_the_run():
    """Begg and Greenes: of the called spurious 2 of 3 are, so 2 of the run's 3; of the passed 1 of 3 is, so 3 of the run's 9."""
    result = measure_study(make_sample(), [answer for name in ("Ann", "Bob", "Eve") for answer in reply(name, "ssrrrs")])
    sensitivity, specificity = result.majority.sensitivity, result.majority.specificity
    assert sensitivity.in_sample == pytest.approx(2 / 3) and sensitivity.value == pytest.approx(2 / (2 + 3))
    assert specificity.in_sample == pytest.approx(2 / 3) and specificity.value == pytest.approx(6 / (6 + 1))
    assert sensitivity.in_sample_interval == wilson_interval(2, 3) and (sensitivity.count, specificity.count) == (3, 3)
    assert result.fleiss.value == 1.0 and result.fleiss.interval is None and result.fleiss.why == TOO_FEW


def test_who_did_not_finish_counts_with_what_there_is():
    result = measure_study(make_sample(), [*reply("Ann", "ssrrrs"), *reply("Bob", "s..r..", "......")])
    assert result.people[1].answered == 2 and result.agreement.count == 8 and result.fleiss.count == 2
    assert any("Bob (2 of 6)" in note for note in result.notes)
    assert result.people[1].argument.value is None and result.people[1].argument.why
    half = measure_study(make_sample(), reply("Bob", "ss...."))
    assert half.agreement.value is None and "one of the LVLM's two verdicts" in half.agreement.why and half.agreement_spurious.value == 1.0


def test_unsure_enters_no_rate_and_no_kappa():
    result = measure_study(make_sample(), [*reply("Ann", "suurru"), *reply("Bob", "sssrrr")])
    assert result.agreement.count == 9 and result.pairs[0].kappa.count == 3 and result.people[0].unsure == 3
    assert any("3 of 12 answers are unsure" in note for note in result.notes)
    lonely = measure_study(make_sample(), reply("Ann", "uuuuuu"))
    assert lonely.agreement.value is None and lonely.people[0].kappa.value is None and lonely.majority.ties == 6


def test_one_person_alone_and_nobody():
    alone = measure_study(make_sample(), reply("Ann", "sssrrs"))
    assert alone.fleiss.value is None and "two people" in alone.fleiss.why and alone.pairs == ()
    assert alone.majority.specificity.in_sample == 1.0 and any("Ann alone" in note for note in alone.notes)
    nobody = measure_study(make_sample(), [])
    assert nobody.agreement.value is None and nobody.majority.segments == 0 and "nobody has answered yet" in nobody.notes
    assert all(isinstance(cell, str) for result in (alone, nobody) for table in tell_study(result) for row in table.rows for cell in row)


def test_a_kappa_of_people_who_always_say_the_same_is_told_not_to_exist():
    result = measure_study(make_sample(), [*reply("Ann", "ssssss"), *reply("Bob", "ssssss")])
    assert result.pairs[0].kappa.value is None and result.pairs[0].kappa.why == SAME and result.fleiss.why == SAME
    assert result.people[0].kappa.value == 0.0, "against the model, who said both, chance explains all of it"
    assert result.majority.specificity.value is None and "no segment relevant" in result.majority.specificity.why


def test_a_model_that_called_nothing_spurious():
    questions = tuple(Question(*place, "bolt", "relevant", "") for place in PLACES)
    result = measure_study(Sample("abc", 0, "openai:stub", True, {"relevant": 6}, questions), reply("Ann", "srrrrr", "......"))
    assert result.agreement.value == pytest.approx(5 / 6) and result.agreement_spurious.value is None
    assert result.majority.sensitivity.value == 0.0 and result.majority.specificity.value == 1.0
    assert sum(word in " ".join(result.notes) for word in ("simulated", "no segment spurious", "no words on 6 segments")) == 3


def test_csv_has_every_answer_and_no_formula():
    sample, replies = make_sample(), [*reply("=HYPERLINK(1)", "ssrrru"), *reply('Bob, of "here"', "srsrrr")]
    rows = list(csv.DictReader(io.StringIO(write_answers(sample, replies))))
    assert len(rows) == 12 and rows[0]["person"] == "'=HYPERLINK(1)" and rows[6]["person"] == 'Bob, of "here"'
    assert rows[2] == rows[2] | {
        "image": "1",
        "segment": "S1",
        "lvlm": "spurious",
        "verdict": "relevant",
        "agrees": "0",
        "argument": "agree",
        "at": AT,
    }
    assert rows[5]["agrees"] == ""
    measures = {
        (row["measure"], row["first"], row["second"]): row for row in csv.DictReader(io.StringIO(write_measures(measure_study(sample, replies))))
    }
    assert float(measures["agreement_spurious", "", ""]["in_sample"]) == pytest.approx(4 / 6)
    assert len(measures) == 6 + 2 * 3 + 1
