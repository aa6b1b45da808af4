"""The table of backends: what it says is so, and reading it loads nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rightreasons.errors import MissingExtra
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends import BACKENDS, kind_of
from rightreasons.lvlm.wire.privacy import KEYS
from rightreasons.pipeline.questions.batch_files import LIMITS
from tests.support.helpers import environment

ROOT = Path(__file__).parents[2]
NEEDING = [(kind, module, package) for kind, backend in BACKENDS.items() for module, package in backend.packages.items()]


def test_every_row_is_written_as_it_is_opened_and_has_its_file():
    files = {path.stem for path in (ROOT / "src/rightreasons/lvlm/backends").glob("*.py")} - {"__init__"}
    assert set(BACKENDS) == files and all(kind_of(backend.form) == kind for kind, backend in BACKENDS.items())


def test_keys_and_batch_formats_are_those_that_are_known():
    assert {kind: backend.key for kind, backend in BACKENDS.items() if backend.key} == KEYS
    assert {backend.batch for backend in BACKENDS.values()} - {None} == set(LIMITS)


@pytest.mark.parametrize(("kind", "module", "package"), NEEDING)
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch, kind, module, package):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(line.startswith(package) for line in extras[kind]), "the extra has the package"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if module.startswith(name) else found(name))
    with pytest.raises(MissingExtra, match=rf"{package}.*rightreasons\[{kind}\]"):
        open_lvlm(f"{kind}:m")


def test_reading_the_table_loads_no_backend():
    heavy = ("torch", "openai", "anthropic", "google.genai", "transformers")
    code = f"import sys, rightreasons.lvlm; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout == "[]\n", done.stderr
