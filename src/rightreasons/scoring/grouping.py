"""Groups spurious segments of many images that show the same thing, by where they lie, how they look and what the critiques say of them.

Each of the three gives a distance of two segments, from 0, the same, to 1. What two of them agree on counts: the middle one of three, the larger
one of two. So a stamp that lies now here, now there is one shortcut, and so is a tag whose colour changes. Segments are joined by average linkage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Two groups are joined up to this mean distance.
SAME = 0.5
# Centres this far apart, as a share of the side, are as far as can be; so are colours in 0 to 1.
FAR, OTHER_COLOUR = 0.35, 1.0
# A tag may hang in any corner: of the distance of two places, this part is that after both are mirrored into the same quarter of the image.
MIRRORED = 0.6
# More segments than this are not compared with one another: the others join the group of the segment that they are nearest to.
MOST_COMPARED = 400


def place_distances(centres: Float[Tensor, "segment 2"]) -> Float[Tensor, "segment segment"]:
    """By the distance of the centres, (row, column) as shares of the sides; mirrored places are near."""
    plain, folded = ((torch.cdist(places, places) / FAR).clamp(0, 1) for places in (centres, torch.minimum(centres, 1 - centres)))
    return MIRRORED * folded + (1 - MIRRORED) * plain


def look_distances(colours: Float[Tensor, "segment 3"], features: Float[Tensor, "segment feature"] | None) -> Float[Tensor, "segment segment"]:
    """By mean colour, and by the angle between the model's own features, from which those of the images were taken away, if it has any."""
    by_colour = (torch.cdist(colours, colours) / OTHER_COLOUR).clamp(0, 1)
    if features is None:
        return by_colour
    directions = F.normalize(features, dim=1)
    return (by_colour + (1 - directions @ directions.T).clamp(0, 1)) / 2


def word_distances(vectors: Float[Tensor, "segment word"]) -> Float[Tensor, "segment segment"] | None:
    """By the angle between vectors of words; None if most segments have no words of their own."""
    known = vectors.norm(dim=1) > 0
    if known.float().mean() <= 0.5:
        return None
    directions = F.normalize(vectors, dim=1)
    distances = (1 - directions @ directions.T).clamp(0, 1)
    # A segment that nothing was said of is neither near nor far.
    distances[~known], distances[:, ~known] = SAME, SAME
    return distances


def join_distances(parts: Sequence[Float[Tensor, "segment segment"] | None]) -> Float[Tensor, "segment segment"]:
    """What two of the parts agree on: the second smallest distance of each pair."""
    known = torch.stack([part for part in parts if part is not None])
    return known.sort(0).values[min(1, len(known) - 1)]


def group_segments(distances: Float[Tensor, "segment segment"]) -> list[list[int]]:
    """The groups, largest first: the two that are nearest in the mean are joined, until none are within ``SAME``."""
    count = len(distances)
    first = min(count, MOST_COMPARED)
    groups = _link(distances[:first, :first])
    for row in range(first, count):
        nearest = min(range(len(groups)), key=lambda number: float(distances[row, groups[number]].mean()))
        if float(distances[row, groups[nearest]].mean()) <= SAME:
            groups[nearest].append(row)
        else:
            groups.append([row])
    return sorted((sorted(group) for group in groups), key=lambda group: (-len(group), group[0]))


def _link(distances: Float[Tensor, "segment segment"]) -> list[list[int]]:
    groups = [[row] for row in range(len(distances))]
    between = distances.double().fill_diagonal_(torch.inf)
    sizes = torch.ones(len(groups), dtype=torch.float64)
    while len(groups) > 1:
        place = int(between.argmin())
        one, other = sorted(divmod(place, len(groups)))
        if float(between[one, other]) > SAME:
            break
        merged = (sizes[one] * between[one] + sizes[other] * between[other]) / (sizes[one] + sizes[other])
        between[one], between[:, one] = merged, merged
        between[one, one] = torch.inf
        sizes[one] += sizes[other]
        groups[one] += groups.pop(other)
        rest = torch.arange(len(between)) != other
        between, sizes = between[rest][:, rest], sizes[rest]
    return groups
