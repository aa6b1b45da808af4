"""Whether a repair did harm: how a model does on held-out images as they are, and where the shortcut tells nothing (docs/method.md, eq. 13).

Held-out images carry the shortcut as the training images do, so that plain accuracy falls even when a repair is good: some of it was the
shortcut's. With judged-spurious segments of random inspected images pasted in, and what the probe finds in them filled out first, the shortcut tells
nothing, and what is left is what the model knows of the classes.
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
# A class that got this share of the answers before and none after is lost.
LOST_CLASS = 0.02
# Of the plain accuracy that is lost beyond the bound, at least this share must come back where the shortcut tells nothing.
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
    """Why the repair is not to be used, in words; None where it is.

    It is harmful where accuracy falls by more than ``max_drop`` although the shortcut tells nothing there; where a class is no longer answered;
    and where plain accuracy falls by more than ``max_drop`` and not half of that comes back where the shortcut tells nothing.
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
