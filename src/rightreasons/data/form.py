"""Whether the form of a file tells its class: its format, its bits, its colours, its size. A network can go by what such a form leaves in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rightreasons.data.decode import Header
from rightreasons.data.window import describe_kind

# A form tells a class if at least NEARLY_ALL of its images have it, and at most HARDLY_ANY of the others: a network that goes by the form is then
# right 95 times in 100 on either side, although the form depends on the source of an image and not on what it shows.
NEARLY_ALL, HARDLY_ANY = 0.95, 0.05
# With fewer images on either side, it may be chance: two forms at random separate five images from five others once in 512 times.
FEWEST = 5
# At most this many forms are named.
MOST_TOLD = 4


def tell_forms(headers: Mapping[str, Header], labels: Mapping[str, str]) -> list[str]:
    """A sentence on the forms that tell a class nearly perfectly, or none. ``labels`` has the class of each file of ``headers``, by its name."""
    sizes = Counter(labels[name] for name in headers)
    told = []
    for facet in zip(*(_forms(header) for header in headers.values()), strict=True):
        counts = Counter(zip(facet, (labels[name] for name in headers), strict=True))
        totals = Counter(facet)
        for (form, label), count in sorted(counts.items()):
            others, elsewhere = len(headers) - sizes[label], totals[form] - count
            if min(sizes[label], others) >= FEWEST and count >= NEARLY_ALL * sizes[label] and elsewhere <= HARDLY_ANY * others:
                told.append(f"{form} ({count} of {sizes[label]} of {label!r}, {elsewhere} of {others} others)")
    if not told:
        return []
    more = ", ..." if len(told) > MOST_TOLD else ""
    return [
        f"the form of the files tells the class: {', '.join(told[:MOST_TOLD])}{more}. The network can go by traces of it instead of what is shown, "
        "and no segment need show that: see whether the classes come from different sources, and bring all images into one form"
    ]


def _forms(header: Header) -> tuple[str, str, str, str]:
    """What a file is in each respect, in words."""
    own = "DICOM that says what is black and white" if header.format == "DICOM" else "8 bits a value"
    depth = own if header.deep is None else describe_kind(header.deep)
    return header.format, depth, "grey" if header.mode == "grey" else "coloured", f"{header.width}x{header.height} pixels"
