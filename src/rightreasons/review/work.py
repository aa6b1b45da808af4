"""The page of long work: start ``fix``, watch it or whatever else is at work, and stop it."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rightreasons.review.forms import read_form, read_number
from rightreasons.review.site import Site, go_to, session_of
from rightreasons.runs.appended import read_name

MOST_EPOCHS = 1000


def add_routes(app: FastAPI, site: Site) -> None:
    """Adds the page and what it can do to the application."""

    @app.get("/work")
    def work(request: Request) -> Response:
        return site.show(
            request,
            "work.html",
            progress=site.jobs.look(),
            snapshot=site.state.snapshot(),
            align=site.state.config.align,
            drawn=site.state.drawings(),
        )

    @app.get("/work/log")
    def log(request: Request) -> Response:
        return JSONResponse(vars(site.jobs.look(read_number(request.query_params, "start", 0, 10**8))))

    @app.post("/work/fix")
    async def fix(request: Request) -> Response:
        form = await read_form(request)
        arguments = ["fix", str(site.state.path)]
        if form.get("epochs", "").strip():
            arguments += ["--set", f"align.epochs={read_number(form, 'epochs', 1, MOST_EPOCHS)}"]
        if form.get("accept") == "yes":
            arguments.append("--accept")
        site.jobs.start("The repair", arguments, read_name(form.get("by")))
        session_of(request).said = "The repair has started."
        return go_to("/work")

    @app.post("/work/stop")
    def stop(request: Request) -> Response:
        site.jobs.stop()
        session_of(request).said = "Stopped. What was finished is kept; the same work goes on from there."
        return go_to("/work")
