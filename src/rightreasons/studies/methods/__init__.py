"""The methods of a study: ours and those it is compared with. One file per method; each says which labels it sees.

A method is a function of a ``Bench`` (a run with its project and the shortcut model) that returns a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rightreasons.common.progress import Reporter
from rightreasons.run import Run


@dataclass(frozen=True)
class Bench:
    """The run and reporter that a method may use, and a folder for its intermediate files."""

    run: Run
    folder: Path
    reporter: Reporter


Method = Callable[[Bench], nn.Module]
