"""What ``find`` does with verdicts that like segments contradict."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rightreasons.common.progress import Silent
from rightreasons.common.seeds import seeded
from rightreasons.critic.calibration import calibrate
from rightreasons.critic.votes import find_waiting
from rightreasons.data.loading import StoredImages
from rightreasons.explain.evidence import Evidence
from rightreasons.pipeline.agreement import contradict_verdicts
from rightreasons.records import Attribution, Criticism, Segmentation, Selection, Verdict

IMAGES, SIDE = 60, 8


class EarlyExit(nn.Module):
    """Bright images, such as noise, take the long way, on which its last features of places are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.first(images).relu()
        return (self.second(maps) if images.amax() > 0.9 else maps).mean((2, 3))[:, :2]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)), EarlyExit()])
def test_one_wrong_verdict_counts_as_unsure_and_keeps_what_was_said(model, in_memory):
    """The upper half is bright and spurious in every image, the lower one dark and relevant; the critic errs on image 7, and a person speaks of 9."""
    pictures = torch.rand(IMAGES, 1, SIDE, SIDE, generator=seeded(0, "pictures")) / 8
    pictures[:, :, : SIDE // 2] += 0.7
    segments = torch.zeros(IMAGES, SIDE, SIDE, dtype=torch.int8)
    segments[:, SIDE // 2 :] = 1
    indices = torch.arange(IMAGES)
    evidence = Evidence(
        StoredImages(in_memory(pictures, indices % 2), indices),
        Selection("low", indices, indices % 2, torch.zeros(IMAGES)),
        Attribution(torch.ones(IMAGES, SIDE, SIDE), indices % 2, torch.zeros(IMAGES)),
        Segmentation(segments, segments >= 0, torch.full((IMAGES, 2), 0.5), ("segmented",) * IMAGES),
        0.0,
    )
    said = [Verdict(image, part, value, "model:x", p=0.5) for image in range(IMAGES) for part, value in enumerate(("spurious", "relevant"))]
    said[14] = replace(said[14], value="relevant")
    said[18] = replace(said[18], value="relevant", source="human")
    found, criticism = contradict_verdicts(model, evidence, said, Criticism("model:x", simulated=False), Silent())
    assert [(number, verdict.value, verdict.contradicted) for number, verdict in enumerate(found) if verdict != said[number]] == [
        (14, "unsure", "relevant")
    ]
    assert found[14].p == said[14].p and "relevant" in (found[14].doubt or ""), "p is what the votes say"
    waiting = find_waiting(replace(found[14], p=0.25), share=0.5)
    assert waiting is not None and waiting.weight == 0.5, "as important as what nobody can tell"
    assert criticism.agreement is not None and criticism.agreement["contradicted"] == 1
    alike = [replace(verdict, value="spurious") for verdict in said]
    assert contradict_verdicts(model, evidence, alike, criticism, Silent()) == (alike, criticism)


def test_calibration_is_about_what_was_said_and_takes_the_contradicted_first():
    said = {(image, 0): Verdict(image, 0, "spurious", "model:x", p=0.75) for image in range(4)}
    said[3, 0] = replace(said[3, 0], value="unsure", contradicted="spurious", doubt="else elsewhere")
    people = {(image, 0): Verdict(image, 0, "spurious" if image < 3 else "relevant", "human", by="Ann") for image in range(4)}
    found = calibrate(said, people)
    assert [(level.p, level.count, level.spurious) for level in found.levels] == [(0.75, 4, 3)]
    assert found.curve[:2] == ((0.0, 0.75), (0.25, 1.0)), "the one that is wrong is the first that a person sees"
    assert found.uncertainty(said[3, 0]) == 1 > found.uncertainty(said[0, 0])
