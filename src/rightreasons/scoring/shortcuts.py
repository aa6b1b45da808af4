"""What a classifier leans on, in words: judged-spurious segments grouped into shortcuts, each with a name and what it does (docs/method.md, 8)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rightreasons.common.memory import BATCH_BYTES, how_many
from rightreasons.critic.close_up import SegmentWords
from rightreasons.critic.critique import describe_positions
from rightreasons.data.loading import StoredImages
from rightreasons.explain.evidence import smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.networks.places import NotReached
from rightreasons.records import Critique, Value, settle_verdicts
from rightreasons.repair.propagate import open_features
from rightreasons.repair.swap import Pasted
from rightreasons.run import SWAP_HOSTS, Run
from rightreasons.runs.names import load_names
from rightreasons.scoring.grouping import group_segments, join_distances, look_distances, place_distances, word_distances
from rightreasons.scoring.metrics import mean_interval, wilson_interval
from rightreasons.scoring.naming import Name, name_group, tell_apart, word_vectors

# The effect of so many shortcuts is measured one by one, each on at most GROUP_HOSTS held-out images.
MOST_MEASURED = 5
GROUP_HOSTS = 200
# Who names a group unless an LVLM was asked: its critiques' words, colour and place.
GROUPING = "grouping"
LARGEST_BATCH = 32


@dataclass(frozen=True)
class Item:
    """A spurious segment of the inspected image in ``row``, or what a person painted there if ``segment`` is None."""

    row: int
    segment: int | None
    words: str


@dataclass(frozen=True)
class Group:
    """Spurious segments that show the same thing, with an ID, the name that the grouping gives, and what critiques say of them."""

    key: str
    items: tuple[Item, ...]
    name: Name
    said: tuple[str, ...]


@dataclass(frozen=True)
class _Looks:
    """Of each item: its centre (row, column) as shares of the sides, its place in words, mean colour, and the model's features, if it has any."""

    centres: Float[Tensor, "item 2"]
    places: list[str]
    colours: Float[Tensor, "item channel"]
    features: Float[Tensor, "item feature"] | None


def find_names(run: Run, after: Float[Tensor, "image height width"] | None) -> list[dict[str, Any]]:
    """``shortcuts`` of metrics.json, the one in most images first. ``after`` has the inspected images' heatmaps under the repaired model.

    Names that an LVLM gave are used if they were given to this very grouping.
    """
    masks = run.masks
    groups, given = group_shortcuts(run, masks), load_names(run.folder)
    names = given.names if given is not None and given.grouping == hash_grouping(run, groups) else {}
    told = []
    for rank, group in enumerate(groups):
        shortcut = _tell(run, group, masks, after, alone=len(groups) == 1, measured=rank < MOST_MEASURED)
        if given is not None and group.key in names:
            shortcut |= {"name": names[group.key], "named_by": given.by}
        told.append(shortcut)
    areas = [torch.stack([_mask(run, item, masks).float().mean() for item in group.items]).mean().item() for group in groups]
    names = tell_apart([shortcut["name"] for shortcut in told], areas)
    return [{**shortcut, "name": name} for shortcut, name in zip(told, names, strict=True)]


def group_shortcuts(run: Run, masks: Bool[Tensor, "image height width"]) -> list[Group]:
    """The groups of spurious segments, the one in most images first. ``masks`` are the run's corrective masks."""
    items = [item for item in _list_items(run, "spurious") if _mask(run, item, masks).any()]  # a person may have erased all of one
    if not items:
        return []
    looks, relevant = _look_at(run, items, masks), [item.words for item in _list_items(run, "relevant")]
    texts = [item.words for item in items]
    colours = looks.colours.expand(-1, 3) if looks.colours.shape[1] == 1 else looks.colours
    parts = [place_distances(looks.centres), look_distances(colours, looks.features), word_distances(word_vectors(texts, relevant))]
    found = group_segments(join_distances(parts))
    found.sort(key=lambda members: -len({items[number].row for number in members}))
    groups = []
    for rank, members in enumerate(found):
        said = tuple(texts[number] for number in members if texts[number])
        places = [looks.places[number] for number in members]
        name = name_group(said, [text for text in relevant if text], places, looks.colours[members].mean(0))
        groups.append(Group(f"G{rank + 1}", tuple(items[number] for number in members), name, said))
    return groups


def hash_grouping(run: Run, groups: Sequence[Group]) -> str:
    """What identifies a grouping: the SHA-256 of which segments are in which group, and of what critiques say of them."""
    listed = [[group.key, _members(run, group.items), group.said] for group in groups]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _list_items(run: Run, value: Value) -> list[Item]:
    row_of = {index: row for row, index in enumerate(run.selection.indices.tolist())}
    critiques: dict[int, list[Critique]] = {}
    for critique in run.critiques:
        critiques.setdefault(critique.index, []).append(critique)
    said = {index: SegmentWords.read(those) for index, those in critiques.items()}
    items = [
        Item(row_of[index], segment, said[index].on(verdict) if index in said else "")
        for (index, segment), verdict in settle_verdicts(run.verdicts).items()
        if verdict.value == value
    ]
    if value == "spurious":
        drawn = {drawing.index: drawing for drawing in run.drawings}
        items += [Item(row_of[index], None, "") for index, drawing in drawn.items() if drawing.painted.any()]
    return sorted(items, key=lambda item: (item.row, -1 if item.segment is None else item.segment))


