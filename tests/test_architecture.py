"""The house: rooms in layers, nothing imports upwards, ground truth and torch stay where they may be; and each rule finds what breaks it.

A room is a file or folder of the package. Arrows are imports of every form, wherever in a file they stand.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rightreasons

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rightreasons"
# Lowest first. A room imports lower rooms and itself, never a neighbour on its own line.
LAYERS = (
    "errors",
    "common",
    "records",
    "config",
    "data lvlm",
    "networks runs",
    "explain",
    "critic",
    "repair",
    "project",
    "run",
    "scoring report",
    "pipeline",
    "studies review",
    "cli",
    "__init__",
    "__main__",
)
# The floors of two rooms that hold a story of their own. The table of a folder stands above what it lists.
INSIDE = {
    "lvlm": ("pictures", "protocol", "wire", "backends", "__init__", "ledger probe"),
    "data": ("", "formats built_in", "unread", "__init__", "survey"),
}
# Loaded by the courier or by --help, for which torch is too slow and too large.
TORCH_FREE = ("errors", "common", "lvlm")
NEEDS_TORCH = {"common.device", "common.seeds", "common.memory", "lvlm.backends.simulated", "lvlm.backends.local"}
# Who may see groups and ground-truth masks, by room or module.
SEES_TRUTH = ("records", "data", "project", "lvlm.__init__", "lvlm.backends.simulated", "scoring", "studies.methods.labels", "__init__")
MOST_ENTRIES = 22
MOST_ROOMS = 24


def modules(source: Path) -> dict[str, Path]:
    """Every module by its name inside the package; a folder's own is ``folder.__init__``."""
    return {".".join(path.relative_to(source).with_suffix("").parts): path for path in source.rglob("*.py")}


def room(module: str) -> str:
    return module.split(".")[0]


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """All of a file's syntax tree. The copies below differ from the package in one file, so that the others are parsed once."""
    return tuple(ast.walk(ast.parse(text)))


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports: absolute, relative, ``import x``, and inside functions."""
    found = set()
    folder = name.split(".")[:-1]
    for node in nodes(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            wanted = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["rightreasons", *folder[: len(folder) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            wanted = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in wanted:
            if parts[0] == "rightreasons":
                found |= {_resolve(parts[1:], known)}
    return found - {name}


def _resolve(parts: list[str], known: dict[str, Path]) -> str:
    """The module that a dotted name lies in: the longest part of it that is one."""
    for length in range(len(parts), -1, -1):
        for candidate in (".".join(parts[:length]), ".".join([*parts[:length], "__init__"])):
            if candidate in known:
                return candidate
    raise AssertionError(f"no module of the package holds {'.'.join(parts)}")


def floors(layers: tuple[str, ...]) -> dict[str, int]:
    return {name: floor for floor, names in enumerate(layers) for name in names.split()}


def find_wrong_arrows(source: Path) -> list[str]:
    """Imports that run up or to a neighbour, between rooms and inside those that have floors; and modules that stand on no floor."""
    known, height, wrong = modules(source), floors(LAYERS), []
    for name, path in known.items():
        if room(name) not in height:
            wrong.append(f"{name} is in no layer")
            continue
        for target in imports(name, path, known):
            if room(target) not in height:
                continue
            low, high = height[room(target)], height[room(name)]
            if low > high or (low == high and room(target) != room(name)):
                wrong.append(f"{name} imports {target}")
            elif room(target) == room(name) and room(name) in INSIDE:
                inner = floors(INSIDE[room(name)])
                middle = INSIDE[room(name)].index("") if "" in INSIDE[room(name)] else None
                here, there = (inner.get(part.split(".")[1], middle) for part in (name, target))
                if here is None or there is None:
                    wrong.append(f"{name if here is None else target} is on no floor of {room(name)}")
                elif there > here:
                    wrong.append(f"{name} imports {target}")
    return wrong


def find_circles(source: Path) -> list[str]:
    """Modules that import one another in a circle."""
    known = modules(source)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    waiting = set(graph)
    while free := {name for name in waiting if not graph[name] & waiting}:
        waiting -= free
    return sorted(waiting)


def find_truth(source: Path) -> list[str]:
    """Modules that name ground truth, or read a task's, without being allowed to."""
    seen = []
    for name, path in modules(source).items():
        if name in SEES_TRUTH or room(name) in {entry for entry in SEES_TRUTH if "." not in entry and entry != "__init__"}:
            continue
        for node in nodes(path.read_text(encoding="utf-8")):
            named = isinstance(node, ast.Name | ast.alias) and (node.id if isinstance(node, ast.Name) else node.name) == "GroundTruth"
            if named or (isinstance(node, ast.Attribute) and node.attr in ("truth", "truly_spurious", "measure_effect", "GroundTruth")):
                seen.append(name)
    return sorted(set(seen))


