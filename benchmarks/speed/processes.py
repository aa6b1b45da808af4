"""Two processes of torchrun against one, stage by stage, on a machine's cores.

The folder of benchmarks/scale.py is drawn and its network trained once. Then `find` and `fix` are run on copies of that run in turns: one process on
one thread, one process on as many threads as there are processes, and the processes with one thread each. Seconds are those of the clock that
profile.jsonl has, so that the machine should be quiet; a line of JSON is printed for each arm, with the medians over rounds and their ratio to one
process on one thread. docs/scale.md has the figures.

    python benchmarks/speed/processes.py [--processes 2] [--rounds 3] [--images 160] [--inspected 16] [--side 128]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.scale import write_project

# What the processes share; the other stages are the main process's alone.
STAGES = ("sample", "validate", "attribute", "spread", "align", "score", "report")
# What is left of a run in which nothing but the training is done.
KEPT = ("config.toml", "environment.json", "manifest.jsonl", "model.safetensors")


def run_command(*arguments: object, processes: int = 1, threads: int = 1) -> None:
    """A command of the package, in one process or under torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "rightreasons", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def measure(config: Path, trained: Path, out: Path, *, processes: int, threads: int) -> dict[str, float]:
    """Seconds of each stage of find and fix, and of these stages together."""
    out.mkdir(mode=0o700)
    for name in KEPT:
        shutil.copy(trained / name, out / name)
    run_command("find", config, "--out", out, processes=processes, threads=threads)
    run_command("fix", out, processes=processes, threads=threads)
    lines = [json.loads(line) for line in (out / "profile.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    seconds = {stage: sum((line["seconds"] for line in lines if line["stage"] == stage), 0.0) for stage in STAGES}
    return seconds | {"together": sum(seconds.values())}


def main() -> None:
    """Prints one line of JSON for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("processes", 2), ("rounds", 3), ("images", 160), ("inspected", 16), ("side", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    arms = {"one": (1, 1), "threads": (1, chosen.processes), "processes": (chosen.processes, 1)}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = write_project(root, side=chosen.side, images=chosen.images, inspected=chosen.inspected)
        config.write_text(config.read_text().replace("[sample]", "[attribute]\nchunk = 4\n[sample]"))
        run_command("find", config, "--out", root / "trained", threads=chosen.processes)
        for _ in range(chosen.rounds):
            for name, (processes, threads) in arms.items():
                seconds[name].append(measure(config, root / "trained", root / name, processes=processes, threads=threads))
    medians = {name: {stage: statistics.median(one[stage] for one in rounds) for stage in rounds[0]} for name, rounds in seconds.items()}
    for name, (processes, threads) in arms.items():
        ratios = {stage: round(medians["one"][stage] / value, 2) for stage, value in medians[name].items() if value > 0}
        print(json.dumps({"arm": name, "processes": processes, "threads": threads, "seconds": medians[name], "times_as_fast": ratios}), flush=True)


if __name__ == "__main__":
    main()
