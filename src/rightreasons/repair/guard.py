"""Decides whether a repair did harm, by accuracy on held-out images as they are and with the shortcut made useless (docs/method.md, eq. 13).

Held-out images carry the shortcut as the training images do, so that plain accuracy falls even if a repair is good: part of it came from the
shortcut. If the pixels that the probe marks are filled and judged-spurious segments of random inspected images are pasted in, the shortcut says
nothing about the class, and the accuracy that is left comes from the classes themselves.
"""

from __future__ import annotations

import torch
from torch import nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import Batch
from rightreasons.networks.predictions import Predictions, predict_labels
from rightreasons.records import HeldOut
from rightreasons.repair.align import AlignmentSet, neutral_images

SHOWN_AT_ONCE = 64
# A class is lost if it got at least this share of the answers before and gets none after.
LOST_CLASS = 0.02
# If plain accuracy falls beyond the bound, accuracy with the shortcut made useless must rise by at least this share of the fall.
LEAST_RETURN = 0.5


def measure_held_out(model: nn.Module, plain: Predictions, hosts: Batch, alignment: AlignmentSet, seed: int) -> HeldOut:
    """``plain`` are the answers on the whole validation split, ``hosts`` some of its images. The same seed gives both models the same pictures."""
    images, neutral = neutral_images(hosts, alignment, seeded(seed, "guard")), None
    if images is not None:
        parts = zip(*(part.split(SHOWN_AT_ONCE) for part in (hosts.indices, images, hosts.labels)), strict=True)
        neutral = predict_labels(model, [Batch(*part) for part in parts]).correct.double().mean().item()
    model.eval()
    with torch.no_grad():
        classes = model(hosts.images[:1].to(next(iter(model.parameters())).device)).shape[1]
    shares = torch.bincount(plain.predicted, minlength=classes).double() / len(plain.predicted)
    return HeldOut(plain.correct.double().mean().item(), neutral, tuple(shares.tolist()))


def find_harm(before: HeldOut, after: HeldOut, max_drop: float) -> str | None:
    """The reason not to use the repair, in words; None if it may be used.

    It is harmful if accuracy with the shortcut made useless falls by more than ``max_drop``; if a class is no longer answered; or if plain
    accuracy falls by more than ``max_drop`` and accuracy with the shortcut made useless does not rise by half of that.
    """
    lost = [number for number, (old, new) in enumerate(zip(before.answers, after.answers, strict=True)) if old >= LOST_CLASS and new == 0]
    if lost:
        return f"it no longer answers class {', '.join(map(str, lost))} on any validation image"
    if before.neutral is not None and after.neutral is not None:
        if before.neutral - after.neutral > max_drop:
            return f"where the shortcut tells nothing, held-out accuracy would fall from {before.neutral:.3f} to {after.neutral:.3f}"
        gain = after.neutral - before.neutral
    else:
        gain = 0.0
    fall = before.accuracy - after.accuracy
    if fall > max_drop and gain < LEAST_RETURN * fall:
        return (
            f"validation accuracy would fall from {before.accuracy:.3f} to {after.accuracy:.3f}, and accuracy where the shortcut tells nothing "
            f"would rise by {gain:.3f} only"
        )
    return None
