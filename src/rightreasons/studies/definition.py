"""A study: its rows, the configuration that they share, and what each row changes of it. Read from TOML, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from rightreasons.config import Config, merge_tables, parse_config, read_toml
from rightreasons.data import small_variant, task_defaults
from rightreasons.errors import ConfigError
from rightreasons.records import Scores
from rightreasons.studies.methods import METHODS

# What `--smoke` lays over every row, so that a study takes seconds. A study's own table [smoke] comes on top.
SMOKE: dict[str, Any] = {
    "model": {"epochs": 1, "batch_size": 128},
    "sample": {"size": 20},
    "attribute": {"baselines": 2},
    "segment": {"components": 2},
    "align": {"epochs": 1, "batch_size": 128},
}
# The row that others are compared with unless the study names another one, ours, and the upper bound.
BEFORE, OURS, UPPER = "before", "ours", "without-shortcut"
# The scores that are one number: the metrics of a result.
METRICS = tuple(field.name for field in fields(Scores) if field.type in ("float", "float | None"))
# Settings that change no number of a result: where it is logged, and what the work may cost. And the tables that only a critic reads.
CHANGE_NO_RESULT = ("critic.timeout", "critic.max_usd", "critic.prices", "run.log")
READ_BY_CRITIC = ("critic", "classes")


@dataclass(frozen=True)
class Row:
    """A row of a table: the ``method`` that it runs, the tables of the configuration that it changes, and, apart, what it changes of [align].

    ``x`` is its place in a sweep and ``series`` the line to which it belongs there. ``is_arm`` says that a study's table [arms] made it.
    """

    name: str
    method: str
    tables: dict[str, Any]
    align: dict[str, Any]
    x: float | None = None
    series: str | None = None
    is_arm: bool = False


@dataclass(frozen=True)
class Study:
    """A table's rows, and the configuration that they share. An arm is ours, or the ``method`` it names, with some settings changed.

    ``reference`` names the row that the others are compared with, ``figure`` has the settings of the picture, and ``smoke`` what is laid over every
    row to make it tiny (empty: nothing). ``plain_names`` has, for each row that several critics made, the name that it has under one.
    """

    name: str
    methods: tuple[str, ...]
    arms: dict[str, dict[str, Any]]
    tables: dict[str, Any]
    root: Path
    reference: str = BEFORE
    figure: dict[str, Any] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)
    plain_names: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows, in the order of the table."""
        return (*self.methods, *self.arms)

    def row(self, name: str) -> Row:
        """The row of that name."""
        if name not in self.arms:
            return Row(name, name, {}, {})
        arm = dict(self.arms[name])
        method, x = arm.pop("method", OURS), arm.pop("x", None)
        series = arm.pop("series", method if x is not None else None)
        align = arm.pop("align", {})
        return Row(name, method, arm, align, None if x is None else float(x), series, is_arm=True)

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """The tables of the configuration on which a row's shortcut is found; what the row changes of [align] is not among them."""
        tables = merge_tables(merge_tables(self.tables, row.tables), {"run": {"seed": seed}})
        if not self.smoke:
            return tables
        tables = merge_tables(tables, self.smoke)
        path = _data_path(tables)
        return tables if path is None else merge_tables(tables, {"data": {"path": small_variant(path)}})

    def align_settings(self, row: Row) -> dict[str, Any]:
        """What a row changes of the table [align]."""
        return merge_tables(row.align, self.smoke.get("align", {})) if row.align else {}

    def work_folder(self, row: Row, seed: int, out: Path) -> Path:
        """The run folder of a row. Rows that inspect the same images of the same model with the same critic share it."""
        shared = hashlib.sha256(json.dumps(self.settings(row, seed), sort_keys=True).encode()).hexdigest()[:8]
        return out / f"{self.name}-work" / f"{seed}-{shared}"

    def settings_key(self, row: Row, seed: int) -> str:
        """A hash of what makes a row's result: its method, and each setting that the study, the row or the task states, [align] included.

        A setting that none of them states is not in it: a default that another version of the package has, or a setting that it adds, does not
        make hours of results invalid. Nor is one that changes no number, nor, for a row that asks no critic, what only a critic reads.
        A file counts by its path: whether it has changed is not seen.
        """
        tables = merge_tables(self._with_defaults(row, seed), {"align": self.align_settings(row)})
        unread = () if self.uses_critic(row) else READ_BY_CRITIC
        stated = {
            name: {key: value for key, value in table.items() if f"{name}.{key}" not in CHANGE_NO_RESULT}
            for name, table in tables.items()
            if name not in unread
        }
        return hashlib.sha256(json.dumps([row.method, stated], sort_keys=True).encode()).hexdigest()[:16]

    def critic(self, row: Row) -> str:
        """The critic that a row asks, as its configuration names it."""
        return self._with_defaults(row, 0)["critic"]["lvlm"]

    def uses_critic(self, row: Row) -> bool:
        """Whether a row's result depends on the critic."""
        return METHODS[row.method].uses_critic

    def result_path(self, name: str, seed: int, out: Path) -> Path:
        """The file of a finished row and seed. Only the results that depend on the critic have it in their name, whether one is asked or several."""
        row = self.row(name)
        critic = f" {self.critic(row)}" if self.uses_critic(row) else ""
        return out / self.name / slug(f"{self.plain_name(name)}{critic}") / f"{seed}.json"

    def plain_name(self, name: str) -> str:
        """The name of a row without the critic that several ``critics`` of ``open_study`` have put there."""
        return self.plain_names.get(name, name)

    def _with_defaults(self, row: Row, seed: int) -> dict[str, Any]:
        tables = self.settings(row, seed)
        return merge_tables(task_defaults(tables["data"]["path"]), tables)


