"""A request as one message of the OpenAI chat protocol: what several backends send, keep or show."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rightreasons.common.text import drop_thoughts
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


def read_content(content: object) -> str:
    """What a message says, as a text or as parts, without the thoughts that open models write before it; "" where it says nothing."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return drop_thoughts("".join(text for text in texts if isinstance(text, str)))


def read_misplaced(message: Mapping[str, Any]) -> str:
    """The JSON object with which the thoughts of a message end, where the message has no content; "" where they end otherwise."""
    for key in ("reasoning_content", "reasoning"):
        said = read_content(message.get(key))
        if said.removesuffix("```").rstrip().endswith("}"):
            return said
    return ""


def decode_picture(part: dict[str, Any]) -> Image.Image:
    """The picture in a part of a message."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix(_DATA_URL)))).convert("RGB")
