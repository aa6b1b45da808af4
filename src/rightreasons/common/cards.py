"""A record as a small card for notebooks: one table, escaped, without colours of its own, so that it reads on light and on dark pages."""

from __future__ import annotations

import html
from collections.abc import Iterable

from rightreasons.common.text import clean_text

# The most characters of a cell: a card is a look, and the report has the rest.
LONGEST_CELL = 400
_BOX = "border:1px solid rgba(128,128,128,.5);border-radius:6px;padding:8px 12px;max-width:640px;font:14px/1.45 system-ui,sans-serif"
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;background:none;color:inherit;border:0;overflow-wrap:anywhere"


def show_card(title: str, rows: Iterable[tuple[str, str]], note: str = "") -> str:
    """HTML of a title, rows of a name and a value, and a note. All three may come from models, files and people."""
    lines = "".join(
        f'<tr style="background:none"><th scope="row" style="{_CELL};font-weight:400;opacity:.75">{_escape(name)}</th>'
        f'<td style="{_CELL}">{_escape(value)}</td></tr>'
        for name, value in rows
    )
    below = f'<div style="margin-top:4px">{_escape(note)}</div>' if note else ""
    table = f'<table style="border-collapse:collapse;background:none;color:inherit">{lines}</table>'
    return f'<div style="{_BOX}"><div style="font-weight:600">{_escape(title)}</div>{table}{below}</div>'


def _escape(text: str) -> str:
    shown = clean_text(text)
    return html.escape(shown if len(shown) <= LONGEST_CELL else f"{shown[:LONGEST_CELL]}...")
