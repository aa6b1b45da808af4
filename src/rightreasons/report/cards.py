"""One card for each inspected image: picture, heatmaps, segments, verdicts and critique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rightreasons.critic.close_up import SegmentWords
from rightreasons.critic.critique import describe_positions
from rightreasons.critic.votes import NOT_JUDGED
from rightreasons.explain.evidence import smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.networks.predictions import Predictions
from rightreasons.records import HUMAN, VALUES, Attribution, Critique, Drawing, Verdict, find_disputes, settle_verdicts
from rightreasons.report.images import heatmap_url, picture_url, proportions
from rightreasons.run import Run


@dataclass(frozen=True)
class SegmentRow:
    """A segment in the table of a card. ``seen_near`` says whether the verdict is on its close-up, and ``near`` what is said of that."""

    name: str
    position: str
    share: float
    verdict: str
    source: str
    by: str | None
    at: str | None
    disputed: str
    problem: str | None
    p: float | None
    words: str
    seen_near: bool
    near: str


@dataclass(frozen=True)
class Card:
    """What the page shows of one image. ``kinds`` are the classes by which the page's filter finds it; ``file`` identifies the image."""

    index: int
    label: str
    answer: str
    file: str
    kinds: str
    clean: str
    proportions: str
    contours: str
    before: str
    after: str | None
    critiques: list[Critique]
    rows: list[SegmentRow]
    drawing: Drawing | None


class Cards:
    """Makes the cards of a run one by one, since the pictures of large images fill gigabytes.

    ``repaired`` explains the repaired model. ``answers`` are the predictions on the inspected images, of the repaired model too if there is one.
    """

    def __init__(self, run: Run, repaired: Attribution | None, shortcuts: Sequence[Mapping[str, Any]], answers: Sequence[Predictions]) -> None:
        self.run, self.repaired, self.answers = run, repaired, answers
        self.smooth = smooth_width(run.model, run.config.segment)
        self.settled, self.disputes = settle_verdicts(run.verdicts), find_disputes(run.verdicts)
        self.files = {line.index: line.sha256[:12] for line in run.folder.load_manifest() or () if line.split == "train"}
        self.critiques: dict[int, list[Critique]] = {}
        for critique in run.critiques:
            self.critiques.setdefault(critique.index, []).append(critique)
        self.drawings = {drawing.index: drawing for drawing in run.drawings}
        self.shortcuts_of: dict[int, set[int]] = {}
        for number, shortcut in enumerate(shortcuts):
            for index, _ in shortcut["members"]:
                self.shortcuts_of.setdefault(index, set()).add(number)

    def order(self) -> list[int]:
        """The rows of images that have segments, those with the most spurious effect first."""
        run, share = self.run, torch.zeros(len(self.run.selection))
        for row, (heatmap, mask) in enumerate(zip(run.attribution.heatmaps, run.masks, strict=True)):
            positive = heatmap.clamp_min(0)
            share[row] = (positive * mask).sum() / positive.sum().clamp_min(1e-12)
        return [row for row in share.argsort(descending=True, stable=True).tolist() if run.segmentation.count(row)]

    def make(self, row: int) -> Card:
        """The card of the image in this row. Heatmaps are smoothed as for the segments, so that a person sees what was cut."""
        run, index = self.run, int(self.run.selection.indices[row])
        before, after = self._smoothed(run.attribution, row), None if self.repaired is None else self._smoothed(self.repaired, row)
        scale = before.abs().max().clamp_min(1e-12)
        pictures = {kind: (run.folder.pictures / f"{index:06d}-{kind}.png").read_bytes() for kind in ("clean", "contours")}
        rows = self._rows(row, index)
        label = int(run.selection.labels[row])
        return Card(
            index,
            run.descriptions[label].name,
            "; after the repair: ".join(self._answer(answers, row) for answers in self.answers),
            self.files.get(index, ""),
            self._kinds(index, label, rows, wrong=int(self.answers[0].predicted[row]) != label),
            picture_url(pictures["clean"]),
            proportions(pictures["clean"]),
            picture_url(pictures["contours"]),
            heatmap_url(before / scale),
            None if after is None else heatmap_url(after / scale),
            self.critiques.get(index, []),
            rows,
            self.drawings.get(index),
        )

    def _smoothed(self, attribution: Attribution, row: int) -> Float[Tensor, "height width"]:
        return smooth_heatmaps(attribution.heatmaps[row : row + 1], self.smooth)[0]

    def _answer(self, answers: Predictions, row: int) -> str:
        probability = float(answers.probability[row])
        how_sure = f"{probability:.2f}" if probability < 0.995 else "over 0.99"
        return f"{self.run.descriptions[int(answers.predicted[row])].name}, probability {how_sure}"

    def _kinds(self, index: int, label: int, rows: Sequence[SegmentRow], *, wrong: bool) -> str:
        kinds = [f"c{label}", *(f"v-{value}" for value in sorted({row.verdict for row in rows}))]
        kinds += [f"s{number}" for number in sorted(self.shortcuts_of.get(index, ()))]
        kinds += ["v-person"] if any(row.source == HUMAN for row in rows) or index in self.drawings else []
        return " ".join([*kinds, *(["v-wrong"] if wrong else [])])

    def _rows(self, row: int, index: int) -> list[SegmentRow]:
        run = self.run
        words = SegmentWords.read(self.critiques.get(index, ()))
        positions = describe_positions(torch.where(run.segmentation.effect[row], run.segmentation.segments[row], -1))
        rows = []
        for segment in range(run.segmentation.count(row)):
            verdict = self.settled[index, segment]
            rows.append(
                SegmentRow(
                    f"S{segment + 1}",
                    positions[segment] if segment < len(positions) else "",
                    float(run.segmentation.shares[row, segment]),
                    verdict.value,
                    verdict.source,
                    verdict.by,
                    verdict.at,
                    tell_dispute(self.disputes.get((index, segment), [])),
                    NOT_JUDGED if verdict.is_open else verdict.problem or verdict.doubt,
                    verdict.p,
                    words.first.get(f"S{segment + 1}", ""),
                    verdict.close_up in VALUES,
                    words.near.get(f"S{segment + 1}", ""),
                )
            )
        return rows


def tell_dispute(verdicts: Sequence[Verdict]) -> str:
    """What people said who disagree on a segment, in the order of time."""
    return "; ".join(f"{verdict.by or 'somebody'}: {verdict.value}{f', {verdict.at}' if verdict.at else ''}" for verdict in verdicts)
