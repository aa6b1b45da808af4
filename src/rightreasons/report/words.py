"""The sentences with which the page opens: what a head of department reads in a minute. Pure functions of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A sentence names at most this many classes.
MOST_CLASSES = 4


@dataclass(frozen=True)
class Headline:
    """The verdict in two words, the sentence under it, what to do next, and the colour class of it."""

    verdict: str
    sentence: str
    next_step: str
    kind: str


def percent(value: float | None) -> str:
    """A share in words; small shares keep a digit, so that little is not called nothing."""
    if value is None:
        return "–"
    if 0 < value < 0.0005:
        return "less than 0.1%"
    return f"{value:.1%}" if value and value < 0.0995 else f"{value:.0%}"


def mebibytes(count: int | None) -> str:
    """A number of bytes in MiB."""
    return "–" if count is None else f"{count / 2**20:.0f}"


def tell_headline(metrics: Mapping[str, Any]) -> Headline:
    """The verdict on the classifier, as far as shortcuts go."""
    fitness, alignment = metrics["fitness"], metrics["alignment"]
    repaired = alignment is not None and alignment["outcome"] in ("aligned", "accepted")
    which = "The repaired classifier" if repaired else "The classifier"
    verb = {"fit for use": "is fit for use", "not fit": "is not fit for use", "cannot tell": "may or may not be fit for use: that cannot be told"}
    sentence = f"{which} {verb[fitness['verdict']]}, as far as shortcuts go. {_capital(fitness['reasons'][0])}."
    kind = {"fit for use": "good", "not fit": "bad", "cannot tell": "open"}[fitness["verdict"]]
    return Headline(fitness["verdict"], sentence, _next_step(metrics), kind)


def _next_step(metrics: Mapping[str, Any]) -> str:
    critic, alignment = metrics["critic"], metrics["alignment"]
    if metrics["classifier"]["problems"]:
        return "First find out why the classifier's answers do not fit the data; see the notice below."
    if metrics["outcome"] == "could not be examined":
        return "The classifier has to be one that can be examined; the reason is below."
    if metrics["outcome"] == "not judged yet":
        return "Somebody has to judge the segments: rightreasons review RUN shows them in a browser."
    if alignment is None and metrics["outcome"] == "shortcut found":
        return "Let an expert look at the verdicts (rightreasons review RUN), then repair the classifier: rightreasons fix RUN."
    if alignment is not None and alignment["outcome"] == "original kept":
        return "A repair was put aside, since it did harm; whether it is used nevertheless is for a person to say: rightreasons fix RUN --accept."
    if alignment is not None and alignment["effect"] == "did not take":
        return "The repair did not take: below it says what to try."
    if critic["waiting"]:
        return f"{critic['waiting']} segments wait for a person's verdict: rightreasons review RUN."
    if metrics["fitness"]["verdict"] == "cannot tell":
        return "More images would tell: inspect more ([sample] size), or hold out more."
    return "Keep this page with the model, and look again when the data or the model change."


def tell_shortcut(shortcut: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """What is known of one shortcut, in sentences: where it was seen, its evidence, what it does to the answers."""
    size, images = metrics["selection"]["size"], shortcut["images"]
    told = [f"Seen in {images} of {size} inspected images: {_list_classes(shortcut['classes'])}."]
    after = "" if shortcut["evidence_after"] is None else f", and {percent(shortcut['evidence_after'])} after the repair"
    told.append(f"It carries {percent(shortcut['evidence_before'])} of all the evidence{after}.")
    effect, later = shortcut["effect_before"], shortcut["effect_after"]
    if effect is not None:
        low, high = effect["changed_interval"]
        told.append(
            f"Pasted into {effect['pasted']} held-out images of other classes, it changes {_rate(effect, 'changed')} of the answers "
            f"({percent(low)} to {percent(high)}), and accuracy on them goes from {_rate(effect, 'right_before')} to {_rate(effect, 'right_pasted')}."
        )
    if later is not None:
        told.append(
            f"After the repair it changes {_rate(later, 'changed')}, and accuracy goes from {_rate(later, 'right_before')} to "
            f"{_rate(later, 'right_pasted')}."
        )
    return told


def tell_spread(metrics: Mapping[str, Any]) -> str:
    """In how many of all training images the shortcuts are."""
    alignment = metrics["alignment"]
    if not metrics["shortcuts"]:
        return ""
    if alignment is None:
        return (
            "In how many of all the training images they are is counted by rightreasons fix, which looks for them by the classifier's own features."
        )
    found = alignment.get("spread")
    if found is None:
        return "In how many of all the training images they are could not be counted: the classifier's features do not show them well enough."
    told = (
        f"{found['found']} of all {found['images']} training images ({percent(found['found'] / found['images'])}) have something that looks like them"
    )
    return f"{told}: {_list_classes(found['classes'])}." if found["classes"] and found["found"] else f"{told}."


def tell_repair(metrics: Mapping[str, Any]) -> str:
    """What became of the repair, in a sentence or two; "" before there was one."""
    alignment = metrics["alignment"]
    if alignment is None or alignment["outcome"] == "nothing to change":
        return ""
    before, after = metrics["before"], metrics["after"] if alignment["outcome"] != "original kept" else metrics["rejected"]
    told = {
        "aligned": "The repair did not take." if alignment["effect"] == "did not take" else "The classifier was repaired.",
        "accepted": "The repair did harm by the harm guard's measure, and a person accepted it.",
        "original kept": f"A repair was tried and put aside, since it did harm: {alignment['reason']}. The original classifier is kept.",
    }[alignment["outcome"]]
    if after is None:
        return told
    parts = [f"Accuracy on {_scored_on(metrics)} went from {percent(before['accuracy'])} to {percent(after['accuracy'])}"]
    if before["swap_flip_rate"] is not None and after["swap_flip_rate"] is not None:
        parts.append(f"the answers that pasting changes from {percent(before['swap_flip_rate'])} to {percent(after['swap_flip_rate'])}")
    if before["spurious_share"] is not None and after["spurious_share"] is not None:
        parts.append(f"the spurious share of the evidence from {percent(before['spurious_share'])} to {percent(after['spurious_share'])}")
    return f"{told} {', '.join(parts)}."


def _scored_on(metrics: Mapping[str, Any]) -> str:
    return "the test images" if metrics["data"]["images"].get("test") else "the validation images"


def _rate(effect: Mapping[str, int], key: str) -> str:
    return percent(effect[key] / effect["pasted"])


def _list_classes(counts: Mapping[str, Sequence[int]]) -> str:
    """The classes with most first: "all 15 of class 0, 3 of the 15 of class 4"."""
    ordered = sorted(((name, some, whole) for name, (some, whole) in counts.items() if some), key=lambda item: -item[1])
    parts = [f"all {whole} of class {name}" if some == whole else f"{some} of the {whole} of class {name}" for name, some, whole in ordered]
    shown = parts[:MOST_CLASSES]
    rest = len(parts) - len(shown)
    return ", ".join(shown) + (f", and some of {rest} other {'class' if rest == 1 else 'classes'}" if rest else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
