"""The table of a study from result files written by hand: what is compared with what, in which forms it is told, and its figure."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import xml.etree.ElementTree as ET

import pytest

from rightreasons.errors import ConfigError, MissingExtra
from rightreasons.studies import sheets
from rightreasons.studies import statistics as ours
from rightreasons.studies.definition import open_study
from rightreasons.studies.figure import draw_figure, save_figure
from rightreasons.studies.table import build_table, find_partner

STUDY = """
methods = ["before", "ours", "fine-tune-only", "without-shortcut"]

[config]
data.path = "decoy-mnist:packaged"
critic.lvlm = "simulated:"
"""
SWEEP = """
methods = ["before"]

[figure]
xlabel = "share of exceptions"
log = true

[config]
data.path = "decoy-mnist:packaged"
critic.lvlm = "simulated:"
""" + "".join(
    f"""
[arms."{series} at {x}"]
x = {x}
series = "{series}"
method = "{series}"
data.path = "{path}"
"""
    for x, path in ((0.01, "decoy-mnist"), (0.1, "decoy-mnist:packaged:without-patch"))
    for series in ("before", "ours", "without-shortcut")
)
WORST = {
    "before": (0.1, 0.2, 0.15),
    "ours": (0.8, 0.7, 0.9),
    "fine-tune-only": (0.2, 0.1, 0.3),
    "without-shortcut": (0.9, 0.95, 0.8),
}


def write(study, out, name, seed, worst, **more):
    path = study.result_path(name, seed, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "study": study.name, "method": name, "seed": seed, "critic": "simulated:x (simulated from masks)" if "ours" in name else "none",
        "labels_used": "none", "selection": "last epoch", "inspected": {"spurious_fraction": 1.0}, "intervals": None,
        "metrics": {"worst_group_accuracy": worst, "average_group_accuracy": worst / 2 + 0.5, "mu_align": 0.9 + worst / 10}, **more,
    }  # fmt: skip
    path.write_text(json.dumps(result))


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    study = open_study(str(tmp_path / "mine.toml"))
    for name, values in WORST.items():
        for seed, value in enumerate(values):
            write(study, tmp_path, name, seed, value)
    return study, tmp_path


def by_name(table):
    return {row["method"]: row for row in table["rows"]}


def test_differences_are_paired_by_seed(opened):
    study, out = opened
    rows = by_name(build_table(study, study.names, range(3), out))
    assert rows["before"]["against"] is None and rows["ours"]["against_ours"] is None
    compared = rows["ours"]["against"]
    differences = [after - before for after, before in zip(WORST["ours"], WORST["before"], strict=True)]
    assert compared["row"] == "before" and compared["worst_group_accuracy"]["seeds"] == (0, 1, 2)
    assert compared["worst_group_accuracy"]["mean"] == pytest.approx(statistics.fmean(differences))
    assert compared["worst_group_accuracy"]["t_p"] == pytest.approx(ours.paired_t(differences))
    assert rows["before"]["against_ours"]["worst_group_accuracy"]["mean"] == pytest.approx(-statistics.fmean(differences))
    raw = [rows[name]["against"]["worst_group_accuracy"]["t_p"] for name in ("ours", "fine-tune-only", "without-shortcut")]
    corrected = [rows[name]["against"]["worst_group_accuracy"]["t_p_holm"] for name in ("ours", "fine-tune-only", "without-shortcut")]
    assert corrected == [pytest.approx(p) for p in ours.holm(raw)]


def test_covered_share(opened):
    study, out = opened
    rows = by_name(build_table(study, study.names, range(3), out))
    expected = ours.covered_share(*(WORST[name] for name in ("ours", "before", "without-shortcut")))
    for metric in ("worst_group_accuracy", "average_group_accuracy", "mu_align"):  # each is a linear function of the worst group here
        assert rows["ours"]["covered"][metric] == {"share": pytest.approx(expected.share), "error": pytest.approx(expected.error)}
    assert set(rows["before"]["covered"].values()) == set(rows["without-shortcut"]["covered"].values()) == {None}


def test_a_row_without_a_seed_is_compared_on_the_seeds_that_both_have(opened):
    study, out = opened
    study.result_path("ours", 1, out).unlink()
    rows = by_name(build_table(study, study.names, range(3), out))
    compared = rows["ours"]["against"]["worst_group_accuracy"]
    assert rows["ours"]["seed_list"] == [0, 2] and compared["seeds"] == (0, 2)
    assert compared["mean"] == pytest.approx((0.8 - 0.1 + 0.9 - 0.15) / 2) and compared["t_p"] is None
    assert "fewer than 3 seeds" in sheets.as_text(*sheets.make_sheets(build_table(study, ["ours"], range(3), out)))


def test_a_row_that_is_not_shown_is_compared_with_all_the_same(opened):
    study, out = opened
    (row,) = build_table(study, ["ours"], range(3), out)["rows"]
    assert row["against"]["row"] == "before" and row["covered"]["mu_align"] is not None


def test_a_row_without_results_is_left_out(opened):
    study, out = opened
    for seed in range(3):
        study.result_path("before", seed, out).unlink()
    table = build_table(study, study.names, range(3), out)
    assert list(by_name(table)) == ["ours", "fine-tune-only", "without-shortcut"]
    assert all(row["against"] is None for row in table["rows"])


def test_partners_are_on_the_same_data(tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    study = open_study(str(tmp_path / "sweep.toml"))
    assert find_partner(study, "ours at 0.01", "before") == "before at 0.01"
    assert find_partner(study, "ours at 0.1", "without-shortcut") == "without-shortcut at 0.1"
    assert find_partner(study, "before", "ours") is None, "no row is ours on the data of the row before"


def test_a_row_on_other_data_is_not_compared(tmp_path):
    (tmp_path / "mine.toml").write_text(
        STUDY + '[arms."clean"]\ndata.path = "decoy-mnist:packaged:without-patch"\n[arms."swap"]\nalign.term = "swap"\n'
    )
    study = open_study(str(tmp_path / "mine.toml"))
    assert find_partner(study, "clean", "before") is None and find_partner(study, "swap", "before") == "before"


def test_the_forms_say_the_same(opened):
    study, out = opened
    for name in WORST:
        write(study, out, name, 0, WORST[name][0], seconds={"method": 12.0, "critic": 3.0, "find": 4.0, "shortcut_model": None}, threads=2)
    table = build_table(study, study.names, range(3), out)
    table["failed"] = []
    sheets.save_table(table, out / "told")
    text, markdown, tex = ((out / "told" / f"table.{kind}").read_text() for kind in ("txt", "md", "tex"))
    assert json.loads((out / "told" / "table.json").read_text()) == json.loads(json.dumps(table))
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO((out / "told" / "table.csv").read_text()))}
    assert float(lines["ours"]["worst_group_accuracy_mean"]) == pytest.approx(0.8)
    assert float(lines["ours"]["against_worst_group_accuracy_t_p_holm"]) == pytest.approx(
        table["rows"][1]["against"]["worst_group_accuracy"]["t_p_holm"]
    )
    assert lines["before"]["against_worst_group_accuracy_mean"] == "" and float(lines["ours"]["seconds_method_mean"]) == 12
    for told in (text, markdown, tex):
        assert "0.800" in told and "simulated" in told and "last epoch" in told and "12" in told
    assert "With 3 seeds signed ranks give no p-value below 0.25" in text
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1, "every line of a table has as many cells"
    for block in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", tex, re.S):
        columns, body = len(block[0]), [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert body and all(line.count(" & ") == columns - 1 for line in body)
    assert tex.count(r"\toprule") == tex.count(r"\midrule") == tex.count(r"\bottomrule") == len(sheets.make_sheets(table)[0])


def test_what_signed_ranks_can_show_at_best_is_told(opened):
    """Seven seeds give 2^-6, which three rows triple: 0.047 is told of by nobody; four rows make it 0.0625."""
    study, out = opened
    for name in WORST:
        for seed in range(7):
            write(study, out, name, seed, {"before": 0.1, "ours": 0.8}.get(name, 0.5) + seed / 50)
    _, notes = sheets.make_sheets(build_table(study, study.names, range(7), out))
    assert not any("signed ranks" in note for note in notes)
    (out / "mine.toml").write_text(STUDY + '[arms.swap]\nalign.term = "swap"\n')
    five = open_study(str(out / "mine.toml"))
    for seed in range(7):
        write(five, out, "swap", seed, 0.6 + seed / 50)
    table = build_table(five, five.names, range(7), out)
    assert by_name(table)["swap"]["against"]["worst_group_accuracy"]["wilcoxon_p_holm"] == pytest.approx(4 / 64)
    assert any("With 7 seeds and 4 rows signed ranks give no corrected p-value below 0.0625" in note for note in sheets.make_sheets(table)[1])


def test_what_latex_would_read_as_a_command_is_escaped():
    assert sheets.escape_latex("a_b & 5 % of {x}^2 # $1 ~ \\ < > ±") == (
        r"a\_b \& 5 \% of \{x\}\textasciicircum{}2 \# \$1 \textasciitilde{} \textbackslash{} \textless{} \textgreater{} $\pm$"
    )


def test_an_older_file_shows_dashes(opened):
    study, out = opened
    (_, making, *_), _ = sheets.make_sheets(build_table(study, ["before"], range(3), out))
    shown = dict(zip(making.columns, making.rows[0], strict=True))
    assert shown["method s"] == shown["threads"] == "-" and shown["shortcut images"] == "1.000 ±0.000"


def test_intervals_over_objects_are_told_by_seed(opened):
    study, out = opened
    both = {"worst_group_accuracy": [0.61, 0.87], "average_group_accuracy": [0.8, 0.9]}
    write(study, out, "ours", 0, 0.8, intervals=both)
    told, _ = sheets.make_sheets(build_table(study, ["ours"], range(3), out))
    assert "0.610 to 0.870" in told[-1].rows[0] and "0.547 to 1.053" not in told[-1].rows[0][2]


def test_a_smoke_test_says_so(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    study = open_study(str(tmp_path / "mine.toml"), smoke=True)
    write(study, tmp_path, "before", 0, 0.5)
    table = build_table(study, ["before"], [0], tmp_path)
    assert "SMOKE" in sheets.as_text(*sheets.make_sheets(table)) and "SMOKE" in draw_figure(table).get_suptitle()


def test_bars_of_the_differences(opened):
    study, out = opened
    table = build_table(study, study.names, range(3), out)
    worst, average = draw_figure(table).axes
    assert [label.get_text() for label in worst.get_yticklabels()] == ["ours", "fine-tune-only", "without-shortcut"]
    widths = [bar.get_width() for bar in worst.patches]
    assert widths == [pytest.approx(row["against"]["worst_group_accuracy"]["mean"]) for row in table["rows"] if row["against"]]
    assert "difference to before" in average.get_xlabel()
    save_figure(table, out / "told")
    assert (out / "told" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    first = (out / "told" / "figure.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg") and b"simulated" in first
    save_figure(table, out / "told")
    assert (out / "told" / "figure.svg").read_bytes() == first, "the same table gives the same file"


def test_lines_of_a_sweep(tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    study = open_study(str(tmp_path / "sweep.toml"))
    for name in study.names:
        for seed in range(3):
            write(study, tmp_path, name, seed, {"b": 0.1, "o": 0.8, "w": 0.9}[name[0]] + seed / 100)
    worst, _ = draw_figure(build_table(study, study.names, range(3), tmp_path)).axes
    assert worst.get_xscale() == "log" and worst.get_xlabel() == "share of exceptions"
    lines = {container.get_label(): container for container in worst.containers}
    assert set(lines) == {"before", "ours", "without-shortcut"}
    assert list(lines["ours"][0].get_xdata()) == [0.01, 0.1]
    assert list(lines["ours"][0].get_ydata()) == [pytest.approx(0.81)] * 2
    (ends,) = lines["ours"][2]
    low, high = ends.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(statistics.stdev([0.80, 0.81, 0.82])), "the bars are one standard deviation"
    assert [line.get_linestyle() for line in worst.lines if line.get_label() == "before"] == ["--"], "a row without a place is a level line"


def test_no_two_lines_of_a_sweep_look_the_same(tmp_path):
    study = open_study("exceptions-digits")
    for name in study.names:
        write(study, tmp_path, name, 0, 0.5)
    (axes,) = draw_figure(build_table(study, study.names, [0], tmp_path)).axes
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line, *_ in axes.containers]
    assert len(looks) == 11 == len(set(looks)), "ours and the reference were both orange squares"


def test_without_matplotlib_the_extra_is_named(opened, monkeypatch):
    study, out = opened
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"rightreasons\[studies\]"):
        draw_figure(build_table(study, study.names, range(3), out))


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("[figure]\ncolour = 'red'", "colour"),
        ("[figure]\nlog = 'yes'", "log"),
        ("[arms.a]\nx = 'left'", "left"),
        ("[arms.a]\nx = true", "True"),
        ("[arms.a]\nx = 1\nseries = 2", "series"),
    ],
)
def test_a_figure_or_place_that_is_none(tmp_path, lines, named):
    (tmp_path / "mine.toml").write_text(STUDY + lines + "\n")
    with pytest.raises(ConfigError, match=named):
        open_study(str(tmp_path / "mine.toml"))


def test_a_metric_of_one_seed_has_no_deviation(opened):
    """Of three seeds, two lack the metric."""
    study, out = opened
    for seed in (0, 1):
        path = study.result_path("ours", seed, out)
        stored = json.loads(path.read_text())
        path.write_text(json.dumps(stored | {"metrics": stored["metrics"] | {"mu_align": None}}))
    table = build_table(study, ["ours"], range(3), out)
    (scores, *_), _ = sheets.make_sheets(table)
    shown = dict(zip(scores.columns, scores.rows[0], strict=True))
    assert shown["seeds"] == "3" and shown["mu_align"] == "0.990" and "±" in shown["worst group"]
    (line,) = csv.DictReader(io.StringIO(sheets.as_csv(table)))
    assert line["mu_align_std"] == "" and line["mu_align_mean"] == "0.99"


def test_dollars_in_names_are_no_formula(tmp_path):
    """Between two dollar signs matplotlib sets a formula, and ends in an error where it is none."""
    (tmp_path / "mine.toml").write_text(STUDY + r"""arms.'for $5 to $\lots' = { critic.lvlm = "simulated:0.7" }""".replace("arms.", "[arms]\n"))
    study = open_study(str(tmp_path / "mine.toml"))
    for name in study.names:
        write(study, tmp_path, name, 0, 0.5)
    save_figure(build_table(study, study.names, [0], tmp_path), tmp_path / "drawn")
    # Comments hold every text as it was given.
    assert r">for $5 to $\lots</text>" in (tmp_path / "drawn" / "figure.svg").read_text()
