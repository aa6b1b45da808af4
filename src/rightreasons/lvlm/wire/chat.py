"""A request as one message of the OpenAI chat protocol, which several backends send, store or show."""

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
    """The text of a message, given as a string or as parts, without the thoughts that open models write before it; "" if it has none."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return drop_thoughts("".join(text for text in texts if isinstance(text, str)))


def read_misplaced(message: Mapping[str, Any]) -> str:
    """The thoughts of a message without content, if they end with a JSON object, which is then the answer; otherwise ""."""
    for key in ("reasoning_content", "reasoning"):
        said = read_content(message.get(key))
        if said.removesuffix("```").rstrip().endswith("}"):
            return said
    return ""


def decode_picture(part: dict[str, Any]) -> Image.Image:
    """The picture in a part of a message."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix(_DATA_URL)))).convert("RGB")
