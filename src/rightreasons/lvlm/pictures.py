"""The bound on every picture that is sent, and finding the pictures in a request's body, whatever the provider's format.

In a body every PNG is base64 text, with or without the prefix of a data URL.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from collections.abc import Callable
from typing import Any

_DATA_URL = "data:image/png;base64,"
# The PNG signature "\x89PNG\r\n\x1a\n" in base64, without its last character, which shares bits with the next byte.
_SIGNATURE = "iVBORw0KGg"
# No larger picture is sent. Hosted models scale down to less than this side, and the tightest limit of a provider is 5 MB in base64.
MOST_SIDE = 2048
MOST_BYTES = 3_500_000


def bound_picture(png: bytes, *, side: int = MOST_SIDE, size: int = MOST_BYTES) -> bytes:
    """The picture unchanged if its longer side has at most ``side`` pixels and its file at most ``size`` bytes, else scaled down until it has."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        return png
    longer = max(struct.unpack(">II", png[16:24]))
    if longer <= side and len(png) <= size:
        return png
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    wanted = min(longer, side)
    while True:
        scaled = picture.resize([max(1, round(length * wanted / longer)) for length in picture.size], Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        scaled.save(buffer, "PNG")
        if buffer.tell() <= size or wanted == 1:
            return buffer.getvalue()
        # The bytes grow with the area. Aiming 5 % lower mostly makes one more step enough.
        wanted = max(1, min(wanted - 1, int(0.95 * wanted * (size / buffer.tell()) ** 0.5)))


def replace_pictures(value: Any, replace: Callable[[str], object]) -> Any:  # noqa: ANN401 -- any JSON value
    """The same JSON value with every picture's base64 text replaced by what ``replace`` returns for it."""
    if isinstance(value, dict):
        return {key: replace_pictures(inner, replace) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_pictures(inner, replace) for inner in value]
    if isinstance(value, str) and value.removeprefix(_DATA_URL).startswith(_SIGNATURE):
        return replace(value.removeprefix(_DATA_URL))
    return value


def picture_size(encoded: str) -> tuple[int, int]:
    """Width and height of a PNG in base64, read from its header alone."""
    return struct.unpack(">II", base64.b64decode(encoded[:32])[16:24])


def hash_pictures(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """The same JSON value with every picture replaced by the SHA-256 and length of its bytes, which no encoding changes."""

    def digest(encoded: str) -> dict[str, object]:
        content = base64.b64decode(encoded)
        return {"sha256": hashlib.sha256(content).hexdigest(), "length": len(content)}

    return replace_pictures(value, digest)