def packaged_studies() -> list[str]:
    """The names of the studies that come with the package."""
    tables = files("rightreasons.studies").joinpath("tables").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in tables if entry.name.endswith(".toml"))


def open_study(name: str, *, critics: Sequence[str] = (), smoke: bool = False) -> Study:
    """A packaged study by name, or one from a TOML file with ``methods``, ``[config]``, ``[arms]`` and ``[sweep]``; ``critics`` replace its LVLM.

    With several critics each row that asks one becomes a row for each of them, unless it names its own.
    ``config`` may be the name of a configuration beside the file instead. ``smoke`` makes every row tiny, to see that all of them run.
    Raises ConfigError for a study that is not one, and for a row that cannot be run as it is written.
    """
    path = Path(name)
    if path.suffix == ".toml" and path.exists():
        content, root, short = path.read_bytes(), path.parent, path.stem
    elif name in packaged_studies():
        content, root, short = files("rightreasons.studies").joinpath(f"tables/{name}.toml").read_bytes(), Path.cwd(), name
    else:
        raise ConfigError(f"no study {name!r}; there are {', '.join(packaged_studies())}, or a TOML file")
    try:
        stored = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    _check_keys(name, stored)
    config = stored.get("config")
    if not isinstance(stored.get("methods"), list) or not isinstance(config, dict | str):
        raise ConfigError(
            f"{name} is not a study: it needs a list methods, and a table [config] with the configuration that they share, or config = 'FILE.toml'"
        )
    tables = merge_tables(config if isinstance(config, dict) else read_toml(root / config), {"critic": {"lvlm": critics[0]}} if critics else {})
    methods = known(list(map(str, stored["methods"])), METHODS)
    written, swept = stored.get("arms", {}), expand_sweep(name, stored["sweep"]) if "sweep" in stored else {}
    rows, arms = [*methods, *written, *swept], written | swept
    if not rows:
        raise ConfigError(f"{name} has no rows: name methods, or write arms or a sweep")
    if not all(map(slug, rows)):
        raise ConfigError(f"{name} has a row without a letter or digit in its name, and results are saved under it: {', '.join(rows)}")
    if len({slug(row) for row in rows}) < len(rows):
        raise ConfigError(f"{name}: two rows would be saved under one name: {', '.join(rows)}; call them differently")
    for row, arm in arms.items():
        _check_arm(f"{name}, row {row!r}", arm)
    reference = stored.get("reference", BEFORE)
    lines = [arm.get("series", arm.get("method", OURS)) for arm in arms.values() if "x" in arm or "series" in arm]
    if "reference" in stored and reference not in (*rows, *lines):
        raise ConfigError(f"{name}: reference = {reference!r} is none of its rows: {', '.join(rows)}")
    plain_names: dict[str, str] = {}
    if len(critics) > 1:
        asked = _ask_each(critics, methods, arms)
        methods, arms, plain_names = asked.methods, asked.arms, asked.plain_names
    figure = stored.get("figure", {})
    _check_figure(name, figure)
    tiny = merge_tables(SMOKE, stored.get("smoke", {})) if smoke else {}
    return Study(short, methods, _first_places(arms) if smoke else arms, tables, root, reference, figure, tiny, plain_names)


