"""What all pages share: the run, the work under way, and how a template becomes a page."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from rightreasons.common.text import clean_text
from rightreasons.errors import ConfigError
from rightreasons.lvlm.wire.privacy import redact
from rightreasons.records import HUMAN, VALUES, Verdict
from rightreasons.review.jobs import Jobs
from rightreasons.review.queue import Filters
from rightreasons.review.security import Session
from rightreasons.review.snapshot import Item
from rightreasons.review.state import ReviewState


def _finalize(value: object) -> object:
    """Cleans whatever came from models, files and people before the template escapes it, so that on the page it can only be read."""
    return clean_text(value) if type(value) is str else value


@functools.cache
def _open_templates() -> jinja2.Environment:
    """The templates, each of which one process compiles once."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("rightreasons.review"), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize
    )


# The pages that every page leads to, by address.
PAGES = (("/", "Queue"), ("/words", "Words"), ("/work", "Repair"), ("/compare", "Before and after"), ("/people", "People"))


@dataclass(frozen=True)
class Site:
    """One run as pages."""

    state: ReviewState
    jobs: Jobs
    pages: tuple[tuple[str, str], ...] = PAGES

    def show(self, request: Request, template: str, *, status: int = 200, **values: object) -> Response:
        """A page. Keys that a model or an error might repeat are taken out of it."""
        session = session_of(request)
        shared = {
            "session": session,
            "said": session.take_said(),
            "run": self.state.path.resolve().name,
            "here": request.url.path,
            "pages": self.pages,
        }
        page = _open_templates().get_template(template).render(**shared, tell=tell_verdict, choices=list_choices, **values)
        return HTMLResponse(redact(page), status)

    def check_image(self, index: int) -> int:
        """The number of an inspected image. Raises ConfigError for any other."""
        if index not in self.state.row_of:
            raise ConfigError(f"image {index} is not one of the {len(self.state.row_of)} inspected images")
        return index


def session_of(request: Request) -> Session:
    """The session of the browser that asks."""
    return request.state.session


def go_to(address: str) -> Response:
    """Sends the browser to another page of this site, after something was done."""
    return RedirectResponse(address, 303)


def image_address(filters: Filters, item: Item) -> str:
    """The page of a segment's image, with the segment chosen."""
    return f"/image/{item.index}{filters.query(segment=item.segment)}#{item.name}"


def tell_verdict(verdict: Verdict) -> str:
    """Who gave a verdict, in words; nobody while a person is still asked for it."""
    if verdict.is_open:
        return "nobody"
    if verdict.source == HUMAN:
        return verdict.by or "a person"
    near = ", of a close-up" if verdict.close_up in VALUES else ""
    return f"{verdict.source}{near}" if verdict.by is None else f"{verdict.source}{near}, asked again by {verdict.by}"


@dataclass(frozen=True)
class Choice:
    """A button of a segment: the verdict that it gives, what stands on it, and the key that presses it."""

    value: str
    words: str
    key: str


def list_choices(item: Item) -> list[Choice]:
    """Accept, flip and unsure, by the verdict that counts now; both verdicts by name where that is unsure."""
    if item.verdict.value == "unsure":
        return [Choice("spurious", "Spurious", "s"), Choice("relevant", "Relevant", "r"), Choice("unsure", "Unsure", "u")]
    other = "relevant" if item.verdict.value == "spurious" else "spurious"
    return [Choice(item.verdict.value, f"Accept: {item.verdict.value}", "a"), Choice(other, f"Flip to {other}", "f"), Choice("unsure", "Unsure", "u")]
