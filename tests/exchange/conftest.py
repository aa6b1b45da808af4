"""One run for all tests of the exchange; those that change it work on a copy."""

import pytest

from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from tests.support.review import copy_run, make_run


@pytest.fixture(scope="session")
def exchanged(tmp_path_factory):
    """A project and its run after find: S1 of every image is spurious, S2 relevant, S3 unsure."""
    root = tmp_path_factory.mktemp("exchanged")
    make_run(root)
    return root


@pytest.fixture(scope="session")
def loaded(exchanged):
    """That run in memory, not to be changed."""
    return load_run(RunFolder(exchanged / "run"))


@pytest.fixture
def run(exchanged, tmp_path):
    """A copy of the run, with its project beside it."""
    return copy_run(exchanged, tmp_path / "copy")
