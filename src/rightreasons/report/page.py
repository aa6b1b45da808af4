"""report.html, one self-contained page without any script: what a head of department reads in a minute, then all that it rests on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from rightreasons.common.files import write_atomically
from rightreasons.common.text import clean_text
from rightreasons.critic.controls import MEANINGS
from rightreasons.networks.predictions import Predictions
from rightreasons.records import Attribution, find_disputes
from rightreasons.report.cards import Card, Cards, tell_dispute
from rightreasons.report.curves import draw_curve, draw_tuning
from rightreasons.report.facts import hide_paths, list_facts, list_settings, shorten, tell_critic
from rightreasons.report.glossary import LIMITS, OTHERS, SCORES, explain_scores
from rightreasons.report.images import lit_url
from rightreasons.report.trace import list_reviewers, trace_verdicts
from rightreasons.report.words import mebibytes, percent, tell_headline, tell_repair, tell_shortcut, tell_spread
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import StageCost

# The page shows at most this many images, or it would be too heavy to open; the run folder has the rest.
MOST_CARDS = 200
MOST_WAITING = 200
# So many shortcuts have a gallery, of up to GALLERY_PICTURES. Of them MOST_TOLD open the page, if they are in FEWEST_IMAGES images at least or are
# the only one.
MOST_SHORTCUTS = 5
MOST_TOLD, FEWEST_IMAGES = 3, 3
GALLERY_PICTURES = 24


@dataclass(frozen=True)
class Shown:
    """A shortcut with its sentences; ``pictures`` are (image number, class, picture), the ones with most effect first."""

    number: int
    name: str
    words: str
    sentences: list[str]
    pictures: list[tuple[int, str, str]]


@functools.cache
def _open_template() -> jinja2.Template:
    """The page's template, which one process compiles once: that takes as long as the rest of a small report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rightreasons.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "shorten": shorten, "mebibytes": mebibytes}
    return environment.get_template("page.html.jinja")


def write_report(
    run: Run,
    metrics: dict[str, Any],
    repaired: Attribution | None,
    folder: RunFolder,
    *,
    answers: Sequence[Predictions],
    stages: Sequence[StageCost],
) -> None:
    """Writes report.html.

    ``repaired`` has the inspected images' heatmaps under the repaired model, once there is one, and ``answers`` the predictions on these images, of
    the model and then of the repaired one. ``stages`` is what the run took so far.
    """
    cards = Cards(run, repaired, metrics["shortcuts"], answers)
    rows = cards.order()[:MOST_CARDS]
    models = [(name, _scores(metrics, name)) for name in _models(metrics)]
    traced = trace_verdicts(run.folder.load_history())
    page = _open_template().stream(
        metrics=metrics,
        headline=tell_headline(metrics),
        shortcuts=[_show(run, number, item, metrics) for number, item in enumerate(metrics["shortcuts"][:MOST_SHORTCUTS])],
        told=max(1, sum(item["images"] >= FEWEST_IMAGES for item in metrics["shortcuts"][:MOST_TOLD])),
        more_shortcuts=metrics["shortcuts"][MOST_SHORTCUTS:],
        spread=tell_spread(metrics),
        repair=tell_repair(metrics),
        facts=list_facts(run, metrics),
        settings=list_settings(run),
        read_as=hide_paths(metrics["data"]["read_as"], run),
        judged_by=tell_critic(metrics["critic"]),
        columns=explain_scores(models),
        models=models,
        tuning=draw_tuning(metrics["epochs"]),
        calibration=_calibration(metrics),
        traced=traced,
        reviewers=list_reviewers(traced),
        drawings=run.drawings,
        cards=_make(cards, rows),
        labels=_labels(run, rows),
        shown=len(rows),
        inspected=len(run.selection),
        descriptions=run.descriptions,
        queue=run.queue[:MOST_WAITING],
        waiting=len(run.queue),
        disputes=[(place, tell_dispute(said)) for place, said in find_disputes(run.verdicts).items()],
        meanings=MEANINGS,
        glossary=[*((title, meaning) for _, title, meaning in SCORES), *OTHERS],
        limits=LIMITS,
        stages=stages,
        gpu=any(stage.gpu_bytes is not None for stage in stages),
        outcomes={outcome: run.segmentation.outcomes.count(outcome) for outcome in sorted(set(run.segmentation.outcomes))},
    )
    # The page is written one card at a time, since the pictures of large images fill gigabytes.
    write_atomically(folder.path / "report.html", lambda part: page.dump(str(part), encoding="utf-8"))


def _models(metrics: Mapping[str, Any]) -> list[str]:
    return [*(name for name in ("before", "after", "rejected") if metrics[name]), *metrics["reference"]]


def _scores(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    return metrics[name] if name in ("before", "after", "rejected") else metrics["reference"][name]


def _make(cards: Cards, rows: list[int]) -> Iterator[Card]:
    return (cards.make(row) for row in rows)


def _labels(run: Run, rows: list[int]) -> list[tuple[int, str]]:
    """The classes that have a card, for the page's filter."""
    return [(label, run.descriptions[label].name) for label in sorted({int(run.selection.labels[row]) for row in rows})]


def _calibration(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve of right verdicts against the share that a person sees, and where a reader finds a few of its points."""
    found = metrics["calibration"]
    if not found["curve"]:
        return None
    points = [(float(share), float(right)) for share, right in found["curve"]]
    at = [min(points, key=lambda point, share=share: abs(point[0] - share)) for share in (0.0, 0.1, 0.25, 0.5, 1.0)]
    return {**found, "line": draw_curve("right", points), "points": list(dict.fromkeys(at))}


def _show(run: Run, number: int, shortcut: Mapping[str, Any], metrics: Mapping[str, Any]) -> Shown:
    row_of = {index: row for row, index in enumerate(run.selection.indices.tolist())}
    places = [(row_of[index], segment) for index, segment in shortcut["members"]]
    # What a person painted has no share of its own, and comes first.
    places.sort(key=lambda place: -1.0 if place[1] is None else -float(run.segmentation.shares[place]))
    masks, pictures = run.masks, []
    for row, segment in places[:GALLERY_PICTURES]:
        marked = masks[row] if segment is None else masks[row] & (run.segmentation.segments[row] == segment)
        index = int(run.selection.indices[row])
        clean = (run.folder.pictures / f"{index:06d}-clean.png").read_bytes()
        pictures.append((index, run.descriptions[int(run.selection.labels[row])].name, lit_url(clean, marked)))
    return Shown(number, shortcut["name"], ", ".join(shortcut["words"]), tell_shortcut(shortcut, metrics), pictures)


def _finalize(value: object) -> object:
    """Cleans whatever a model wrote before the template escapes it, so that on the page it can only be read."""
    return clean_text(value) if type(value) is str else value
