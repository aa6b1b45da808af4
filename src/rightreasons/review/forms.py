"""What a page sends back, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

# The most fields of a form; a form has a few for each class.
MOST_FIELDS = 2000


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; the last of several with one name. Raises ValueError for a body that is no form."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except UnicodeDecodeError as error:
        raise ValueError(f"a form in UTF-8 was expected ({error})") from error


def read_number(given: Mapping[str, str], key: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``. Raises ValueError naming the field."""
    said = given.get(key, "").strip()
    if not (said.isascii() and said.isdecimal() and len(said) < 10 and low <= int(said) <= high):
        raise ValueError(f"{key} = {said[:40]!r}; expected a whole number from {low} to {high}")
    return int(said)


def read_numbers(said: str) -> list[int]:
    """Numbers separated by commas, spaces or lines. Raises ValueError for anything else, or for none."""
    words = said.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ValueError(f"{said[:40]!r}; expected numbers of images, such as 12, 40, 7")
    return [int(word) for word in words]
