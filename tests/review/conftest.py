"""One run for all tests of the app; each test works on a copy."""

import pytest

from tests.support.review import Browser, copy_run, make_run


@pytest.fixture(scope="session")
def reviewed(tmp_path_factory):
    """A project and its run after find, to be copied."""
    root = tmp_path_factory.mktemp("reviewed")
    make_run(root)
    return root


@pytest.fixture
def run(reviewed, tmp_path):
    """A copy of the run, with its project beside it."""
    return copy_run(reviewed, tmp_path / "copy")


@pytest.fixture
def browser(run):
    """A browser that was let in, of the reviewer Dr Ann."""
    opened = Browser(run)
    yield opened
    opened.site.jobs.stop()
