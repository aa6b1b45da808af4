"""The application behind its doorkeeper, and the server that runs it on this machine alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from importlib import resources

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rightreasons.errors import ConfigError, RightReasonsError
from rightreasons.review import actions, pages, words, work
from rightreasons.review.jobs import Jobs
from rightreasons.review.security import Doorkeeper, Guarded
from rightreasons.review.site import Site
from rightreasons.review.state import ReviewState
from rightreasons.runs.folder import RunFolder

# What the pages load, by name, with its type. Nothing else is served, whatever lies beside it.
STATIC = {
    "app.css": "text/css",
    "icon.svg": "image/svg+xml",
    "review.js": "text/javascript",
    "draw.js": "text/javascript",
    "work.js": "text/javascript",
}


# Adds some pages to an application.
Part = Callable[[FastAPI, Site], None]


def create_app(site: Site, doorkeeper: Doorkeeper) -> Guarded:
    """The application that serves one run."""
    return build_app(site, doorkeeper, tuple(part.add_routes for part in (pages, actions, words, work)))


def build_app(site: Site, doorkeeper: Doorkeeper, parts: Sequence[Part]) -> Guarded:
    """An application of these parts behind its doorkeeper, with what all pages load and the page of errors."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    loaded = {name: resources.files("rightreasons.review").joinpath("static", name).read_bytes() for name in STATIC}

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return Response(loaded[name], media_type=STATIC[name]) if name in STATIC else Response("There is no such file.\n", 404)

    for add_routes in parts:
        add_routes(app, site)

    @app.exception_handler(404)
    @app.exception_handler(ValueError)
    @app.exception_handler(RightReasonsError)
    def explain(request: Request, error: Exception) -> Response:
        missing = getattr(error, "status_code", None) == 404
        return site.show(request, "error.html", status=404 if missing else 400, problem="There is no such page." if missing else str(error))

    return Guarded(app, doorkeeper)


def open_site(folder: RunFolder) -> Site:
    """The pages of a run. Raises ConfigError if it has nothing to review."""
    return Site(ReviewState(folder), Jobs(folder.path / "jobs"))


def serve(folder: RunFolder, *, port: int, name: str, announce: Callable[[str], None]) -> None:
    """Serves a run until it is interrupted. ``port`` 0 takes a free one; ``announce`` is told the address once, token included.

    Raises ConfigError for a run that has nothing to review, or a port that is taken.
    """
    site = open_site(folder)
    try:
        listen(lambda doorkeeper: create_app(site, doorkeeper), port=port, name=name, announce=announce)
    finally:
        site.jobs.stop()


def listen(create: Callable[[Doorkeeper], Guarded], *, port: int, name: str, announce: Callable[[str], None], command: str = "review") -> None:
    """Serves the application that ``create`` makes until it is interrupted; refusals name ``command``. Raises ConfigError for a taken port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()  # whoever follows the address at once has to wait, and is not refused
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another --port, or none for any that is free") from error
        doorkeeper = Doorkeeper(listener.getsockname()[1], name, command)
        app = create(doorkeeper)
        # No log of requests: the first one has the token.
        config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=1, lifespan="off")
        announce(doorkeeper.address)
        uvicorn.Server(config).run(sockets=[listener])
