"""Checks whether an expert's description of a class helps a critic: it must name something that can be pointed at in a picture.

The rule: remove the classes' own names, function words, words about pictures and classes ("image", "category", "typical") and words that only say
what something is like ("dark", "large"). Something must remain: a region ("wing", "border") or a shortcut ("ruler", "background"). What remains may
still be useless, and in a language other than English nearly everything remains, so this finds the plain cases and stays silent on the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rightreasons.records import ClassDescription

_BETWEEN = """
a an and any are as at be been both but by can could does do each every everything few for from had
has have here how i if in into is it its itself kind
like looks looking many may more most much must neither no nor not nothing of often on one only or other others our part parts should shows show shown
so some something such than that the their them then there these they thing things this those to two type up use used usually very was we were what
when where which who whole will with within without would you your
"""
_ABOUT = """
abnormal accuracy anything appearance belongs belong case cases category categories certain characteristic characteristics class classes classified
classifier clear clearly contain contains correct correctly decide decides describe described describes description diagnosed diagnosis different
distinguish distinguishes example examples expert feature features find found good bad healthy identify image images important interest irrelevant
label labels look matter matters model negative normal object objects photo photograph photographs photos picture pictures positive present property
properties region regions relevant represents right sample samples see seen segment segments sick spurious standard subject subjects target true
typical unhealthy unimportant usual visible wrong
"""
_LIKE = """
asymmetric asymmetrical beautiful big black blue blurry bright brighter brown coarse colored coloured colorful dark darker dense dim dull even evenly
fine flat green grey gray hard heavy high irregular large larger light lighter little long low narrow old orange pale pink purple red regular rough
round sharp shiny short small smaller smooth soft strange strong symmetric tall thick thin tiny uneven uniform weak white wide yellow young
"""
_SAYS_NOTHING = frozenset((_BETWEEN + _ABOUT + _LIKE).split())


def check_descriptions(descriptions: Sequence[ClassDescription]) -> list[str]:
    """A note for each class whose description names no region and no shortcut, by the rule above."""
    names = {word for description in descriptions for word in _words(description.name)}
    return [
        f"a description that names no region and no shortcut: that of class {item.name!r} ({_quote(item)}). A critic judges a segment by things "
        f'that can be pointed at: say what part of the picture matters ("the lesion itself: its border and structure"), or what does not '
        f'("plasters and rulers beside it"). If these words do name such a thing, leave them as they are'
        for item in descriptions
        if not (_words(f"{item.description} {item.irrelevant}") - names - _SAYS_NOTHING)
    ]


def _words(text: str) -> set[str]:
    """The words of a text in lower case, without digits and without single letters, such as a possessive's s."""
    found = set(re.findall(r"[^\W\d_]+", text.lower()))
    return found - {word for word in found if len(word) == 1 and word.isascii()}


def _quote(item: ClassDescription) -> str:
    text = " ".join(f"{item.description} {item.irrelevant}".split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
