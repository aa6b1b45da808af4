"""A request as one message of the OpenAI chat protocol: what several backends send, keep or show."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from rightreasons.lvlm.protocol import Request

if TYPE_CHECKING:
    from PIL import Image

_DATA_URL = "data:image/png;base64,"


def chat_message(request: Request) -> dict[str, Any]:
    """One message from the user: its text and pictures in order, pictures as PNG data URLs."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _DATA_URL + base64.b64encode(part).decode()}}
        for part in request.parts
    ]
    return {"role": "user", "content": content}


def decode_picture(part: dict[str, Any]) -> Image.Image:
    """The picture in a part of a message."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix(_DATA_URL)))).convert("RGB")
