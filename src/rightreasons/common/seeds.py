"""Generators: every random draw takes one, so that nothing reads or moves global random state."""

from __future__ import annotations

import hashlib

import torch


def seeded(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that no stage's draws depend on another's."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
