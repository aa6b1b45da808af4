"""A line for every number on the page: what it is, what is good, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The scores in the table of numbers: key in metrics.json, title, meaning.
SCORES = (
    ("accuracy", "Accuracy", "the share of right answers"),
    ("worst_group_accuracy", "Worst group", "accuracy of the group that fares worst; needs ground-truth groups"),
    ("average_group_accuracy", "Average group", "the mean over groups; needs ground-truth groups"),
    ("weighted_group_accuracy", "Weighted average", "the mean over groups, weighted as in training; needs ground-truth groups"),
    (
        "mu_align",
        "mu_align",
        "the share of the attribution outside the shortcut; 1 is best, and it means nothing without the next line; needs ground-truth masks",
    ),
    (
        "mu_align_floor",
        "mu_align of an even map",
        "what a map has that looks at everything alike: a mu_align below it prefers the shortcut; needs ground-truth masks",
    ),
    (
        "shortcut_lift",
        "Lift",
        "the shortcut's share of the attribution over its share of the area: 1 as an even map, below 1 avoids it; needs ground-truth masks",
    ),
    (
        "spurious_share",
        "Spurious share of the evidence",
        "of all that speaks for the answer in the inspected images, the part on segments judged spurious; 0 is best",
    ),
    ("spurious_lift", "Spurious lift", "that share over the segments' share of the area: 1 is as much as an even map, below 1 avoids them"),
    (
        "swap_flip_rate",
        "Answers that pasting changes",
        "how often pasting a spurious segment into a held-out image of another class changes the answer; 0 is best",
    ),
    ("mean_entropy", "Mean entropy", "how unsure the classifier is, in nats; 0 is certain"),
)

# The other numbers, in the order of the page.
OTHERS = (
    ("Evidence", "the pixels that speak for the classifier's answer, each with a weight; with DeepLIFT SHAP the weights add up to the answer"),
    ("Inspected images", "the training images that were explained and judged; unless they were drawn at random, they are no sample of all"),
    ("Segment", "a region that the evidence of one image is cut into: S1, S2, ..."),
    ("Interval", "where the true number lies with 95 % certainty, if other images of the same kind were drawn; wide if there are few"),
    ("In all training images", "where a probe on the classifier's own features finds the same thing in images that nobody inspected"),
    ("Right, as it is and pasted", "accuracy on held-out images before and after a spurious segment of another class is pasted in"),
    (
        "Where the shortcut tells nothing",
        "accuracy on held-out images in which shortcuts were exchanged at random: what is left comes from the classes",
    ),
    ("Effect", "a segment's share of the evidence of its image"),
    ("p(spurious)", "how likely a segment is spurious by the critic's votes, from 0 to 1"),
    (
        "Sensitivity, specificity",
        "of what is truly spurious, and of what truly is not, the share that the critic says so of; needs ground-truth masks",
    ),
    ("Right with a person", "if a person sees this share of the segments, the most uncertain first, the share of verdicts that is right then"),
    ("Completeness error", "how far the heatmaps are from adding up to the answer; 0 is exact"),
    ("Calls, cached", "requests that a server answered, and those that needed no call since the answer was known"),
)

LIMITS = (
    "Only shortcuts that lie in a region of the picture are seen. A texture over the whole image, its sharpness, or what is missing is not.",
    "Verdicts are as good as the words of the expert and the eyes of the critic. What nobody described is not judged by it.",
    "The inspected images are a few of many. A shortcut that none of them has is not found.",
    "Pasting a segment covers what was there before, so that a part of the changed answers comes from the covering.",
    "Fit for use means: no shortcut was found that is beyond the bounds. It does not mean that the classifier is good enough, safe, or allowed.",
)


def explain_scores(models: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, str, str]]:
    """The rows of the table of numbers: those of which any model has a value."""
    return [row for row in SCORES if any(scores.get(row[0]) is not None for _, scores in models)]
