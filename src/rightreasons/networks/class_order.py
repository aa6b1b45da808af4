"""Which output of a network stands for which class of the data: decided by names if there are any, never by position alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rightreasons.errors import ConfigError, ModelError
from rightreasons.networks.checkpoints import Note, as_names
from rightreasons.networks.classifier import Classifier

# Names that programs give to an output that nobody named.
PLACEHOLDER = re.compile(r"(label|class|target|output)?[\s_-]*\d+", re.IGNORECASE)


def match_classes(outputs: Sequence[str], classes: Sequence[str], synonyms: Mapping[str, str] | None = None) -> tuple[int, ...] | None:
    """The output of each class, by name; None unless the names match the classes one to one.

    Case and separators may differ if the classes stay distinct without them. ``synonyms`` are the classes that labels stand for.
    A single name for two classes names the positive class of a single output.
    """
    synonyms = synonyms or {}
    for read in (str, _plain):
        known = {read(name): name for name in classes}
        if len(known) < len(classes):
            return None
        renamed = {read(label): name for label, name in synonyms.items() if name in classes}
        names = [known.get(read(output)) or renamed.get(read(output)) for output in outputs]
        if len(names) == 1 and len(classes) == 2 and names[0] is not None:
            return (0, 1) if names[0] == classes[1] else (1, 0)
        if len(names) == len(classes) and set(names) == set(classes):
            return tuple(names.index(name) for name in classes)
    return None


def read_order(
    outputs: Sequence[str] | None, classes: Sequence[str], *, source: str, note: Note, synonyms: Mapping[str, str] | None = None
) -> tuple[int, ...] | None:
    """The output of each class by the names that ``source`` gives its outputs; None if it gives none. ``note`` reports another order.

    Raises ModelError if the names are not those of the data's classes.
    """
    if not outputs:
        return None
    order = match_classes(outputs, classes, synonyms)
    if order is None and all(PLACEHOLDER.fullmatch(name.strip()) for name in outputs):
        note(f"{source} does not say which class each output stands for ({_list(outputs)}): they are taken in the data's order, {_list(classes)}")
        return None
    if order is None:
        raise ModelError(
            f"{source} names its outputs {_list(outputs)}, and the classes of the data are {_list(classes)}: state which class each output stands "
            "for, in the outputs' order, in [model] classes; or train the network on these classes, with those weights in [model] pretrained"
        )
    if order != tuple(range(len(order))):
        note(f"{source} names its outputs {_list(outputs)}: they are put into the data's order, {_list(classes)}, by these names")
    return order


def stated_order(outputs: Sequence[str], classes: Sequence[str], synonyms: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """The output of each class as [model] classes states it. Raises ConfigError unless each class is named exactly once."""
    order = match_classes(outputs, classes, synonyms) if len(outputs) == len(classes) else None
    if order is None:
        raise ConfigError(f"[model] classes = {list(outputs)}: expected each class of the data exactly once; the classes are {_list(classes)}")
    return order


def order_outputs(model: Classifier, classes: Sequence[str], stated: Sequence[str] | None) -> Classifier:
    """A caller's own model, with its outputs in the order that is ``stated``.

    Raises ModelError if no order is stated and a Hugging Face model's id2label has the classes in another order.
    """
    if stated is not None:
        return Classifier(model.network, model.preset, stated_order(stated, classes))
    names = as_names(getattr(getattr(model.network, "config", None), "id2label", None))
    order = match_classes(names, classes) if names else None
    if model.order is None and names and order not in (None, tuple(range(len(classes)))):
        raise ModelError(
            f"the model names its outputs {_list(names)} (config.id2label), and the descriptions are in the order {_list(classes)}, which is that "
            f'of the labels: pass settings={{"model": {{"classes": {list(names)}}}}} to have the outputs moved, or the descriptions '
            "in the outputs' order where the labels are in it too"
        )
    return model


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.casefold())).strip()


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