def _mask(run: Run, item: Item, masks: Bool[Tensor, "image height width"]) -> Bool[Tensor, "height width"]:
    """The item's part of the corrective mask."""
    if item.segment is None:
        index = int(run.selection.indices[item.row])
        return next(drawing for drawing in reversed(run.drawings) if drawing.index == index).painted & masks[item.row]
    return (run.segmentation.segments[item.row] == item.segment) & masks[item.row]


def _look_at(run: Run, items: Sequence[Item], masks: Bool[Tensor, "image height width"]) -> _Looks:
    rows = torch.tensor([item.row for item in items])
    images = StoredImages(run.train, run.selection.indices[rows])
    pool = open_features(run.model, images[:2])
    size = how_many(images[:1].nbytes, BATCH_BYTES, LARGEST_BATCH)
    centres, places, colours, features = [], [], [], []
    for start in range(0, len(items), size):
        part = images[start : start + size]
        marks = torch.stack([_mask(run, item, masks) for item in items[start : start + size]])
        sides = torch.tensor(marks.shape[1:])
        for mark, image in zip(marks, part, strict=True):
            centres.append((mark.nonzero().float().mean(0) + 0.5) / sides)
            places.append(describe_positions(torch.where(mark, 0, -1))[0])
            colours.append(image[:, mark].mean(1)[:3] if len(image) >= 3 else image[:1, mark].mean(1))
        if pool is not None:
            try:
                features.append(pool(part, marks[:, None])[:, 0])
            except NotReached:  # the path of some images leads by: places and colours alone
                pool, features = None, []
    return _Looks(torch.stack(centres), places, torch.stack(colours), torch.cat(features) if features else None)


def _tell(
    run: Run,
    group: Group,
    whole: Bool[Tensor, "image height width"],
    after: Float[Tensor, "image height width"] | None,
    *,
    alone: bool,
    measured: bool,
) -> dict[str, Any]:
    """One shortcut for metrics.json; ``whole`` is the corrective mask of all of them."""
    masks = torch.zeros_like(whole)
    for item in group.items:
        masks[item.row] |= _mask(run, item, whole)
    shares = _shares(run, run.attribution.heatmaps, masks)
    labels, having = run.selection.labels, masks.flatten(1).any(1)

    def measure(model: nn.Module | None) -> dict[str, Any] | None:
        pasted = run.paste(model, masks, SWAP_HOSTS if alone else GROUP_HOSTS) if measured and model is not None else None
        return None if pasted is None or not len(pasted) else count_effect(pasted)

    return {
        "name": group.name.text,
        "named_by": GROUPING,
        "place": group.name.place,
        "words": list(group.name.words),
        "segments": len(group.items),
        "images": int(having.sum()),
        "classes": {
            item.name: [int((having & (labels == label)).sum()), int((labels == label).sum())]
            for label, item in enumerate(run.descriptions)
            if (having & (labels == label)).any()
        },
        "evidence_before": float(shares.double().mean()),
        "evidence_interval": list(mean_interval(shares)),
        "evidence_after": None if after is None else float(_shares(run, after, masks).double().mean()),
        "effect_before": measure(run.model),
        "effect_after": measure(run.aligned),
        "members": _members(run, group.items),
    }


def _members(run: Run, items: Sequence[Item]) -> list[list[int | None]]:
    """The image and the segment of each item."""
    return [[int(run.selection.indices[item.row]), item.segment] for item in items]


def count_effect(pasted: Pasted) -> dict[str, Any]:
    """How many held-out images were tried, how many answers pasting changes (with a 95 % interval of the rate), and how many are right."""
    right = ((answers == pasted.labels).sum() for answers in (pasted.clean, pasted.swapped))
    before, after = (int(count) for count in right)
    changed = int(pasted.changed.sum())
    ends = wilson_interval(changed, len(pasted))
    return {"pasted": len(pasted), "changed": changed, "changed_interval": list(ends), "right_before": before, "right_pasted": after}


def _shares(run: Run, heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"]) -> Float[Tensor, " image"]:
    """The share of each inspected image's positive effect that lies in the masks; heatmaps are smoothed as for the segments."""
    smooth, shares = smooth_width(run.model, run.config.segment), torch.zeros(len(masks))
    for row in masks.flatten(1).any(1).nonzero()[:, 0].tolist():
        positive = smooth_heatmaps(heatmaps[row : row + 1], smooth)[0].clamp_min(0)
        shares[row] = (positive * masks[row]).sum() / positive.sum().clamp_min(1e-12)
    return shares
