"""``find`` and ``fix`` of solar, and ``demo``: seconds of each stage in this checkout and in another, the state before.

Both run the same commands in turns, each in a process and a run folder of its own, from one shortcut model, which this checkout trains once unless
``--model`` names its weights. Seconds are the processor's, of all threads, which other work on the machine hardly moves; the clock's stand beside
them. The last line is all of it without the two stages that ask the critic. ``agrees``: outcomes are equal and figures differ by less than
``CLOSE``. What is finished lies in ``--work`` and is not run again.

    git worktree add --detach BEFORE COMMIT
    python benchmarks/speed/stages.py --before BEFORE [--cases solar demo] [--rounds 1] [--model model.safetensors] [--work FOLDER] --json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
sys.path.insert(0, str(HERE))

from benchmarks.speed.turns import command_line, show  # noqa: E402

# Asking the critic is no work of this package.
CRITIC = ("controls", "judge")
CASES = ("solar", "demo")
FIGURES = ("accuracy", "worst_group_accuracy", "average_group_accuracy", "mu_align", "swap_flip_rate")
CLOSE = 0.05


def run_once(checkout: Path, command: list[str], kept: Path) -> dict[str, list[float]]:
    """The seconds of each stage of a command, from ``kept`` if it is finished."""
    if not kept.exists():
        script = Path(__file__).with_name("timed_command.py")
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        subprocess.run([sys.executable, script, kept, *command], env=environment, stdout=subprocess.DEVNULL, check=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def solar_file(work: Path, model: Path | None) -> Path:
    file = work / "solar.toml"
    words = '[data]\npath = "solar"\n\n[critic]\nlvlm = "simulated:"\n'
    if model is None:
        file.write_text(words, encoding="utf-8")
        run_once(HERE, ["find", str(file), "--out", str(work / "trained")], work / "trained.json")
        model = work / "trained" / "model.safetensors"
    file.write_text(f'{words}\n[model]\ncheckpoint = "{model.resolve()}"\n', encoding="utf-8")
    return file


def commands(case: str, run: Path, file: Path | None) -> dict[str, list[str]]:
    if case == "demo":
        return {"demo": ["demo", "--out", str(run)]}
    return {"solar find": ["find", str(file), "--out", str(run)], "solar fix": ["fix", str(run)]}


def medians(rounds: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Clock and processor seconds of each stage that any round has."""
    names = dict.fromkeys(name for stages in rounds for name in stages)
    return {name: [statistics.median(stages.get(name, [0.0, 0.0])[part] for stages in rounds) for part in (0, 1)] for name in names}


def compare(stage: str, case: str, ours: list[float], before: list[float], **more: object) -> dict[str, object]:
    return {
        "stage": stage, "case": case, "ours_s": ours[1], "rival_s": before[1], "rival": "the state before", "ratio": ours[1] / (before[1] or 1e-9),
        "ours_clock_s": ours[0], "rival_clock_s": before[0], **more,
    }  # fmt: skip


def total(stages: dict[str, list[float]]) -> list[float]:
    return [sum((seconds[part] for name, seconds in stages.items() if name not in CRITIC), 0.0) for part in (0, 1)]


def figures(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    told = {f"{model} {name}": metrics[model][name] for model in ("before", "after") if metrics[model] for name in FIGURES}
    return {"outcome": metrics["outcome"], "spurious": metrics["critic"]["spurious"], **told}


def close(ours: dict[str, Any], before: dict[str, Any]) -> bool:
    shares = [name for name in ours if isinstance(ours[name], float)]
    return ours["outcome"] == before["outcome"] and all(abs(ours[name] - before[name]) < CLOSE for name in shares)


def main() -> None:
    parser = command_line(__doc__, CASES)
    parser.set_defaults(rounds=1)
    parser.add_argument("--before", type=Path, required=True, help="another checkout of the package")
    parser.add_argument("--model", type=Path, help="weights of solar's shortcut model; default: trained once")
    parser.add_argument("--work", type=Path, default=Path("runs/stages"), help="where runs and finished measurements are kept")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkouts = {"before": options.before.resolve(), "ours": HERE}
    together: dict[str, list[list[float]]] = {side: [] for side in checkouts}
    for case in options.cases:
        file = solar_file(work, options.model) if case == "solar" else None
        times: dict[str, dict[str, list[dict[str, list[float]]]]] = {side: {} for side in checkouts}
        for number in range(options.rounds):
            for side, checkout in checkouts.items():
                for name, command in commands(case, work / f"{case}-{side}-{number}", file).items():
                    stages = run_once(checkout, command, work / f"{name.replace(' ', '-')}-{side}-{number}.json")
                    times[side].setdefault(name, []).append(stages)
        told = {side: figures(work / f"{case}-{side}-0") for side in checkouts}
        for name in times["ours"]:
            ours, before = (medians(times[side][name]) for side in ("ours", "before"))
            for stage in dict.fromkeys((*before, *ours)):
                show(compare(stage, name, ours.get(stage, [0.0, 0.0]), before.get(stage, [0.0, 0.0])), options.json)
            together["ours"].append(total(ours))
            together["before"].append(total(before))
            more = {"agrees": close(told["ours"], told["before"]), "ours_figures": told["ours"], "rival_figures": told["before"]}
            show(compare("all but the critic", name, total(ours), total(before), **more), options.json)
    ours, before = ([sum(parts, 0.0) for parts in zip(*together[side], strict=True)] for side in ("ours", "before"))
    show(compare("all but the critic", " and ".join(options.cases), ours, before), options.json)


if __name__ == "__main__":
    main()
