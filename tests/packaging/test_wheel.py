"""What is built for the package index: the wheel, made from the sdist, has every file of the sources, starts, and describes itself."""

import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.helpers import environment

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rightreasons"
TOP = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of a copy of the sources, a wheel of that sdist alone, and both unpacked."""
    root = tmp_path_factory.mktemp("package")
    copy = root / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in TOP:
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(root / "dist"), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,), (sdist,) = (root / "dist").glob("*.whl"), (root / "dist").glob("*.tar.gz")
    zipfile.ZipFile(wheel).extractall(root / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "sdist", filter="data")
    (metadata,) = (root / "wheel").glob("*.dist-info/METADATA")
    return SimpleNamespace(wheel=root / "wheel", sdist=next((root / "sdist").iterdir()), metadata=message_from_string(metadata.read_text()))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_of_the_sources_and_no_other(built):
    """Templates, prompts, tables and static files among them: a pattern that is missing in pyproject.toml is seen."""
    packed, sources = files(built.wheel / "rightreasons"), files(SOURCE)
    assert packed.keys() == sources.keys() and packed == sources
    assert {path.name.split("-")[0] for path in built.wheel.iterdir()} == {"rightreasons"}, "nothing else is installed at the top"


def test_the_sdist_has_what_a_reader_needs(built):
    assert {name for name in TOP if not (built.sdist / name).exists()} == set()
    assert files(built.sdist / "src" / "rightreasons") == files(SOURCE)


def test_the_command_starts_from_the_unpacked_wheel(built, tmp_path):
    code = "import rightreasons, sys; print(rightreasons.__file__); from rightreasons.cli import app; app(['--help'])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment(PYTHONPATH=str(built.wheel))
    )
    assert result.returncode == 0, result.stderr
    first, _, shown = result.stdout.partition("\n")
    assert Path(first).is_relative_to(built.wheel) and "find" in shown and "export" in shown


def test_the_package_describes_itself(built):
    metadata = built.metadata
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier") and {"onnx", "mlflow", "tensorboard"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["Description-Content-Type"] == "text/markdown" and "Paper, https://arxiv.org/abs/2512.21985" in metadata.get_all("Project-URL")
    description = metadata.get_payload()
    assert description.startswith("# rightreasons") and "](docs/" not in description and "](examples" not in description
    assert "[arXiv 2512.21985](https://arxiv.org/abs/2512.21985)" in description


def test_links_become_absolute_at_the_address_of_the_sources():
    absolute_links = runpy.run_path(str(ROOT / "setup.py"), run_name="not main")["absolute_links"]
    text = "![A digit](docs/result.png) [data](docs/data.md#a) [paper](https://arxiv.org/abs/1) [here](#x)"
    home = "https://example.org/me/rightreasons"
    assert absolute_links(text, f"{home}/") == (
        f"![A digit]({home}/raw/main/docs/result.png) [data]({home}/blob/main/docs/data.md#a) [paper](https://arxiv.org/abs/1) [here](#x)"
    )
    assert absolute_links(text, None) == " data [paper](https://arxiv.org/abs/1) [here](#x)"
