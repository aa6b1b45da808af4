"""What ``find`` does with verdicts that like segments contradict."""

from dataclasses import replace

import torch
from torch import nn

from rightreasons.common.progress import Silent
from rightreasons.common.seeds import seeded
from rightreasons.data.loading import StoredImages
from rightreasons.explain.evidence import Evidence
from rightreasons.pipeline.agreement import contradict_verdicts
from rightreasons.records import Attribution, Criticism, Segmentation, Selection, Verdict

IMAGES, SIDE = 60, 8


def test_one_wrong_verdict_counts_as_unsure_and_keeps_what_was_said(in_memory):
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
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2))
    found, criticism = contradict_verdicts(model, evidence, said, Criticism("model:x", simulated=False), Silent())
    assert [(number, verdict.value, verdict.contradicted) for number, verdict in enumerate(found) if verdict != said[number]] == [
        (14, "unsure", "relevant")
    ]
    assert found[14].p is not None and found[14].p > 0.7 and "relevant" in (found[14].doubt or "")
    assert criticism.agreement is not None and criticism.agreement["contradicted"] == 1
    alike = [replace(verdict, value="spurious") for verdict in said]
    assert contradict_verdicts(model, evidence, alike, criticism, Silent()) == (alike, criticism)
