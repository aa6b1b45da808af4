"""The command review: the page in which experts overrule verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rightreasons.cli.shared import Device


def review(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who reviews; the page asks if this is not given.")] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.")] = 0,
    device: Device = None,
) -> None:
    """Look at what was judged and overrule it in a browser on this machine; start the repair and watch it. Ctrl-C ends the server."""
    from rightreasons.errors import MissingExtra
    from rightreasons.runs.folder import RunFolder

    try:
        import fastapi  # noqa: F401 -- tried before anything is opened
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "review") from error
    from rightreasons.review.server import serve

    serve(RunFolder(run_folder), port=port, name=by, announce=_announce)


def _announce(address: str) -> None:
    typer.echo(f"open {address}")
    typer.echo("The address lets a browser in: give it to nobody. Verdicts are on the disk before the page says so. Ctrl-C ends the server.")
