"""Reproduces a table: every method of a study on every seed. Each finished (study, method, seed) is one JSON file, so a study can be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rightreasons.common.files import to_json, write_text
from rightreasons.common.progress import Reporter
from rightreasons.config import merge_tables, read_toml
from rightreasons.errors import ConfigError
from rightreasons.pipeline.find import find
from rightreasons.project.project import open_project
from rightreasons.records import Scores
from rightreasons.run import Run
from rightreasons.runs.folder import RunFolder
from rightreasons.scoring.scores import critic_scores, score_run, segment_scores, spurious_fraction
from rightreasons.studies.methods import METHODS, ours
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import PASTED, Bench, Method

METRICS = tuple(field.name for field in dataclasses.fields(Scores) if not field.name.endswith(("groups", "intervals")))
# The metrics in the table for people, by their heads.
SHOWN = {
    "accuracy": "accuracy",
    "worst_group_accuracy": "worst group",
    "average_group_accuracy": "average group",
    "mu_align": "mu_align",
    "swap_flip_rate": "swap flips",
}


@dataclass(frozen=True)
class Study:
    """A table's rows, and the configuration that they share. An arm is our method, or the ``method`` it names, with some settings changed."""

    name: str
    methods: tuple[str, ...]
    arms: dict[str, dict[str, Any]]
    tables: dict[str, Any]
    root: Path


def open_study(name: str, *, critic: str | None = None) -> Study:
    """A packaged study by name, or one from a TOML file with ``methods``, ``[config]`` and ``[arms]``; ``critic`` replaces its LVLM.

    ``config`` may be the name of a configuration beside the file instead.
    """
    path = Path(name)
    packaged = sorted(
        entry.name.removesuffix(".toml") for entry in files("rightreasons.studies").joinpath("tables").iterdir() if entry.name.endswith(".toml")
    )
    if path.suffix == ".toml" and path.exists():
        text, root, short = path.read_text(encoding="utf-8"), path.parent, path.stem
    elif name in packaged:
        text, root, short = files("rightreasons.studies").joinpath(f"tables/{name}.toml").read_text(encoding="utf-8"), Path.cwd(), name
    else:
        raise ConfigError(f"no study {name!r}; there are {', '.join(packaged)}, or a TOML file")
    try:
        stored = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    config = stored.get("config")
    if not isinstance(stored.get("methods"), list) or not isinstance(config, dict | str):
        raise ConfigError(
            f"{name} is not a study: it needs a list methods, and a table [config] with the configuration that they share, or config = 'FILE.toml'"
        )
    tables = merge_tables(config if isinstance(config, dict) else read_toml(root / config), {"critic": {"lvlm": critic}} if critic else {})
    arms = stored.get("arms", {})
    rows = [*stored["methods"], *arms]
    if len({slug(row) for row in rows}) < len(rows):
        raise ConfigError(f"{name}: two rows would be saved under one name: {', '.join(rows)}; call them differently")
    _known([arm["method"] for arm in arms.values() if "method" in arm], METHODS)
    return Study(short, _known(stored["methods"], METHODS), arms, tables, root)


