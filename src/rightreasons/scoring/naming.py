"""Names a group of spurious segments by the words that its critiques share, or else by colour and place. Asks nobody."""

from __future__ import annotations

import colorsys
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rightreasons.common.text import clean_text

# A phrase names a group if at least this share of the group's critiques have it.
LEAST_SHARED = 0.3
LONGEST_PHRASE = 4
# A place is named if at least this share of the group's segments lie there.
MOSTLY = 0.6
# Of two groups of one name, one is called the larger if its segments are this much larger in the mean.
LARGER = 1.5
# Words that say nothing of what is seen: those of every English text, and those of the task that the critic was given.
_EMPTY = frozenset(
    """a about above across after again against all almost along already also although always among an and another any appears are area areas around
    as associated at away background based be because been before being below beside between both but by can cannot case centre center class
    classes classification classifier clear clearly close clue colour color conclude conclusion concentrated contain containing contains corner
    corners could cover covering covers critique critic defined depend depends describe described description despite determine detail details
    diagnostic did does doesn doing done down due each edge edges effect either else element elements entire entirely essential even evidence
    example expert feature features few find first focus focuses for from further given gives good group had has have having here high highly
    highlighted highlights how however identify image images important in inconsequential include included includes including indicate indicates
    indicative information inside instead into irrelevant is isn it its itself just know known large largely least left less lie lies like likely
    located location look looks lower made main mainly make makes many mark marked matter matters may mean means middle might model more most mostly
    much must near nearly need needs network neural never no non none nor not nothing object observe of off often on one only onto or other others
    out outline outside over overlap overlaps own part particular parts photo photograph picture pictures piece place portion positive possible
    presence present primarily probably property provide provides purely quite rather really reason reasoning region regions related relevant
    relies rely result right same say says second see seems seen segment segmented segments several share should show showing shown shows side
    significant simulated since small so some something specific spot spurious still subject such sure surrounding than that the their them then
    there therefore these they thing this those though through thus to together too top towards true two typically under unlike unrelated until
    unsure up upon upper us use used useful using usually very visible was way we well were what when where whether which while whole whose why will
    with within without would yes yet you your bottom""".split()
)
_CORNERS = frozenset(f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right"))
_WORD = re.compile(r"[^\W\d_][\w'-]*", re.UNICODE)


@dataclass(frozen=True)
class Name:
    """What a group is called: a phrase, where it mostly lies in words ("" if here and there), and up to five words that its critiques share."""

    phrase: str
    place: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The phrase and the place."""
        return f"{self.phrase}, {self.place}" if self.place else self.phrase


def name_group(said: Sequence[str], others: Sequence[str], places: Sequence[str], colour: Float[Tensor, " channel"]) -> Name:
    """The name of a group of segments with these critiques and places and this mean colour; ``others`` are the critiques of relevant segments."""
    phrases = _share(said)
    elsewhere = _share(others)
    scored = {
        phrase: share * (1 + 0.6 * phrase.count(" ")) * (1 - elsewhere.get(phrase, 0.0))
        for phrase, share in phrases.items()
        if share >= LEAST_SHARED and (share * len(said) >= 2 or len(said) == 1)
    }
    ranked = sorted(scored, key=lambda phrase: (-scored[phrase], phrase))
    words = tuple(phrase for phrase in ranked if " " not in phrase and scored[phrase] > 0.1)[:5]
    best = ranked[0] if ranked and scored[ranked[0]] > 0.1 else ""
    return Name(clean_text(best) or f"{name_colour(colour)} patch", name_place(places), words)


def tell_apart(names: Sequence[str], areas: Sequence[float]) -> list[str]:
    """The names, made unique: of two alike the larger and the smaller where that is seen, else numbers. ``areas`` are shares of the image."""
    told, taken = list(names), set(names)
    for name in [name for name, count in Counter(names).items() if count > 1]:
        rows = [row for row, other in enumerate(names) if other == name]
        marks = ["", *(f" ({number})" for number in range(2, len(rows) + 1))]
        small, large = sorted(areas[row] for row in rows)[:: len(rows) - 1]
        if len(rows) == 2 and large >= LARGER * small:
            marks = [" (the larger one)" if areas[row] == large else " (the smaller one)" for row in rows]
        for row, mark in zip(rows, marks, strict=True):
            told[row], number = name + mark, len(rows)
            while mark and told[row] in taken:
                number += 1
                told[row] = f"{name} ({number})"
            taken.add(told[row])
    return told


def name_place(places: Sequence[str]) -> str:
    """Where most of a group's segments lie; "" if here and there."""
    ((place, count),) = Counter(places).most_common(1)
    if count >= MOSTLY * len(places):
        return place
    for words, within in (("in the corners", _CORNERS), ("at the edges", _CORNERS | {"top", "bottom", "left", "right"})):
        if sum(place in within for place in places) >= MOSTLY * len(places):
            return words
    return ""


def word_vectors(texts: Sequence[str], background: Sequence[str]) -> Float[Tensor, "text word"]:
    """Words weighted by how few of all texts have them: one row for each of ``texts``. Words of nearly all texts weigh nothing."""
    documents = [set(_content(text)) for text in (*texts, *background)]
    counts = Counter(word for document in documents for word in document)
    kept = [word for word, count in sorted(counts.items()) if count >= 2]
    vectors = torch.zeros(len(texts), max(1, len(kept)))
    for column, word in enumerate(kept):
        weight = math.log(len(documents) / counts[word])
        vectors[[row for row in range(len(texts)) if word in documents[row]], column] = weight
    return vectors


def name_colour(colour: Float[Tensor, " channel"]) -> str:
    """A colour in 0 to 1 in one word; one channel is a shade of grey."""
    values = colour.clamp(0, 1).tolist()
    red, green, blue = values if len(values) == 3 else [values[0]] * 3
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if lightness < 0.12:
        return "black"
    if lightness > 0.9:
        return "white"
    if saturation < 0.18:
        return "dark grey" if lightness < 0.35 else "grey" if lightness < 0.65 else "light grey"
    names: Mapping[float, str] = {
        15: "red",
        45: "orange",
        70: "yellow",
        165: "green",
        200: "cyan",
        260: "blue",
        300: "purple",
        340: "pink",
        361: "red",
    }
    named = next(name for end, name in names.items() if 360 * hue < end)
    return "brown" if named in ("orange", "red") and lightness < 0.3 else named


def _share(texts: Sequence[str]) -> dict[str, float]:
    """The share of the texts that have each phrase."""
    counts = Counter(phrase for text in texts for phrase in set(_phrases(text)))
    return {phrase: count / len(texts) for phrase, count in counts.items()}


def _phrases(text: str) -> Iterator[str]:
    """Every run of up to LONGEST_PHRASE words that say something."""
    for sentence in re.split(r"[.,;:!?()\n\"“”]+", text.lower()):
        for run in _runs(_WORD.findall(sentence)):
            for length in range(1, LONGEST_PHRASE + 1):
                for start in range(len(run) - length + 1):
                    yield " ".join(run[start : start + length])


def _runs(words: Iterable[str]) -> Iterator[list[str]]:
    run: list[str] = []
    for word in words:
        if word in _EMPTY or len(word) < 3:
            if run:
                yield run
            run = []
        else:
            run.append(word)
    if run:
        yield run


def _content(text: str) -> Iterator[str]:
    return (word for word in _WORD.findall(text.lower()) if word not in _EMPTY and len(word) >= 3)
