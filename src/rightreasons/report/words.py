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
    if metrics["classifier"]["problems"]:
        return "First find out why the classifier's answers do not fit the data; see the notice below."
    if metrics["outcome"] == "could not be examined":
        return "The classifier has to be one that can be examined; the reason is below."
    if metrics["outcome"] == "not judged yet":
        return "Somebody has to judge the segments: rightreasons review RUN shows them in a browser."
    verdict, alignment = metrics["fitness"]["verdict"], metrics["alignment"]
    if alignment is None and metrics["outcome"] == "shortcut found":
        todo = "Let an expert look at the verdicts (rightreasons review RUN), then repair the classifier: rightreasons fix RUN."
        return f"What was found keeps within the bounds; a repair can lower it further. {todo}" if verdict == "fit for use" else todo
    if alignment is not None and alignment["outcome"] == "original kept":
        accept = "A repair was put aside, since it did harm; whether it is used nevertheless is for a person to say: rightreasons fix RUN --accept."
        return f"{accept} {_meanwhile(metrics, 'The original classifier, which is kept,')}"
    if alignment is not None and alignment["effect"] == "did not take":
        return f"The repair did not take: below it says what to try. {_meanwhile(metrics, 'The classifier')}"
    if verdict == "not fit":
        return _mend(metrics)
    if metrics["critic"]["waiting"]:
        waiting = metrics["critic"]["waiting"]
        return f"{waiting} segment{'s wait' if waiting > 1 else ' waits'} for a person's verdict: rightreasons review RUN."
    return _find_out(metrics) if verdict == "cannot tell" else "Keep this page with the model, and look again when the data or the model change."


def _meanwhile(metrics: Mapping[str, Any], which: str) -> str:
    """What holds of the classifier until a person has decided on its repair."""
    verdict = metrics["fitness"]["verdict"]
    if verdict == "fit for use":
        return f"{which} keeps within the bounds as it is."
    if verdict == "not fit":
        return f"Until then keep the classifier out of use: {_name_unfit(metrics)}."
    return f"{which} may or may not be fit for use: do not rely on it until then."


def _mend(metrics: Mapping[str, Any]) -> str:
    """What can be done about a classifier that is not fit, though no repair is due or the repair took."""
    waiting, steps = metrics["critic"]["waiting"], []
    if waiting:
        segments = f"{waiting} segments that wait" if waiting > 1 else "segment that waits"
        steps.append(f"decide the {segments} (rightreasons review RUN)")
    if metrics["alignment"] is not None and metrics["alignment"]["outcome"] != "nothing to change":
        steps += ["inspect more images ([sample] size)", "repair it for more epochs ([align] epochs)"]
    elif metrics["shortcuts"]:
        steps += ["inspect more images ([sample] size)", "repair it (rightreasons fix RUN)"]
    else:
        steps.append("train it anew or on more data, since nothing that was judged spurious makes it so")
    return f"Keep the classifier out of use for now: {_name_unfit(metrics)}. What may help: {'; '.join(steps)}."


def _find_out(metrics: Mapping[str, Any]) -> str:
    """What would tell whether the classifier is fit, once nothing waits for a person."""
    alignment = metrics["alignment"]
    if alignment is not None and alignment["outcome"] == "accepted":
        return (
            "A person accepted a repair that the harm guard had rejected; whoever answers for the classifier has to look at what it does worse, "
            "class by class below. More images do not settle that."
        )
    if any(control["passed"] is False for control in metrics["critic"]["controls"]):
        return "The critic fails a control: let people judge (rightreasons review RUN), or take another critic."
    return "More images would tell: inspect more ([sample] size), or hold out more."


def _name_unfit(metrics: Mapping[str, Any]) -> str:
    """The classes that are not fit: "class a and class b are not fit for use"."""
    classes = metrics["fitness"]["classes"]
    names = [f"class {name}" for name, item in classes.items() if item["verdict"] == "not fit"]
    if len(names) == len(classes):
        return "no class is fit for use"
    shown, rest = names[:MOST_CLASSES], len(names) - MOST_CLASSES
    if rest > 0:
        return f"{', '.join(shown)} and {rest} other {'class' if rest == 1 else 'classes'} are not fit for use"
    return f"{' and '.join([', '.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)} {'is' if len(shown) == 1 else 'are'} not fit for use"


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
    return [*told, *_tell_worse(shortcut)]


def _tell_worse(shortcut: Mapping[str, Any]) -> list[str]:
    """A sentence if the repaired classifier leans on a shortcut more than before, by more than the interval of the measure before the repair."""
    effect, later, worse = shortcut["effect_before"], shortcut["effect_after"], []
    if effect is not None and later is not None and later["changed"] / later["pasted"] > effect["changed_interval"][1]:
        worse.append("pasting it changes more answers than before")
    ends, after = shortcut.get("evidence_interval"), shortcut["evidence_after"]
    if ends is not None and after is not None and after > ends[1]:
        worse.append("it carries more of the evidence than before")
    return [f"The repair made this one worse: {', and '.join(worse)}, beyond the 95 % interval."] if worse else []


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
    where = f": {_list_classes(found['classes'])}" if found["classes"] and found["found"] else ""
    share = percent(found["found"] / found["images"])
    return (
        f"The probe, which looks for them by the classifier's own features, finds something that looks like them in {found['found']} of all "
        f"{found['images']} training images ({share}){where}. {tell_probe(found['recall'], found.get('precision'))}"
    )


def tell_probe(recall: float, precision: float | None) -> str:
    """How far the probe's findings can be trusted, by its cross-validation on the inspected images, and what to do about it."""
    told = f"Cross-validated on the inspected images, it finds {percent(recall)} of what was judged spurious, less what it marks wrongly"
    if precision is not None:
        told += f", and {percent(precision)} of the inspected images in which it finds something have it"
    return f"{told}. Some of its findings are false alarms: look at every image that rightreasons suspects RUN lists before you act on it."


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
