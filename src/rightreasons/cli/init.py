"""The command init: a first configuration for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images, or a table of labels.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The configuration; FOLDER's name with .toml, here, if not given.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="FILE", help="The weights of your classifier.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented configuration for a folder: classes, splits and network are looked up, what only you know is marked. Sends nothing."""
    from rightreasons.common.files import write_text
    from rightreasons.common.progress import Terminal
    from rightreasons.common.text import clean_text
    from rightreasons.config import UNFILLED
    from rightreasons.errors import ConfigError
    from rightreasons.project.draft import draft_config

    if folder.suffix == ".toml":
        raise ConfigError(f"{folder} is a configuration already: `rightreasons inspect {folder}` shows what its data are read as")
    destination = out or Path(f"{folder.resolve().stem if folder.is_file() else folder.resolve().name}.toml")
    if destination.suffix != ".toml":
        raise ConfigError(f"--out {destination}: a configuration's name ends in .toml")
    if destination.exists() and not force:
        raise ConfigError(f"{destination} is there already, and nothing was written: give another --out, or --force to write over it")
    if not destination.parent.is_dir():
        raise ConfigError(f"--out {destination}: the folder {destination.parent} does not exist")
    draft = draft_config(folder, destination, Terminal(), checkpoint=checkpoint)
    write_text(destination, draft.text)
    typer.echo(clean_text(f"note: {draft.told}"))
    places = draft.text.count(f'= "{UNFILLED}')
    typer.echo(f"written: {destination}; fill in what is marked {UNFILLED!r} ({places} places), and then:")
    typer.echo(f"  rightreasons inspect {destination} --model    # tries the network on a few images")
    typer.echo(f"  rightreasons find {destination}")
