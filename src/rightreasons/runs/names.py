"""names.json: the names that an LVLM gave to a run's shortcuts, with who gave them and to which grouping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rightreasons.common.files import to_json, write_text
from rightreasons.errors import ConfigError
from rightreasons.runs.folder import RunFolder

NAMES = "names.json"


@dataclass(frozen=True)
class GivenNames:
    """Names by the ID of a group, "G1" for the first, and for each group without one the reason.

    ``grouping`` is the hash of the grouping that was named, ``by`` the LVLM that was asked, ``answered_by`` the model that answered by the server's
    own word (None if it does not say), ``prompt`` the version of the prompt, and ``at`` when.
    """

    grouping: str
    by: str
    answered_by: str | None
    prompt: str
    at: str
    names: Mapping[str, str]
    refused: Mapping[str, str]


def save_names(folder: RunFolder, given: GivenNames) -> None:
    """Writes names.json, whole or not at all."""
    write_text(folder.path / NAMES, to_json(asdict(given)) + "\n")


def load_names(folder: RunFolder) -> GivenNames | None:
    """names.json, read back; None if no names were asked for. Raises ConfigError for a file that is none."""
    path = folder.path / NAMES
    if not path.exists():
        return None
    try:
        given = GivenNames(**json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(name, str) for name in given.names.values()):
            raise ValueError("a name is no text")
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a file of names ({error}): delete it, and run `rightreasons name {folder.path}` again") from error
    return given
