"""A check as SARIF 2.1.0 (OASIS), which code hosts show beside a change: a rule for each measure, a result for each bound that is past."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rightreasons.common.files import to_json, write_text
from rightreasons.common.text import clean_text
from rightreasons.pipeline.gate.bounds import MEASURES
from rightreasons.pipeline.gate.check import Finding, Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_MEANINGS = {
    "spurious_share": "The share of the model's evidence on held-out images that lies on what experts or a vision-language model judged spurious.",
    "swap_flip_rate": "How often pasting what was judged spurious into a held-out image of another class changes the model's answer.",
    "accuracy": "The share of held-out images that the model answers right.",
}
_HELP = "Look at the run's report.html and its verdicts; `rightreasons fix RUN` fine-tunes a model until it no longer uses what was judged spurious."


def write_sarif(report: Report, path: Path, files: Mapping[str, Path]) -> None:
    """Writes the file. ``files`` has the file of each checkpoint by its name; a model without one is located in the run's folder."""
    write_text(path, to_json(build_sarif(report, files)) + "\n")


def build_sarif(report: Report, files: Mapping[str, Path]) -> dict[str, Any]:
    """The SARIF log. A result points at the checkpoint's file, since nothing in a source file is at fault."""
    driver = {"name": "rightreasons", "version": version("rightreasons"), "rules": [_describe_rule(key) for key in MEASURES]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "exitCode": 1 if report.past else 0}],
        "results": [_describe_result(finding, files.get(finding.checkpoint, report.yardstick.run.folder.path)) for finding in report.past],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _describe_rule(key: str) -> dict[str, Any]:
    words = MEASURES[key].words
    return {
        "id": key,
        "name": "".join(word.capitalize() for word in words.split()),
        "shortDescription": {"text": f"{words.capitalize()} past its bound"},
        "fullDescription": {"text": _MEANINGS[key]},
        "help": {"text": _HELP},
        "defaultConfiguration": {"level": "error"},
    }


def _describe_result(finding: Finding, file: Path) -> dict[str, Any]:
    # The same shortcoming of the same file is one alert, whatever the numbers come to the next time.
    identity = hashlib.sha256(f"{finding.measure} {finding.scope} {_uri(file)}".encode()).hexdigest()
    return {
        "ruleId": finding.measure,
        "ruleIndex": list(MEASURES).index(finding.measure),
        "level": "error",
        "kind": "fail",
        "message": {"text": clean_text(finding.message)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(file)}, "region": {"startLine": 1}}}],
        "partialFingerprints": {"bound/v1": identity},
        "properties": {"class": finding.scope, "value": finding.value, "bound": finding.bound, "images": finding.count},
    }


def _uri(file: Path) -> str:
    """The file relative to the current folder where it lies below it, else its name alone: other paths name people and machines."""
    whole, here = file.resolve(), Path.cwd().resolve()
    return quote(whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.name)
