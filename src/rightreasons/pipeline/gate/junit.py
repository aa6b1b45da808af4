"""A check as JUnit XML, which CI servers show as tests: one suite for each checkpoint, one case for each bound."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rightreasons.common.files import write_bytes
from rightreasons.common.text import clean_text
from rightreasons.pipeline.gate.bounds import MEASURES
from rightreasons.pipeline.gate.check import Finding, Report


def write_junit(report: Report, path: Path) -> None:
    """Writes the file. A bound that is past is a failure; one on a class that could not be measured is skipped, with the reason."""
    root = ElementTree.Element("testsuites", {"name": "rightreasons check", **_counts([item for items in report.findings for item in items])})
    root.set("time", f"{sum(report.seconds):.3f}")
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for measured, findings, seconds in zip(report.measured, report.findings, report.seconds, strict=True):
        suite = ElementTree.SubElement(root, "testsuite", {"name": clean_text(measured.checkpoint), **_counts(findings)})
        suite.set("time", f"{seconds:.3f}")
        suite.set("timestamp", at)
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("weights", measured.weights), ("split", report.yardstick.split), ("images", str(len(report.yardstick.hosts)))):
            ElementTree.SubElement(properties, "property", name=name, value=value)
        for finding in findings:
            _add_case(suite, finding, seconds / len(findings))
    ElementTree.indent(root)
    write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    def how_many(status: str) -> str:
        return str(sum(finding.status == status for finding in findings))

    return {"tests": str(len(findings)), "failures": how_many("past"), "errors": "0", "skipped": how_many("not measured")}


def _add_case(suite: ElementTree.Element, finding: Finding, seconds: float) -> None:
    place = clean_text(f"{finding.checkpoint}.{finding.measure}")
    case = ElementTree.SubElement(suite, "testcase", classname=place, name=clean_text(finding.name), time=f"{seconds:.3f}")
    message = clean_text(finding.message)
    if finding.status == "past":
        failure = ElementTree.SubElement(case, "failure", message=message, type=MEASURES[finding.measure].key)
        failure.text = message
    elif finding.status == "not measured":
        ElementTree.SubElement(case, "skipped", message=message)
    else:
        ElementTree.SubElement(case, "system-out").text = message
