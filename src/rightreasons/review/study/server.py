"""The server of a blind study: the review app's doorkeeper and frame, with the study's pages and no others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rightreasons.review.jobs import Jobs
from rightreasons.review.security import Doorkeeper, Guarded
from rightreasons.review.server import build_app, listen
from rightreasons.review.site import Site
from rightreasons.review.state import ReviewState
from rightreasons.review.study import pages
from rightreasons.runs.blind import Sample


def create_app(site: Site, doorkeeper: Doorkeeper, sample: Sample) -> Guarded:
    """The application that asks people about a sample of one run."""
    return build_app(site, doorkeeper, (partial(pages.add_routes, sample=sample),))


def open_study_site(state: ReviewState) -> Site:
    """The frame of the study's pages: it leads to no page of the review."""
    return Site(state, Jobs(state.path / "jobs"), pages=())


def serve_study(state: ReviewState, sample: Sample, *, port: int, name: str, announce: Callable[[str], None]) -> None:
    """Serves a study until it is interrupted. ``port`` 0 takes a free one; ``announce`` is told the address once, token included.

    Raises ConfigError for a port that is taken.
    """
    site = open_study_site(state)
    listen(lambda doorkeeper: create_app(site, doorkeeper, sample), port=port, name=name, announce=announce, command="study")
