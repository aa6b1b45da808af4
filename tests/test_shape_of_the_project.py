"""The tree, the imports and the public names are what the README and the design say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import rightreasons

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rightreasons"
STAGES = {"sample", "attribute", "segment", "render", "critique", "judge", "mask", "align", "evaluate"}
# Who may see groups and ground-truth masks.
SEES_TRUTH = {
    "records",
    "evaluate",
    "measure",
    "__init__",
    "lvlm",
    "lvlm.simulated",
    "data.task",
    "data.decoy_mnist",
    "data.solar",
    "data.assemble",
    "data.stamps",
}


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rightreasons"):
            inner = node.module.removeprefix("rightreasons").lstrip(".")
            for name in node.names:
                is_module = not inner or (SOURCE / inner / f"{name.name}.py").exists()
                found.add(f"{inner}.{name.name}".strip(".") if is_module else inner)
    return found


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCE.rglob("*.py")}


def test_the_readme_names_every_file_and_no_other():
    block = re.search(r"```\n(src/rightreasons/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    named, folder = set(), ""
    for line in block.splitlines()[1:]:
        entry = line.split()[0]
        assert entry.endswith("/") or len(line.split()) > 1, f"{entry} has no word of explanation"
        if entry.endswith("/"):
            folder = entry
        else:
            named.add(entry if line.startswith("  ") and not line.startswith("    ") else folder + entry)
    there = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert named == there


def test_stages_do_not_import_one_another():
    for name, path in modules().items():
        if name in STAGES:
            assert not imports_of(path) & STAGES, f"{name} imports {imports_of(path) & STAGES}"


def test_imports_flow_one_way():
    graph = {name: {target for target in imports_of(path) if target in modules()} for name, path in modules().items() if name != "__init__"}
    waiting = set(graph)
    while waiting:
        free = {name for name in waiting if not graph[name] & waiting - {name}}
        assert free, f"these import one another in a circle: {sorted(waiting)}"
        waiting -= free


def test_ground_truth_stays_where_it_may_be_seen():
    for name, path in modules().items():
        if re.search(r"\bGroundTruth\b", path.read_text()):
            assert (name or "__init__") in SEES_TRUTH, f"{name} mentions GroundTruth"


def test_public_names():
    assert sorted(rightreasons.__all__) == rightreasons.__all__
    for name in rightreasons.__all__:
        assert getattr(rightreasons, name).__name__ == name


def test_the_command_line_starts_without_torch():
    check = "import sys; import rightreasons.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_every_command_has_an_example():
    from typer.testing import CliRunner

    from rightreasons.cli import app

    for name in ("demo", "inspect", "find", "fix", "score", "bench"):
        shown = CliRunner().invoke(app, [name, "--help"]).output
        assert f"Example: rightreasons {name}" in " ".join(shown.split()) and "--json" in shown and "--out" in shown
