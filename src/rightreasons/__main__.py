"""``python -m rightreasons``: the commands."""

from rightreasons.cli import app

app()
