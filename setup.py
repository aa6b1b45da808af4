"""Gives the package index a description whose links lead somewhere. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:|#")


def absolute_links(text: str, source: str | None) -> str:
    """``text`` with links to files of the repository made absolute, at ``source`` as GitHub has it; without an address they become plain words."""

    def rewrite(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if _ELSEWHERE.match(target):
            return found[0]
        if source is None:
            return "" if image else words
        return f"{image}[{words}]({source.rstrip('/')}/{'raw' if image else 'blob'}/main/{target})"

    return _LINK.sub(rewrite, text)


def read_description() -> str:
    """README.md, with its links at the address that pyproject.toml names as Source."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), urls.get("Source"))


if __name__ == "__main__":
    setup(long_description=read_description(), long_description_content_type="text/markdown")