def expand_sweep(name: str, sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of the table [sweep] of the study ``name``: each of its ``rows`` at each of its ``places``, as an arm "ROW PLACE", place by place.

    What the place changes is laid over what the row changes, and the row's name is that of its line (``series``). A row that lists ``places`` of its
    own is at these alone. Raises ConfigError for a sweep that is not one.
    """
    rows, places = sweep.get("rows"), sweep.get("places")
    if set(sweep) != {"rows", "places"} or not _has_tables(rows) or not _has_tables(places):
        raise ConfigError(f'{name}: [sweep] needs two tables of tables, such as rows.ours = {{}} and places."1 %" = {{ x = 0.01 }}, and nothing else')
    for row, changed in rows.items():
        at = changed.get("places", [])
        if not isinstance(at, list) or any(place not in places for place in at):
            raise ConfigError(f"{name}: [sweep.rows] {row!r} has places = {at!r}: some of {', '.join(places)} were expected")
    arms = {}
    for place, there in places.items():
        if "x" not in there:
            raise ConfigError(f"{name}: [sweep.places] {place!r} has no x: the number at which its rows are drawn was expected")
        for row, changed in rows.items():
            if place in changed.get("places", places):
                tables = {key: value for key, value in changed.items() if key != "places"}
                arms[f"{row} {place}"] = merge_tables({"series": row, **tables}, there)
    return arms


def check_rows(study: Study, names: Iterable[str]) -> None:
    """Raises ConfigError for the first row whose configuration cannot be read, so that it is known before hours of work."""
    for name in names:
        row_config(study, study.row(name), 0)


def row_config(study: Study, row: Row, seed: int) -> Config:
    """The whole configuration with which a row's method works."""
    tables = study.settings(row, seed)
    path = _data_path(tables)
    return parse_config(
        merge_tables(tables, {"align": study.align_settings(row)}),
        source=f"study {study.name}, row {row.name}",
        defaults={} if path is None else task_defaults(path),
    )


def _data_path(tables: Mapping[str, Any]) -> str | None:
    """What the tables say of where the data are; None if they do not, or not as they should."""
    data = tables.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    return path if isinstance(path, str) else None


def slug(name: str) -> str:
    """A name of a row as a file name: letters, digits, dots and equals signs, with single hyphens between them."""
    return re.sub(r"[^\w.=]+|_", "-", name).strip("-")


def split_names(text: str, rows: Iterable[str]) -> list[str]:
    """The names in a list with commas. A row may have commas in its name: the longest name of one of the ``rows`` is taken."""
    parts, names, rows = text.split(","), [], set(rows)
    while parts:
        count = next((count for count in range(len(parts), 0, -1) if ",".join(parts[:count]).strip() in rows), 1)
        names.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    return names


def known(names: Sequence[str], valid: Iterable[str]) -> tuple[str, ...]:
    """``names``, all of which are ``valid``. Raises ConfigError for one that is not."""
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ConfigError(f"no method {unknown[0]!r}; there are {', '.join(valid)}")
    return tuple(names)


@dataclass(frozen=True)
class _Asked:
    """A study's rows with several critics: the methods that ask none, and as arms the others, once for each critic, with their plain names."""

    methods: tuple[str, ...]
    arms: dict[str, dict[str, Any]]
    plain_names: dict[str, str]


def _ask_each(critics: Sequence[str], methods: Sequence[str], arms: Mapping[str, dict[str, Any]]) -> _Asked:
    """Each row once for each critic, if it asks one. Raises ConfigError if a critic is named twice."""
    if len(set(critics)) < len(critics):
        raise ConfigError(f"--critic was given {', '.join(critics)}: each critic makes a row, so name each of them once")
    asked: dict[str, dict[str, Any]] = {}
    plain_names: dict[str, str] = {}
    for name, arm in ({method: {"method": method} for method in methods if METHODS[method].uses_critic} | dict(arms)).items():
        if METHODS[arm.get("method", OURS)].uses_critic and "critic" not in arm:
            asked |= {f"{name} {critic}": {**arm, "critic": {"lvlm": critic}} for critic in critics}
            plain_names |= {f"{name} {critic}": name for critic in critics}
        else:
            asked[name] = arm
    return _Asked(tuple(method for method in methods if not METHODS[method].uses_critic), asked, plain_names)


def _first_places(arms: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first of the arms that change the same settings of the same line: that the others run as well, it shows."""
    kept: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    for name, arm in arms.items():
        changed = {key: value for key, value in arm.items() if key not in ("method", "series", "x")}
        line = (arm.get("method", OURS), arm.get("series", ""), tuple(sorted(_name_settings(changed))))
        if line not in seen:
            kept[name] = arm
        seen.add(line)
    return kept


def _name_settings(tables: Mapping[str, Any], within: str = "") -> list[str]:
    names = []
    for key, value in tables.items():
        names += _name_settings(value, f"{within}{key}.") if isinstance(value, Mapping) else [f"{within}{key}"]
    return names


# What a study's file may have, and the types of its values; and the same of its figure.
_KEYS = {"methods": list, "config": (dict, str), "arms": dict, "sweep": dict, "reference": str, "figure": dict, "smoke": dict}
_FIGURE = {"xlabel": str, "log": bool, "metrics": list}


def _check_keys(name: str, stored: Mapping[str, Any]) -> None:
    for key, value in stored.items():
        if key not in _KEYS:
            raise ConfigError(f"{name}: {key!r} is no part of a study; there are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            expected = {list: "a list", str: "a name"}.get(_KEYS[key], "a table")
            raise ConfigError(f"{name}: {key} = {value!r}: {expected} was expected")
    if not _has_tables(stored.get("arms", {})):
        raise ConfigError(f"{name}: [arms] has an arm that is no table: a table of the settings that it changes was expected, such as {{}}")


def _has_tables(value: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())


def _check_arm(where: str, arm: Mapping[str, Any]) -> None:
    x, series, align = arm.get("x"), arm.get("series"), arm.get("align", {})
    known([str(arm.get("method", OURS))], METHODS)
    if x is not None and (isinstance(x, bool) or not isinstance(x, int | float)):
        raise ConfigError(f"{where}: x = {x!r}: a number was expected, the place of the row in a sweep")
    if series is not None and not isinstance(series, str):
        raise ConfigError(f"{where}: series = {series!r}: the name of a line was expected")
    if not isinstance(align, dict):
        raise ConfigError(f"{where}: align = {align!r}: a table was expected")


def _check_figure(name: str, figure: Mapping[str, Any]) -> None:
    for key, value in figure.items():
        if key not in _FIGURE or not isinstance(value, _FIGURE[key]):
            expected = ", ".join(f"{key} ({kind.__name__})" for key, kind in _FIGURE.items())
            raise ConfigError(f"{name}: [figure] {key} = {value!r} is not a setting of a figure; there are {expected}")
    metrics = figure.get("metrics", METRICS)
    if not metrics or any(metric not in METRICS for metric in metrics):
        raise ConfigError(f"{name}: [figure] metrics = {metrics!r}: at least one was expected of {', '.join(METRICS)}")
