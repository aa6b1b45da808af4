"""report.html, one self-contained page: the scores, then for each inspected image the picture, heatmaps, segments, critique and verdicts."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rightreasons.common.files import write_atomically
from rightreasons.common.text import clean_text
from rightreasons.critic.controls import MEANINGS
from rightreasons.critic.critique import describe_positions
from rightreasons.critic.parse import read_paragraphs
from rightreasons.explain.evidence import smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.records import Critique, Drawing, Verdict, find_disputes, settle_verdicts
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder

# The page shows at most this many images, or it would be too heavy to open; the run folder has the rest.
MOST_CARDS = 200
MOST_WAITING = 200
_COLUMNS = (
    ("accuracy", "Accuracy", "of all test images"),
    ("worst_group_accuracy", "Worst group", "accuracy of the group that fares worst"),
    ("average_group_accuracy", "Average group", "mean over groups"),
    ("weighted_group_accuracy", "Weighted average", "groups weighted as in training"),
    ("mu_align", "mu_align", "share of the attribution outside the shortcut; 1 is best"),
    ("mu_align_floor", "mu_align of an even map", "which looks at everything alike: a mu_align below it prefers the shortcut"),
    ("shortcut_lift", "Lift", "of the shortcut: its share of the attribution over its share of the area; 1 as an even map, below 1 avoids it"),
    ("spurious_share", "Spurious share", "of the positive effect, on segments judged spurious; 0 is best"),
    ("spurious_lift", "Spurious lift", "the same ratio for the segments judged spurious, by positive effect"),
    ("swap_flip_rate", "Swap flip rate", "how often pasting such a segment in changes the answer; 0 is best"),
    ("mean_entropy", "Mean entropy", "of the output, in nats"),
)


# The longer side in pixels of a picture on the page, and the most bytes that a PNG may have before it becomes a JPEG of that size.
PAGE_SIDE = 600
MOST_BYTES = 100_000


@dataclass(frozen=True)
class _SegmentRow:
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


@dataclass(frozen=True)
class _Card:
    index: int
    label: str
    predicted: str
    clean: str
    proportions: str
    contours: str
    before: str
    after: str | None
    critiques: list[Critique]
    rows: list[_SegmentRow]
    drawing: Drawing | None


def write_report(run: Run, metrics: dict[str, Any], after: Float[Tensor, "image height width"] | None, folder: RunFolder) -> None:
    """Writes report.html. ``after`` has the inspected images' heatmaps under the aligned model, once there is one.

    Heatmaps are shown smoothed as for the segmentation, so that a person sees what was cut into segments.
    """
    smooth = smooth_width(run.model, run.config.segment)

    def smoothed(heatmaps: Tensor, row: int) -> Tensor:
        return smooth_heatmaps(heatmaps[row : row + 1], smooth)[0]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rightreasons.report", "."), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize
    )
    rows = _most_telling(run)[:MOST_CARDS]
    page = environment.get_template("page.html.jinja").stream(
        metrics=metrics,
        columns=[column for column in _COLUMNS if any(_scores(metrics, name).get(column[0]) is not None for name in _models(metrics))],
        models=[(name, _scores(metrics, name)) for name in _models(metrics)],
        cards=(_card(run, row, smoothed(run.attribution.heatmaps, row), None if after is None else smoothed(after, row)) for row in rows),
        shown=len(rows),
        inspected=len(run.selection),
        descriptions=run.descriptions,
        queue=run.queue[:MOST_WAITING],
        waiting=len(run.queue),
        disputes=[(place, _tell_dispute(said)) for place, said in find_disputes(run.verdicts).items()],
        meanings=MEANINGS,
        outcomes={outcome: run.segmentation.outcomes.count(outcome) for outcome in sorted(set(run.segmentation.outcomes))},
    )
    # The page is written one card at a time, since the pictures of large images fill gigabytes.
    write_atomically(folder.path / "report.html", lambda part: page.dump(str(part), encoding="utf-8"))


def _models(metrics: dict[str, Any]) -> list[str]:
    return [*(name for name in ("before", "after", "rejected") if metrics[name]), *metrics["reference"]]


def _scores(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    return metrics[name] if name in ("before", "after", "rejected") else metrics["reference"][name]


def _most_telling(run: Run) -> list[int]:
    """The rows of images that have segments, those with the most spurious effect first."""
    share = torch.zeros(len(run.selection))
    for row, (heatmap, mask) in enumerate(zip(run.attribution.heatmaps, run.masks, strict=True)):
        positive = heatmap.clamp_min(0)
        share[row] = (positive * mask).sum() / positive.sum().clamp_min(1e-12)
    return [row for row in share.argsort(descending=True, stable=True).tolist() if run.segmentation.count(row)]


def _card(run: Run, row: int, before: Float[Tensor, "height width"], after: Float[Tensor, "height width"] | None) -> _Card:
    index = int(run.selection.indices[row])
    critiques = [critique for critique in run.critiques if critique.index == index]
    verdicts = {verdict.segment: verdict for verdict in settle_verdicts(v for v in run.verdicts if v.index == index).values()}
    disputes = find_disputes(verdict for verdict in run.verdicts if verdict.index == index)
    paragraphs = next((read_paragraphs(critique.text) for critique in critiques if critique.problem is None), {})
    positions = describe_positions(torch.where(run.segmentation.effect[row], run.segmentation.segments[row], -1))
    rows = [
        _SegmentRow(
            f"S{segment + 1}",
            positions[segment] if segment < len(positions) else "",
            float(run.segmentation.shares[row, segment]),
            verdicts[segment].value,
            verdicts[segment].source,
            verdicts[segment].by,
            verdicts[segment].at,
            _tell_dispute(disputes.get((index, segment), [])),
            verdicts[segment].problem or verdicts[segment].doubt,
            verdicts[segment].p,
            paragraphs.get(f"S{segment + 1}", ""),
        )
        for segment in range(run.segmentation.count(row))
    ]
    scale = before.abs().max().clamp_min(1e-12)
    clean = (run.folder.pictures / f"{index:06d}-clean.png").read_bytes()
    return _Card(
        index,
        run.descriptions[int(run.selection.labels[row])].name,
        run.descriptions[int(run.attribution.targets[row])].name,
        _picture_url(clean),
        " / ".join(map(str, Image.open(io.BytesIO(clean)).size)),
        _picture_url((run.folder.pictures / f"{index:06d}-contours.png").read_bytes()),
        _heatmap_url(before / scale),
        None if after is None else _heatmap_url(after / scale),
        critiques,
        rows,
        next((drawing for drawing in reversed(run.drawings) if drawing.index == index), None),
    )


def _tell_dispute(verdicts: list[Verdict]) -> str:
    """What people said who disagree on a segment, in the order of time."""
    return "; ".join(f"{verdict.by or 'somebody'}: {verdict.value}{f', {verdict.at}' if verdict.at else ''}" for verdict in verdicts)


def _finalize(value: object) -> object:
    """Cleans whatever a model wrote before the template escapes it, so that on the page it can only be read."""
    return clean_text(value) if type(value) is str else value


def _heatmap_url(heatmap: Float[Tensor, "height width"]) -> str:
    """Colours of a heatmap: red where the effect is positive, blue where it is negative, white where it is zero; 1 is the end of the scale."""
    strength = heatmap.clamp(-1, 1).numpy()
    fade = 1 - np.abs(strength)
    pixels = np.stack([np.where(strength > 0, 1, fade), fade, np.where(strength < 0, 1, fade)], -1)
    return _image_url(Image.fromarray((pixels * 255).astype(np.uint8)))


def _image_url(image: Image.Image) -> str:
    """A picture as PNG, no larger than the page needs."""
    image.thumbnail((PAGE_SIDE, PAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue())


def _picture_url(png: bytes) -> str:
    """A picture of the critic's for the page; a photograph becomes a smaller JPEG, so that a page of many images can be sent by mail."""
    if len(png) <= MOST_BYTES:
        return _data_url(png)
    picture = Image.open(io.BytesIO(png))
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