def find_torch(source: Path) -> list[str]:
    """Modules of the rooms without torch that import it, loaded one by one in a process that has not."""
    names = [name for name in modules(source) if room(name) in TORCH_FREE and name not in NEEDS_TORCH]
    lines = ["import importlib, sys"]
    for name in sorted(names):
        dotted = f"rightreasons.{name}".removesuffix(".__init__")
        lines.append(f"importlib.import_module({dotted!r}); 'torch' in sys.modules and sys.exit({name!r})")
    code = "\n".join(lines)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source.parent, env={"PYTHONPATH": str(source.parent)})
    return [result.stderr.strip().splitlines()[-1]] if result.returncode else []


RULES = {"arrows": find_wrong_arrows, "circles": find_circles, "truth": find_truth, "torch": find_torch}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule):
    assert RULES[rule](SOURCE) == []


PLANTED = {
    "a room imports up": ("arrows", "explain/sample.py", "from rightreasons.repair.align import align_model"),
    "an import inside a function": ("arrows", "records.py", "def late():\n    import rightreasons.cli"),
    "a relative import": ("arrows", "critic/judge.py", "from ..repair import align"),
    "a neighbour": ("arrows", "scoring/metrics.py", "from rightreasons.report.page import write_report"),
    "the package itself": ("arrows", "common/text.py", "import rightreasons"),
    "up inside lvlm": ("arrows", "lvlm/wire/chat.py", "from rightreasons.lvlm.ledger.ledger import Ledger"),
    "up inside data": ("arrows", "data/splits.py", "from ..data.formats import table"),
    "a room that nobody placed": ("arrows", "attic.py", "x = 1"),
    "a circle inside a room": ("circles", "critic/parse.py", "from . import judge"),
    "the truth of a task": ("truth", "repair/align.py", 'def peek(task):\n    return task.truth["train"]'),
    "the truth in a method": ("truth", "studies/methods/before.py", 'def peek(task):\n    return task.truth["test"]'),
    "the type of the truth": ("truth", "critic/case.py", "from rightreasons.records import GroundTruth"),
    "torch on the way to a server": ("torch", "lvlm/wire/privacy.py", "import torch"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_breaks_a_rule_is_found(planted, tmp_path):
    rule, file, line = PLANTED[planted]
    copy = tmp_path / "rightreasons"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / file).open("a", encoding="utf-8") as there:
        there.write(f"\n\n{line}\n")
    assert RULES[rule](copy), f"{planted} is not seen"


def test_the_package_is_small_enough_to_look_over():
    entries = [path for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES and len({room(name) for name in modules(SOURCE)}) <= MOST_ROOMS


def test_the_page_on_the_architecture_names_every_file_and_no_other():
    block = re.search(r"```\n(src/rightreasons/\n.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, "docs/architecture.md has the tree of src/rightreasons/ in a block of code"
    named = set()
    for line in block.group(1).splitlines()[1:]:
        entry, _, words = line.strip().partition(" ")
        assert entry.endswith("/") or words.strip(), f"{entry} has no word of explanation"
        if not entry.endswith("/"):
            named.add(entry)
    there = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert named == there


def test_public_names():
    assert sorted(rightreasons.__all__) == rightreasons.__all__
    for name in rightreasons.__all__:
        assert getattr(rightreasons, name).__name__ == name


def test_every_command_has_an_example():
    from typer.testing import CliRunner

    from rightreasons.cli import app

    for name in ("demo", "inspect", "find", "fix", "score", "bench"):
        shown = CliRunner().invoke(app, [name, "--help"]).output
        assert f"Example: rightreasons {name}" in " ".join(shown.split()) and "--json" in shown and "--out" in shown


def test_the_command_line_starts_without_torch():
    check = "import sys; import rightreasons.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
