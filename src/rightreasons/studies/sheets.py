"""A study's table for people and for spreadsheets: text, Markdown, CSV, LaTeX and JSON, written beside the results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightreasons.common.files import to_json, write_text
from rightreasons.studies.definition import OURS
from rightreasons.studies.table import COMPARED, COVERED

# The metrics shown to people, by their heads.
SHOWN = {
    "accuracy": "accuracy",
    "worst_group_accuracy": "worst group",
    "average_group_accuracy": "average group",
    "mu_align": "mu_align",
    "mu_align_floor": "its floor",
    "shortcut_lift": "lift",
    "spurious_share": "spurious share",
    "swap_flip_rate": "swap flips",
}
NOTHING = "-"


@dataclass(frozen=True)
class Sheet:
    """One table of strings; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def make_sheets(table: dict[str, Any]) -> tuple[list[Sheet], list[str]]:
    """The sheets of a study's table, and the notes below them. A sheet without rows is left out."""
    notes = _Notes()
    sheets = [
        _scores(table),
        _making(table, notes),
        _critics(table, notes),
        _differences(table, "against", table["reference"], notes),
        _differences(table, "against_ours", OURS, notes),
        _covered(table),
        _intervals(table),
    ]
    for note in table["notes"]:
        notes.add(note)
    if table["smoke"]:
        notes.add("A SMOKE TEST: tiny sizes, to see that every row runs. The numbers mean nothing.")
    return [sheet for sheet in sheets if sheet.rows], notes.texts


def save_table(table: dict[str, Any], folder: Path) -> None:
    """Writes table.txt, table.md, table.csv, table.tex and table.json into ``folder``."""
    sheets, notes = make_sheets(table)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.txt", as_text(sheets, notes))
    write_text(folder / "table.md", as_markdown(sheets, notes))
    write_text(folder / "table.csv", as_csv(table))
    write_text(folder / "table.tex", as_latex(sheets, notes))
    write_text(folder / "table.json", to_json(table) + "\n")


