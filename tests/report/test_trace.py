"""Every verdict of a person's, traced."""

import pytest

from rightreasons.records import Verdict
from rightreasons.report.trace import list_reviewers, trace_verdicts


def person(value, by, minute, **more):
    return Verdict(7, 0, value, "human", by=by, at=f"2026-01-01T10:{minute:02d}:00+00:00", **more)


MODEL = Verdict(7, 0, "relevant", "openai:m", p=0.25)


UNASKED = Verdict(7, 0, "unsure", "human:q.jsonl", problem="waiting for a person: write the answer into q.jsonl", p=0.5)
UNREAD = Verdict(7, 0, "unsure", "openai:m", problem="malformed: not JSON", p=0.5)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([MODEL], []),
        ([MODEL, person("spurious", "Ann", 1)], [("Ann", "relevant by openai:m", "counts")]),
        (
            [MODEL, person("spurious", "Ann", 1), person("relevant", "Bob", 2)],
            [("Ann", "relevant by openai:m", "a later verdict counts"), ("Bob", "spurious by Ann", "counts")],
        ),
        (
            [MODEL, person("spurious", "Ann", 1), person("relevant", "Bob", 2), person("relevant", "Bob", 3, withdraws=True)],
            [("Ann", "relevant by openai:m", "counts"), ("Bob", "spurious by Ann", "taken back")],
        ),
        ([person("spurious", None, 1)], [("a person", "nothing", "counts")]),
        # Nobody's verdict: a person who was asked in a file, and a model whose answer could not be read.
        ([UNASKED, person("spurious", "Ann", 1)], [("Ann", "nothing", "counts")]),
        ([UNREAD, person("spurious", "Ann", 1)], [("Ann", "nothing", "counts")]),
        # Judged again by a model afterwards: the person's still counts.
        ([MODEL, person("spurious", "Ann", 1), Verdict(7, 0, "relevant", "openai:n", p=0.25)], [("Ann", "relevant by openai:m", "counts")]),
    ],
)
def test_who_said_what_over_what_and_whether_it_counts(history, expected):
    assert [(one.by, one.before, one.state) for one in trace_verdicts(history)] == expected


def test_reviewers_are_counted_without_what_they_took_back():
    other = Verdict(8, 1, "spurious", "openai:m", p=0.75)
    agreed = Verdict(8, 1, "spurious", "human", by="Ann", at="2026-01-01T11:00:00+00:00")
    history = [MODEL, other, person("spurious", "Ann", 1), agreed, person("relevant", "Bob", 2), person("relevant", "Bob", 3, withdraws=True)]
    assert [one.overruled for one in list_reviewers(trace_verdicts([UNASKED, person("spurious", "Ann", 1)]))] == [0]
    (ann,) = list_reviewers(trace_verdicts(history))
    assert (ann.name, ann.segments, ann.overruled, ann.last) == ("Ann", 2, 1, "2026-01-01T11:00:00+00:00")