def run_study(study: Study, *, seeds: Iterable[int], methods: Sequence[str] | None, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Runs what is not finished yet, and returns the study's table."""
    rows = (*study.methods, *study.arms)
    chosen = rows if methods is None else _known(methods, rows)
    seeds = list(seeds)
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for method in chosen:
            if not _result_path(study, out, method, seed).exists():
                reporter.note(f"{study.name}, seed {seed}: {method}")
                _run_one(study, method, seed, out, reporter)
    return {"study": study.name, "rows": [_row(study, method, seeds, out) for method in chosen]}


def reference_scores(run: Run, folder: Path, reporter: Reporter) -> dict[str, Scores]:
    """The two upper bounds that a run can be compared with if the task knows its own shortcut."""
    bench = Bench(run, folder, reporter)
    return {name: score_run(METHODS[name](bench), run) for name in ("ground-truth-masks", "without-shortcut")}


def show_rows(table: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows for people: the main metrics, as mean and, over several seeds, standard deviation."""
    critics = sorted({row["critic"] for row in table["rows"]} - {"none"})
    rows = []
    for row in table["rows"]:
        shown = (row["inspected"].get("spurious_fraction"), *(row["metrics"].get(key) for key in SHOWN))
        rows.append([row["method"], row["labels_used"], str(row["seeds"]), *(_cell(summary, row["seeds"]) for summary in shown)])
    return f"{table['study']}; critic: {', '.join(critics) or 'none'}", ["method", "labels used", "seeds", "shortcut images", *SHOWN.values()], rows


def _cell(summary: dict[str, Any] | None, seeds: int) -> str:
    if summary is None:
        return "-"
    return f"{summary['mean']:.3f}" + (f" ±{summary['std']:.3f}" if seeds > 1 else "")


def _run_one(study: Study, method: str, seed: int, out: Path, reporter: Reporter) -> None:
    changes = dict(study.arms.get(method, {}))
    base = changes.pop("method", method)
    if base in METHODS:
        chosen = METHODS[base]
    else:
        align = changes.pop("align", {})
        chosen = Method(lambda bench, _: ours.fine_tune(bench, method, **align), NoLabels, PASTED, uses_critic=True)
    tables = merge_tables(merge_tables(study.tables, changes), {"run": {"seed": seed}})
    project = open_project(tables, source=study.name, root=study.root)
    # Rows that inspect the same images with the same critic share one run folder.
    shared = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / f"{study.name}-work" / f"{seed}-{shared}"
    run = find(project, RunFolder(folder), reporter=reporter)
    critic = critic_scores(run)
    model = chosen(Bench(run, folder / "methods", reporter))
    scores = score_run(model, run)
    judged = _depends_on_critic(study, method)
    result = {
        "study": study.name,
        "method": method,
        "seed": seed,
        "critic": _critic_words(critic) if judged else "none",
        "labels_used": chosen.labels.words,
        "selection": chosen.selection,
        "critic_scores": critic if judged else None,
        "inspected": {"spurious_fraction": spurious_fraction(run), **segment_scores(run)},
        "metrics": {key: getattr(scores, key) for key in METRICS},
        # 95 % intervals over whole objects; None if every image shows another object.
        "intervals": dict(scores.intervals) or None,
    }
    path = _result_path(study, out, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(result) + "\n")


def _depends_on_critic(study: Study, method: str) -> bool:
    base = study.arms.get(method, {}).get("method", method)
    return base not in METHODS or METHODS[base].uses_critic


def _critic_words(critic: dict[str, Any]) -> str:
    name = f"{critic['backend']}:{critic['model']}"
    return f"{name} (simulated from masks)" if critic["simulated"] else name


def _row(study: Study, method: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    results = [json.loads(_result_path(study, out, method, seed).read_text(encoding="utf-8")) for seed in seeds]
    return {key: results[0][key] for key in ("method", "critic", "labels_used", "selection")} | {
        "seeds": len(results),
        **{part: _summaries([result[part] for result in results]) for part in ("inspected", "metrics")},
        # One interval for each seed: seeds differ in their objects too, and the standard deviation shows that.
        "intervals": [result.get("intervals") for result in results],
    }


def _summaries(parts: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """A summary of each key that any seed has. A file from before a metric existed is without its key."""
    return {key: _summary([part.get(key) for part in parts]) for key in dict.fromkeys(key for part in parts for key in part)}


def _summary(values: list[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else 0.0, "values": known}


def _result_path(study: Study, out: Path, method: str, seed: int) -> Path:
    # Only the results that depend on the critic have it in their name.
    critic = f" {study.tables['critic']['lvlm']}" if _depends_on_critic(study, method) else ""
    return out / study.name / slug(f"{method}{critic}") / f"{seed}.json"


def slug(name: str) -> str:
    """A name of a row as a file name: letters, digits, dots and equals signs, with single hyphens between them."""
    return re.sub(r"[^\w.=]+|_", "-", name).strip("-")


def _known(names: Sequence[str], valid: Iterable[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ConfigError(f"no method {unknown[0]!r}; there are {', '.join(valid)}")
    return tuple(names)
