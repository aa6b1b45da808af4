"""How a person's verdict gets into a run: one road, for the command, the app and Python."""

from __future__ import annotations

from collections.abc import Iterable

from rightreasons.errors import ConfigError
from rightreasons.records import HUMAN, Value, Verdict
from rightreasons.runs.appended import now, read_name
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import check_segment


def decide(
    folder: RunFolder, decisions: Iterable[tuple[int, int, Value]], *, by: str | None, withdraw: bool = False, origin: str | None = None
) -> list[Verdict]:
    """A person's verdicts, each (image, segment counted from 0, value), appended with name and time; with ``withdraw`` they are taken back.

    ``origin`` names the program and the file from which they are imported.

    They are on the disk when this returns. Other processes may add verdicts, fine-tune or read at the same time. Raises ConfigError if the run has no
    verdicts yet, and ValueError for a segment that it does not have or a name that is none; then nothing is written.
    """
    counts = folder.segment_counts()
    if counts is None or not (folder.path / "verdicts.jsonl").exists():
        raise ConfigError(f"{folder.path} has no verdicts yet: run `rightreasons find` with the same --out to its end first")
    name, at, news = read_name(by), now(), []
    for index, segment, value in decisions:
        check_segment(index, segment, counts)
        news.append(Verdict(index, segment, value, HUMAN, by=name, at=at, withdraws=withdraw, origin=origin))
    folder.add_verdicts(news)
    return news
