"""For the site: links that lead out of docs/, to examples and sources, become plain words, since the site does not carry those files."""

from __future__ import annotations

import re

_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page before it is rendered."""
    return _OUT_OF_DOCS.sub(r"\1", markdown)
