"""The prompts, as text files in this folder; a change of a file changes the key of every request that uses it."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from string import Template


def fill_prompt(name: str, **values: str) -> str:
    """The prompt ``name`` with its ``$placeholders`` filled; dollar signs in values stay as they are."""
    return Template(read_prompt(f"{name}.txt")).substitute(values)


def read_prompt(filename: str) -> str:
    """A packaged prompt file as text."""
    return files("rightreasons.critic.prompts").joinpath(filename).read_text(encoding="utf-8")


def prompt_version(name: str, *more: object) -> str:
    """The version of a prompt: its name, and a hash of its file and of ``more`` that shapes it (few-shot pairs, the pictures' style)."""
    return f"{name}-{hashlib.sha256(repr((read_prompt(f'{name}.txt'), *more)).encode()).hexdigest()[:12]}"
