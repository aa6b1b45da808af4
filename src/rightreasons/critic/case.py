"""Cases: an image with its segments as the critic is asked about it, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from rightreasons.common.files import write_bytes, write_text
from rightreasons.common.progress import Reporter
from rightreasons.critic.lettering import has_lettering
from rightreasons.critic.pictures import FINEST, FIRST_STYLE, LONGEST, STYLE, CloseUp, render_close_up, render_pictures, to_bytes
from rightreasons.data.loading import own_pixels
from rightreasons.explain.evidence import Evidence
from rightreasons.records import ClassDescription, Pictures, Subject
from rightreasons.runs.folder import RunFolder


@dataclass(frozen=True)
class Case:
    """One image with all that the critic is asked and shown about it.

    ``shown`` covers the whole image and has the number of a segment at the pixels that carry its effect (-1 elsewhere); ``pictures`` shows them.
    ``look_closer`` draws the close-up of one segment.
    """

    image: Float[Tensor, "channel image_height image_width"]
    shown: Int[Tensor, "height width"]
    pictures: Pictures
    subject: Subject
    label: int
    descriptions: Sequence[ClassDescription]
    shares: Sequence[float]
    look_closer: Callable[[int], CloseUp] | None = None

    @property
    def is_control(self) -> bool:
        """Whether the right verdict is known, so that the answer is about the critic and not about the classifier."""
        return self.subject.known is not None


@dataclass(frozen=True)
class Cases:
    """The inspected images as cases, by row. Their pictures are drawn once and saved in the run folder."""

    evidence: Evidence
    descriptions: Sequence[ClassDescription]
    folder: RunFolder

    @property
    def rows(self) -> list[int]:
        """The rows of the images with segments."""
        return self.evidence.examined

    def __getitem__(self, row: int) -> Case:
        """One image as a case."""
        evidence = self.evidence
        shares = evidence.segmentation.shares[row, : evidence.segmentation.count(row)].tolist()
        label = int(evidence.selection.labels[row])
        closer = partial(self.close_up, row)
        return Case(self.image(row), self.shown(row), self.pictures(row), self.subject(row), label, self.descriptions, shares, closer)

    def image(self, row: int) -> Float[Tensor, "channel image_height image_width"]:
        """The image as the critic sees it: the pixels of its file if the data set has files, else those that the network sees."""
        images = self.evidence.images
        if _picture_style(self.folder) == FIRST_STYLE:
            return images[row]
        own = own_pixels(images.dataset, int(images.indices[row]), LONGEST)
        return images[row] if own is None else own.float() / 255

    def fine_pixels(self, row: int) -> UInt8[np.ndarray, "image_height image_width 3"]:
        """What close-ups are cut from: the pixels of the image's file, of which a critic sees fewer in the first pictures if they are many."""
        images = self.evidence.images
        own = None if _picture_style(self.folder) == FIRST_STYLE else own_pixels(images.dataset, int(images.indices[row]), FINEST)
        if own is None:
            return to_bytes(images[row])
        colours = own[:3] if len(own) >= 3 else own[:1].expand(3, -1, -1)
        return colours.permute(1, 2, 0).contiguous().numpy()

    def close_up(self, row: int, segment: int) -> CloseUp:
        """The close-up of one segment."""
        return render_close_up(self.fine_pixels(row), self.evidence.shown_effect(row), around=self.shown(row) == segment)

    def keep_close_ups(self, row: int, segments: Iterable[int]) -> None:
        """Saves the close-ups of some segments that the critic was asked about beside the other pictures of their image."""
        index = int(self.evidence.images.indices[row])
        for segment in segments:
            paths = [self.folder.pictures / f"{index:06d}-close-S{segment + 1}{kind}.png" for kind in ("", "-outlined")]
            if not all(path.exists() for path in paths):
                drawn = self.close_up(row, segment)
                for path, content in zip(paths, (drawn.clean, drawn.outlined), strict=True):
                    write_bytes(path, content)

    def shown(self, row: int) -> Int[Tensor, "height width"]:
        """The number of a segment at the pixels that carry its effect, -1 elsewhere."""
        segmentation = self.evidence.segmentation
        return torch.where(segmentation.effect[row], segmentation.segments[row], -1)

    def subject(self, row: int) -> Subject:
        """What a simulated critic needs to look up the truth of the image."""
        evidence = self.evidence
        return Subject(int(evidence.selection.indices[row]), evidence.segmentation.segments[row], evidence.shown_effect(row))

    def pictures(self, row: int) -> Pictures:
        """The pictures of the image, read from the run folder if they were drawn before."""
        style = _picture_style(self.folder)
        index = int(self.evidence.images.indices[row])
        paths = {kind: self.folder.pictures / f"{index:06d}-{kind}.png" for kind in ("clean", "contours", "map")}
        if all(path.exists() for path in paths.values()):
            return Pictures(**{kind: path.read_bytes() for kind, path in paths.items()}, style=style)
        drawn = render_pictures(self.image(row), self.shown(row), style)
        for kind, path in paths.items():
            write_bytes(path, getattr(drawn, kind))
        return drawn

    def draw(self, reporter: Reporter) -> None:
        """Draws the pictures that have not been drawn."""
        with reporter.stage("render") as advance:
            advance(0, len(self.rows))
            for done, row in enumerate(self.rows, start=1):
                self.pictures(row)
                advance(done, len(self.rows))


def warn_of_lettering(cases: Cases, reporter: Reporter, *, close_ups: bool) -> None:
    """Notes which images seem to carry printed text, which may name a patient, before any of them is sent.

    Where ``close_ups`` may be sent, smaller print is looked for, which those would make legible.
    """
    with reporter.stage("lettering") as advance:
        marked = []
        advance(0, len(cases.rows))
        for done, row in enumerate(cases.rows, start=1):
            if has_lettering(to_bytes(cases.image(row))) or (close_ups and any(map(has_lettering, _quarters(cases.fine_pixels(row))))):
                marked.append(int(cases.evidence.images.indices[row]))
            advance(done, len(cases.rows))
    if marked:
        shown = ", ".join(map(str, marked[:5])) + (", ..." if len(marked) > 5 else "")
        reporter.note(
            f"{len(marked)} of {len(cases.rows)} inspected images seem to have text burned into them (training images {shown}): check whether "
            f"it names a person before they are sent anywhere. The check is a rough one, which can be wrong both ways (docs/critic.md)"
        )


def _quarters(pixels: UInt8[np.ndarray, "height width 3"]) -> list[np.ndarray]:
    """The four quarters of an image of which a critic first sees fewer pixels than it has; none of any other image."""
    if max(pixels.shape) <= LONGEST:
        return []
    row, column = (length // 2 for length in pixels.shape[:2])
    return [half[:, part] for half in (pixels[:row], pixels[row:]) for part in (slice(column), slice(column, None))]


def _picture_style(folder: RunFolder) -> str:
    """The style of a run's pictures, which is saved beside them; pictures without a saved style have the first one."""
    path = folder.pictures / "style.txt"
    if path.exists():
        return path.read_text(encoding="utf-8")
    if any(folder.pictures.glob("*.png")):
        return FIRST_STYLE
    folder.pictures.mkdir(exist_ok=True, mode=0o700)
    write_text(path, STYLE)
    return STYLE
