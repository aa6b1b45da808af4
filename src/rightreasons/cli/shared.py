"""What the commands share: options, tables, and ending on an error or Ctrl-C."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rightreasons.common.parallel import launched

if TYPE_CHECKING:
    from rightreasons.common.progress import Reporter
    from rightreasons.project.project import Project

STOPPING = "stopping: answers under way are kept; the same command goes on"
STOPPED = "stopped: every verdict that the page told of is kept; the same command opens it again"
# The most seconds from Ctrl-C to the end of the command.
LONGEST_STOP = 1.0
# The most left-out files that are named in notes.
MOST_NOTES = 20

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results. The same command on it continues where it stopped.")]
AllowRemote = Annotated[
    list[str] | None,
    typer.Option("--allow-remote", metavar="HOST", help="Let inspected images be sent to this host; http://HOST: unencrypted too."),
]
AllowRemoteWords = Annotated[
    list[str] | None,
    typer.Option("--allow-remote", metavar="HOST", help="Let this host be asked, without any image of yours; http://HOST: unencrypted too."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", callback=lambda name: _use_device(name), help="cpu, cuda, cuda:1 or mps; default: the best there is."),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration in TOML.")]


def default_folder(config: Path) -> Path:
    """Where the results of a configuration go unless --out says otherwise."""
    return Path("runs") / config.stem


def register(
    app: typer.Typer, example: str, name: str | None = None, *, failed: int = 1, shared: bool = False, stopping: str = STOPPING
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command of ``app`` whose help ends with an example. An error of this package is one message and exit code ``failed``,
    and Ctrl-C one line, ``stopping``.

    A command that is ``shared`` calls ``is_helper`` and may run under torchrun; the others may not.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return app.command(name, epilog=f"Example: {example}")(_clear_errors(command, failed, shared=shared, stopping=stopping))

    return decorate


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table for people; the first column names the row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    # A file has no width of its own, so it gets a wide table.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def note_left_out(left_out: Mapping[str, str], reporter: Reporter, rest: str) -> None:
    """Notes the files that are left out, and why; after ``MOST_NOTES`` of them ``rest`` says where the others are named."""
    from rightreasons.common.text import clean_text

    for path, reason in itertools.islice(left_out.items(), MOST_NOTES):
        reporter.note(clean_text(f"left out {path}: {reason}"))
    if len(left_out) > MOST_NOTES:
        reporter.note(f"and {len(left_out) - MOST_NOTES} more files are left out: {rest}")


def _use_device(name: str | None) -> str | None:
    if name is not None:
        os.environ["RIGHTREASONS_DEVICE"] = name
    return name


def _stops_at_once(words: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes Ctrl-C end a command at once, with one line and exit code 130: files are written atomically, and couriers finish their requests."""

    def interrupt(number: int, frame: object) -> None:
        """Lets the command clean up for ``LONGEST_STOP`` seconds, since threads that read images or wait for answers would hold it for longer."""
        timer = threading.Timer(LONGEST_STOP, _leave, [words])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(*args: object, **kwargs: object) -> None:
            if threading.current_thread() is not threading.main_thread():
                return command(*args, **kwargs)
            before = signal.signal(signal.SIGINT, interrupt)
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                _leave(words)
            finally:
                signal.signal(signal.SIGINT, before)

        return wrapped

    return decorate


def _leave(words: str) -> None:
    show_cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""
    os.write(2, show_cursor + words.encode() + b"\n")
    os._exit(130)


def is_helper(project: Project) -> bool:
    """Whether this process is one of torchrun's helpers, which has then done its share of the command. The main process has helpers from here on."""
    if launched() == 1:
        return False
    from rightreasons.networks.team import serve

    return serve({"model": project.model, **project.task.splits}, project.manifest)


def _clear_errors(command: Callable[..., None], failed: int, *, shared: bool, stopping: str) -> Callable[..., None]:
    @wraps(command)
    @_stops_at_once(stopping)
    def wrapped(*args: object, **kwargs: object) -> None:
        # An error of the command is told before the processes part, and one of joining them by the outer context.
        with _errors_told(failed), _joined(command.__name__, shared=shared), _errors_told(failed):
            command(*args, **kwargs)

    return wrapped


@contextmanager
def _errors_told(failed: int) -> Iterator[None]:
    from rightreasons.common.text import clean_text
    from rightreasons.errors import RightReasonsError
    from rightreasons.lvlm.wire.privacy import redact

    try:
        yield
    except RightReasonsError as error:
        if (words := _word_error(error)) is not None:
            typer.echo(f"error: {clean_text(redact(words))}", err=True)
        raise typer.Exit(failed) from error


@contextmanager
def _joined(name: str, *, shared: bool) -> Iterator[None]:
    """Under torchrun, joins its processes for the time of a command."""
    if launched() == 1:
        yield
        return
    from rightreasons.errors import ConfigError
    from rightreasons.networks.team import joined

    if not shared:
        raise ConfigError(f"{name} is the work of one process: start it without torchrun, which is for find and fix")
    with joined():
        yield


def _word_error(error: Exception) -> str | None:
    """The error in words; None if another process of torchrun tells of it."""
    if launched() == 1:
        return str(error)
    from rightreasons.networks.team import word_error

    return word_error(error)
