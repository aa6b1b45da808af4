"""The command line: ``rightreasons COMMAND``."""

from rightreasons.cli import check
from rightreasons.cli.commands import app
from rightreasons.cli.shared import register

register(app, "rightreasons check runs/parts --model new.pt --max-flip-rate 0.1", failed=check.CANNOT_CHECK)(check.check)

__all__ = ["app"]
