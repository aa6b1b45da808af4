"""Several pictures joined into one, for a server that takes fewer of them, and scaled down, for a model whose context they do not fit."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from rightreasons.lvlm.pictures import bound_picture
from rightreasons.lvlm.protocol import Request

GAP = 16
# The longer side of the smaller picture. At this size three joined pictures of 600 pixels keep letters 12 pixels high, for a third of the tokens.
SMALL_SIDE = 1024


def join_pictures(request: Request) -> Request:
    """The same request with its pictures side by side in one, which comes last; the text says which is which.

    No pixel is changed unless the joined picture exceeds the bound in ``pictures``.
    """
    pictures = [part for part in request.parts if isinstance(part, bytes)]
    if len(pictures) < 2:
        return request
    texts: list[str] = []
    for part in request.parts:
        seen = sum(text.startswith("(picture ") for text in texts)
        texts.append(part if isinstance(part, str) else f"(picture {seen + 1} of {len(pictures)}, counted from the left)")
    return replace(request, parts=(*texts, "The pictures, side by side:", _side_by_side(pictures)))


def shrink_pictures(request: Request) -> Request:
    """The same request with one picture in place of all, whose longer side has at most ``SMALL_SIDE`` pixels."""
    joined = join_pictures(request)
    return replace(joined, parts=tuple(bound_picture(part, side=SMALL_SIDE) if isinstance(part, bytes) else part for part in joined.parts))


# The shapes in which a server is shown the pictures, tried in this order, and their names for a note.
SHAPES = (lambda request: request, join_pictures, shrink_pictures)
JOINED, SMALLER = 1, 2
SHAPE_NAMES = ("three pictures", "one picture of all three", "one smaller picture of all three")


def _side_by_side(pictures: list[bytes]) -> bytes:
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    width = sum(picture.width for picture in opened) + GAP * (len(opened) - 1)
    joined = Image.new("RGB", (width, max(picture.height for picture in opened)), "white")
    left = 0
    for picture in opened:
        joined.paste(picture, (left, 0))
        left += picture.width + GAP
    buffer = io.BytesIO()
    joined.save(buffer, "PNG")
    return buffer.getvalue()
