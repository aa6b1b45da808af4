"""The command line: ``rightreasons COMMAND``."""

from rightreasons.cli.commands import app

__all__ = ["app"]
