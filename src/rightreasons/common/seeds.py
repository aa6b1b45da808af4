"""Seeded generators. Every random draw takes one, so nothing reads or changes global random state."""

from __future__ import annotations

import hashlib

import torch


def seeded(seed: int, *purpose: object) -> torch.Generator:
    """A separate CPU generator for each purpose, so that no stage's draws depend on another's."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
