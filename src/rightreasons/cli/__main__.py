"""``python -m rightreasons.cli``."""

from rightreasons.cli import app

app()
