"""A run that two people reviewed and that was repaired, with everything in it that can be said to a page."""

import json

import pytest

from rightreasons.runs.deciding import decide
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import invoke, write_scripted

EVIL = "<script>document.title='evil'</script>"
CRITIQUE = (
    f"S1: A bright yellow tag in the corner. {EVIL}\nConclusion: it does not matter.\n"
    "S2: The bar.\nConclusion: it matters.\nS3: \x1b[2J{{ 7 * 7 }} <img src=x onerror=alert(1)>"
)


@pytest.fixture(scope="package")
def reviewed(tmp_path_factory):
    """The run folder."""
    root = tmp_path_factory.mktemp("report")
    config = write_scripted(root, changes={"size = 12": "size = 24", 'irrelevant = "A tag in a corner."': f'irrelevant = "A tag. {EVIL}"'})
    script = {"critic": [CRITIQUE], "judge": [json.dumps({"S1": "spurious", "S2": "relevant", "S3": "unsure"})]}
    (root / "script.json").write_text(json.dumps(script))
    found = invoke("find", config, "--out", root / "run")
    assert found.exit_code == 0, found.stderr
    folder = RunFolder(root / "run")
    images = folder.load_selection().indices.tolist()
    decide(folder, [(image, 2, "relevant") for image in images[:20]], by="Ann")
    decide(folder, [(images[0], 2, "spurious"), (images[1], 1, "spurious")], by=f"Bob {EVIL}")
    decide(folder, [(images[1], 1, "spurious")], by=f"Bob {EVIL}", withdraw=True)
    fixed = invoke("fix", root / "run")
    assert fixed.exit_code == 0, fixed.stderr
    return folder


@pytest.fixture(scope="package")
def page(reviewed):
    """report.html."""
    return (reviewed.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="package")
def metrics(reviewed):
    """metrics.json."""
    return reviewed.load_metrics()
