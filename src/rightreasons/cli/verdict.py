"""The command verdict: a person decides on segments, one at a time or in a table."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rightreasons.records import Value, Verdict
    from rightreasons.runs.folder import RunFolder

# One decision: the image's number, the segment counted from 0, and the verdict.
Decision = tuple[int, int, "Value"]
_COLUMNS: tuple[str, ...] = ("image", "segment", "value", "said", "effect", "why", "picture")


def verdict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `find` has finished.")],
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="The image's number in the report, or its file name.")] = None,
    segment: Annotated[str | None, typer.Argument(metavar="SEGMENT", help="S1, S2, ... as in the report.")] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="spurious, relevant or unsure.")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; kept with the verdict.")] = None,
    table: Annotated[Path | None, typer.Option("--from", metavar="CSV", help="Many at once: columns image, segment, value (or empty).")] = None,
    show: Annotated[bool, typer.Option("--list", help="Print what waits for a person as such a table, to be filled in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")] = False,
) -> None:
    """Decide on a segment as a person, which overrules any model's verdict. Nothing is sent, and nothing is lost if this is killed."""
    from rightreasons.errors import ConfigError
    from rightreasons.records import settle_verdicts
    from rightreasons.runs.deciding import decide
    from rightreasons.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    folder.config()  # is it a run folder?
    counts, verdicts = folder.segment_counts(), folder.load_verdicts()
    if counts is None or verdicts is None:
        raise ConfigError(f"{folder.path} has no verdicts yet: run `rightreasons find` with the same --out to its end first")
    if show:
        _print_waiting(folder, verdicts, as_json=as_json)
        return
    decisions = _decisions(folder, counts, image, segment, value, table)
    if not (by or "").strip():
        raise ConfigError("a verdict needs the name of the person who decides: add --by NAME")
    settled = settle_verdicts(verdicts)
    try:
        news = decide(folder, decisions, by=by)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    changes = [_change(new, settled.get((new.index, new.segment))) for new in news]
    if as_json:
        typer.echo(json.dumps(changes, indent=2, ensure_ascii=False))
        return
    for change in changes:
        typer.echo(f"image {change['image']}, {change['segment']}: {change['before']} -> {change['value']}, by {change['by']}")
    typer.echo(f"next: `rightreasons fix {run_folder}` fine-tunes with these verdicts; `rightreasons score {run_folder}` renews the report")


def _decisions(
    folder: RunFolder, counts: dict[int, int], image: str | None, segment: str | None, value: str | None, table: Path | None
) -> list[Decision]:
    """The decisions, each checked against the run before anything is written. Raises ConfigError or DataError naming the row."""
    from rightreasons.data.formats.table import read_table
    from rightreasons.errors import ConfigError, DataError

    if table is None:
        if image is None or segment is None or value is None:
            raise ConfigError("expected IMAGE SEGMENT VALUE, such as 132 S1 spurious; or --from CSV; or --list")
        try:
            return [_decide(folder, counts, image, segment, value)]
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if image is not None:
        raise ConfigError(f"both {image!r} and --from {table} were given; expected only one of them")
    read = read_table(table)
    rows = zip(read.column("image"), read.column("segment"), read.column("value"), strict=True)
    decisions: dict[tuple[int, int], Decision] = {}
    for number, (name, part, said) in enumerate(rows):
        if not said:
            continue
        try:
            decision = _decide(folder, counts, name, part, said)
            if decisions.setdefault(decision[:2], decision) != decision:
                raise ValueError(f"image {name}, {part} has two rows with different values; expected one")
        except ValueError as error:
            raise DataError(f"{read.where(number)}: {error}") from error
    if not decisions:
        raise DataError(f"{table} has no row with a value: write spurious, relevant or unsure into that column")
    return list(decisions.values())


def _decide(folder: RunFolder, counts: dict[int, int], image: str, segment: str, value: str) -> Decision:
    """A decision from its words. Raises ValueError for an image or segment that the run does not have, or a value that is not a verdict."""
    from rightreasons.runs.verdict_lines import check_segment, read_segment, read_value

    decided, part = read_value(value), read_segment(segment)
    index = int(image) if image.isascii() and image.isdigit() else _find_image(folder, image)
    check_segment(index, part, counts)
    return index, part, decided


def _find_image(folder: RunFolder, name: str) -> int:
    """The number of the training image with that file name, looked up in the data. Raises ValueError unless exactly one has it."""
    from rightreasons.data import open_data
    from rightreasons.data.names import Names, list_names

    config = folder.config()
    train = open_data(config.data, root=folder.root(), seed=config.run.seed).splits["train"]
    found = Names(list_names(train)).find(name)
    if len(found) != 1:
        raise ValueError(f"{len(found)} training images are called {name!r}; give the image's number in the report, or more of its path")
    return found[0]


def _change(new: Verdict, before: Verdict | None) -> dict[str, object]:
    from rightreasons.records import HUMAN

    said = "no verdict" if before is None else f"{before.value} ({before.by if before.source == HUMAN and before.by else before.source})"
    return {"image": new.index, "segment": f"S{new.segment + 1}", "before": said, "value": new.value, "by": new.by, "at": new.at}


def _print_waiting(folder: RunFolder, verdicts: list[Verdict], *, as_json: bool) -> None:
    """Prints the segments that wait for a person, most important first, with an empty column for the value."""
    from rightreasons.critic.votes import queue_verdicts

    selection, segmentation = folder.load_selection(), folder.load_segmentation()
    assert selection is not None and segmentation is not None  # their segments were counted
    rows: list[dict[str, object]] = [
        {
            "image": entry.index,
            "segment": f"S{entry.segment + 1}",
            "value": "",
            "said": entry.value,
            "effect": f"{entry.share:.0%}",
            "why": entry.reason,
            "picture": str(folder.pictures / f"{entry.index:06d}-contours.png"),
        }
        for entry in queue_verdicts(verdicts, selection, segmentation)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