def as_text(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Columns of even width; the first is flush left."""
    parts = []
    for sheet in sheets:
        lines = [sheet.columns, *sheet.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(sheet.columns))]
        shown = [
            "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        parts.append("\n".join([sheet.title, *(line.rstrip() for line in shown)]))
    return "\n\n".join([*parts, "\n".join(notes)]).rstrip() + "\n"


def as_markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Tables of Markdown as in docs/results.md, each under its title."""
    parts = []
    for sheet in sheets:
        lines = [["", *sheet.columns[1:]], ["---"] * len(sheet.columns), *([f"`{line[0]}`", *line[1:]] for line in sheet.rows)]
        parts.append(f"**{sheet.title}**\n\n" + "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]).rstrip() + "\n"


def as_latex(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """One tabular with the rules of booktabs for each sheet; the document needs the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for sheet in sheets:
        body = [r"\begin{tabular}{l" + "r" * (len(sheet.columns) - 1) + "}", r"\toprule", _latex_line(sheet.columns), r"\midrule"]
        parts.append("\n".join([f"% {sheet.title}", *body, *map(_latex_line, sheet.rows), r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join([*parts, "\n".join(f"% {note}" for note in notes)]).rstrip() + "\n"


def as_csv(table: dict[str, Any]) -> str:
    """One line for each row, with numbers in full: metrics, differences, p-values and covered shares. What is not known is empty."""
    lines = [_flat(row) for row in table["rows"]]
    written = io.StringIO()
    writer = csv.DictWriter(written, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return written.getvalue()


def escape_latex(text: str) -> str:
    """Text as LaTeX shows it: its special characters escaped, and the signs of this page as commands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "γ": r"$\gamma$",
}


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


class _Notes:
    """Notes below the sheets; a long text in a cell is replaced by its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)

    def number(self, text: str) -> str:
        if text not in self._numbers:
            self._numbers[text] = len(self._numbers) + 1
            self.texts.append(f"[{self._numbers[text]}] {text}")
        return f"[{self._numbers[text]}]"


def _scores(table: dict[str, Any]) -> Sheet:
    critics = sorted({row["critic"] for row in table["rows"]} - {"none"})
    rows = [[row["method"], row["labels_used"], str(row["seeds"]), *(_mean(row["metrics"].get(key)) for key in SHOWN)] for row in table["rows"]]
    return Sheet(f"{table['study']}; critic: {', '.join(critics) or 'none'}", ["method", "labels used", "seeds", *SHOWN.values()], rows)


def _making(table: dict[str, Any], notes: _Notes) -> Sheet:
    """How each row came about: what it was told, who judged, how its model was chosen, and how long that took."""
    rows = []
    for row in table["rows"]:
        chosen, critic = notes.number(row["selection"]), row["critic"]
        if critic != "none":
            critic = f"{'simulated' if 'simulated' in critic else 'a model'} {notes.number(critic)}"
        seconds = [_seconds(row["seconds"].get(key)) for key in ("method", "critic", "find", "shortcut_model")]
        threads = "/".join(map(str, row["threads"])) or NOTHING
        images = _mean(row["inspected"].get("spurious_fraction"))
        rows.append([row["method"], chosen, critic, str(row["seeds"]), images, *seconds, threads])
    heads = ["method", "model chosen", "critic", "seeds", "shortcut images"]
    return Sheet("how each row was made; mean seconds", [*heads, "method s", "critic s", "find s", "shortcut model s", "threads"], rows)


def _critics(table: dict[str, Any], notes: _Notes) -> Sheet:
    """What each critic said, whether it was right, what came of it and what it cost."""
    rows = []
    for row in table["rows"]:
        told = row["critic_scores"]
        if row["critic"] == "none" or not told:
            continue
        gained = (row["against"] or {}).get("worst_group_accuracy")
        rates = [_mean(told.get(key)) for key in ("verdict_accuracy", "spurious_recall", "spurious_precision", "core_recall")]
        cost = NOTHING if told.get("cost_usd") is None else f"{told['cost_usd']['mean']:.2f}"
        difference = NOTHING if gained is None else f"{gained['mean']:+.3f}"
        rows.append([row["method"], notes.number(row["critic"]), *rates, difference, cost, _seconds(row["seconds"].get("critic"))])
    heads = ["verdicts right", "spurious recall", "spurious precision", "core recall", f"worst group over {table['reference']}", "US$", "seconds"]
    return Sheet("the critics", ["method", "critic", *heads], rows)


def _differences(table: dict[str, Any], key: str, wanted: str, notes: _Notes) -> Sheet:
    """The differences to the row ``wanted``, or to the one that stands for it, which is named then."""
    rows, count = [], sum(row[key] is not None for row in table["rows"])
    for row in table["rows"]:
        if not (compared := row[key]):
            continue
        other = "" if compared["row"] == wanted else f" (to {compared['row']})"
        cells = [row["method"] + other]
        for metric in COMPARED:
            cells += _difference(compared.get(metric), count, notes)
        rows.append(cells)
    heads = [head for metric in COMPARED for head in (f"{SHOWN[metric]}, difference", "95 %", "p (t)", "p (ranks)")]
    return Sheet(f"difference to {wanted}, paired by seed; p-values after Holm's correction over the rows", ["method", *heads], rows)


def _difference(compared: dict[str, Any] | None, rows: int, notes: _Notes) -> list[str]:
    """The cells of one comparison among ``rows``; a note says what its signed ranks could show at best."""
    if compared is None:
        return [NOTHING] * 4
    if compared["why"]:
        notes.add(f"{compared['why']}.")
    least, seeds = compared["least_wilcoxon_p"], len(compared["seeds"])
    if least is not None and least >= 0.05:
        notes.add(f"With {seeds} seeds signed ranks give no p-value below {least:.3g}, even before correction: none can show anything.")
    elif least is not None and least * rows >= 0.05:
        notes.add(f"With {seeds} seeds and {rows} rows signed ranks give no corrected p-value below {least * rows:.3g}: none can show anything.")
    mean = f"{compared['mean']:+.3f}" + ("" if compared["std"] is None else f" ±{compared['std']:.3f}")
    return [mean, _interval(compared["interval"], "+.3f"), _p_value(compared["t_p_holm"]), _p_value(compared["wilcoxon_p_holm"])]


def _covered(table: dict[str, Any]) -> Sheet:
    rows = [[row["method"], *(_share(row["covered"][metric]) for metric in COVERED)] for row in table["rows"] if any(row["covered"].values())]
    title = f"share of the distance from {table['reference']} to without-shortcut that a row covers; ratio of means ± standard error"
    return Sheet(title, ["method", *(SHOWN[metric] for metric in COVERED)], rows)


def _intervals(table: dict[str, Any]) -> Sheet:
    """95 % intervals of the accuracies: over seeds, and, seed by seed, over the objects of the test split."""
    rows = []
    for row in table["rows"]:
        over_seeds = [_interval((row["metrics"].get(metric) or {}).get("interval")) for metric in COMPARED]
        objects = [", ".join(_interval(found[metric]) for found in row["intervals"] if found) or NOTHING for metric in COMPARED]
        if {*over_seeds, *objects} != {NOTHING}:
            rows.append([row["method"], *(cell for pair in zip(over_seeds, objects, strict=True) for cell in pair)])
    heads = [head for metric in COMPARED for head in (f"{SHOWN[metric]}, over seeds", "over objects, by seed")]
    return Sheet("95 % intervals", ["method", *heads], rows)


def _mean(summary: dict[str, Any] | None) -> str:
    """A mean, and the deviation over the seeds that have the value, if there are several."""
    if summary is None:
        return NOTHING
    return f"{summary['mean']:.3f}" + (f" ±{summary['std']:.3f}" if len(summary["values"]) > 1 else "")


def _seconds(summary: dict[str, Any] | None) -> str:
    return NOTHING if summary is None else f"{summary['mean']:.0f}"


def _interval(ends: Sequence[float] | None, form: str = ".3f") -> str:
    return NOTHING if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _p_value(p: float | None) -> str:
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _share(covered: dict[str, Any] | None) -> str:
    if covered is None:
        return NOTHING
    return f"{100 * covered['share']:.0f}" + ("" if covered["error"] is None else f" ±{100 * covered['error']:.0f}") + " %"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its nested tables flattened: NAME_mean, NAME_std, NAME_low, NAME_high, and so on."""
    line = {key: row[key] for key in ("method", "labels_used", "selection", "critic", "x", "series", "seeds")}
    for part in ("seconds", "inspected", "metrics"):
        for name, summary in row[part].items():
            told = summary or {"mean": None, "std": None, "values": [], "interval": None}
            prefix = name if part == "metrics" else f"{part}_{name}"
            line |= {
                f"{prefix}_mean": told["mean"],
                f"{prefix}_std": told["std"] if len(told["values"]) > 1 else None,
                **_ends(prefix, told["interval"]),
            }
    for part in ("against", "against_ours"):
        compared = row[part] or {}
        line[f"{part}_row"] = compared.get("row")
        for metric in COMPARED:
            told, prefix = compared.get(metric, {}), f"{part}_{metric}"
            line |= {f"{prefix}_{key}": told.get(key) for key in ("mean", "std")} | _ends(prefix, told.get("interval"))
            line |= {f"{prefix}_{key}": told.get(key) for key in ("t_p", "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm")}
    for metric, covered in row["covered"].items():
        line |= {f"covered_{metric}": (covered or {}).get("share"), f"covered_{metric}_error": (covered or {}).get("error")}
    return line


def _ends(prefix: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}_low": low, f"{prefix}_high": high}
