"""A study's figure as PNG and SVG: lines over a sweep where its rows have a place x, else bars of the differences to the reference row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightreasons.common.files import write_atomically
from rightreasons.errors import MissingExtra
from rightreasons.studies.sheets import SHOWN
from rightreasons.studies.table import COMPARED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that differ also for people who do not see red and green (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP*"
# Where there are more series than colours, the next ones are drawn so. Level lines are dashed.
LINES = ("-", ":", "-.")


def save_figure(table: dict[str, Any], folder: Path) -> None:
    """Writes figure.png and figure.svg into ``folder``. Raises MissingExtra without matplotlib."""
    figure = draw_figure(table)
    folder.mkdir(parents=True, exist_ok=True)
    import matplotlib

    # The same table gives the same file: no date, and names of parts that are not random.
    with matplotlib.rc_context({"svg.hashsalt": table["study"], "svg.fonttype": "none"}):
        write_atomically(folder / "figure.png", lambda part: figure.savefig(part, format="png", dpi=150))
        write_atomically(folder / "figure.svg", lambda part: figure.savefig(part, format="svg", metadata={"Date": None}))


def draw_figure(table: dict[str, Any]) -> Figure:
    """The figure of a table. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "studies") from error
    sweep = [row for row in table["rows"] if row["x"] is not None]
    metrics = table["figure"].get("metrics", list(COMPARED)) if sweep else list(COMPARED)
    height = 3.6 if sweep else 1.6 + 0.32 * len(table["rows"])
    figure = Figure(figsize=(max(4.8 * len(metrics), 6.0), height), layout="constrained")
    figure.suptitle(_plain(_title(table)), fontsize=9)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _draw_lines(axes, table, sweep, metric) if sweep else _draw_bars(axes, table, metric)
    return figure


def _title(table: dict[str, Any]) -> str:
    critics = sorted({row["critic"] for row in table["rows"]} - {"none"})
    seeds = sorted({row["seeds"] for row in table["rows"]})
    counted = f"{seeds[0]} seed" + ("" if seeds == [1] else "s") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    smoke = "SMOKE TEST, the numbers mean nothing\n" if table["smoke"] else ""
    return f"{smoke}{table['study']}, {counted}; critic: {', '.join(critics) or 'none'}"


def _draw_lines(axes: Axes, table: dict[str, Any], sweep: Sequence[dict[str, Any]], metric: str) -> None:
    """One line for each series, with the standard deviation over seeds; rows without a place are level lines."""
    names = list(dict.fromkeys(row["series"] for row in sweep))
    for place, name in enumerate(names):
        points = sorted(
            ((row["x"], row["metrics"][metric]) for row in sweep if row["series"] == name and row["metrics"].get(metric)), key=lambda point: point[0]
        )
        xs, means, deviations = ([point[0] for point in points], [point[1]["mean"] for point in points], [point[1]["std"] for point in points])
        axes.errorbar(
            xs,
            means,
            yerr=deviations,
            label=_plain(name),
            color=_colour(place),
            marker=MARKERS[place % len(MARKERS)],
            linestyle=LINES[place // len(COLOURS) % len(LINES)],
            markersize=4,
            capsize=3,
            linewidth=1.3,
        )
    level = [row for row in table["rows"] if row["x"] is None and row["metrics"].get(metric)]
    for place, row in enumerate(level, start=len(names)):
        axes.axhline(row["metrics"][metric]["mean"], label=_plain(row["method"]), color=_colour(place), linestyle="--", linewidth=1)
    if table["figure"].get("log"):
        axes.set_xscale("log")
    axes.set_xlabel(table["figure"].get("xlabel", "x"))
    axes.set_ylabel(f"{SHOWN.get(metric, metric)}, mean ± std")
    axes.grid(alpha=0.3, linewidth=0.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def _draw_bars(axes: Axes, table: dict[str, Any], metric: str) -> None:
    """One bar for each row: its difference to the reference with its 95 % interval over seeds; its value where nothing can be compared."""
    compared = any((row["against"] or {}).get(metric) for row in table["rows"])
    bars = []
    for row in table["rows"]:
        told = (row["against"] or {}).get(metric) if compared else row["metrics"].get(metric)
        if told:
            bars.append((row["method"], told["mean"], told["interval"]))
    for place, (_, mean, interval) in enumerate(bars):
        reach = None if interval is None else [[mean - interval[0]], [interval[1] - mean]]
        axes.barh(place, mean, xerr=reach, color=COLOURS[0] if mean >= 0 else COLOURS[1], height=0.65, capsize=3, error_kw={"linewidth": 1})
    means = [mean for _, mean, _ in bars] or [0.0]
    axes.set_yticks(range(len(bars)), [_plain(name) for name, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    # Two seeds have intervals wider than any accuracy: they are cut off rather than make the bars invisible.
    axes.set_xlim(max(-1.0, min(0.0, *means) - 0.25), min(1.0, max(0.0, *means) + 0.25))
    axes.set_xlabel(
        f"{SHOWN.get(metric, metric)}" + (f": difference to {_plain(table['reference'])}, 95 % interval" if compared else ", 95 % interval")
    )
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)


def _plain(text: str) -> str:
    """A text as it is: matplotlib takes what lies between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
