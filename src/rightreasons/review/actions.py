"""What people do: who they are, verdicts, taking one back, and pixels drawn by hand. Each is on the disk before the next page says so."""

from __future__ import annotations

import torch
from fastapi import FastAPI
from jaxtyping import Bool
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from rightreasons.records import HUMAN, Drawing
from rightreasons.review.forms import read_form, read_number
from rightreasons.review.pictures import mark_rectangle
from rightreasons.review.queue import Filters, find_next, list_items
from rightreasons.review.site import Site, go_to, image_address, session_of, tell_verdict
from rightreasons.runs.appended import now, read_name
from rightreasons.runs.deciding import decide
from rightreasons.runs.drawings import add_drawing, decode_mask
from rightreasons.runs.verdict_lines import read_value


def add_routes(app: FastAPI, site: Site) -> None:
    """Adds what can be done to the application."""
    state = site.state

    @app.post("/name")
    async def name(request: Request) -> Response:
        session = session_of(request)
        session.name = read_name((await read_form(request)).get("name"))
        session.said = f"You review as {session.name}."
        return go_to("/")

    @app.post("/image/{index}/verdict")
    async def verdict(request: Request, index: int) -> Response:
        form = await read_form(request)
        return _decide(site, request, site.check_image(index), form)

    @app.post("/undo")
    async def undo(request: Request) -> Response:
        form = await read_form(request)
        by, filters = read_name(form.get("by")), Filters.read(form)
        mine = [verdict for verdict in state.snapshot().standing if verdict.source == HUMAN and verdict.by == by]
        if not mine:
            session_of(request).said = f"There is no verdict of {by} to take back."
            return go_to(f"/{filters.query()}")
        last = mine[-1]
        decide(state.folder, [(last.index, last.segment, last.value)], by=by, withdraw=True)
        item = state.snapshot().by_place[last.index, last.segment]
        now_counts = "nobody's verdict" if item.verdict.is_open else f"{item.verdict.value}, by {tell_verdict(item.verdict)}"
        session_of(request).said = f"Taken back: image {last.index}, S{last.segment + 1}, {last.value}. Now counts: {now_counts}."
        return go_to(image_address(filters, item))

    @app.post("/image/{index}/draw")
    async def draw(request: Request, index: int) -> Response:
        form = await read_form(request)
        painted, erased = (decode_mask(_read_runs(form.get(key, "")), state.size) for key in ("painted", "erased"))
        return _keep(site, request, site.check_image(index), form, painted, erased)

    @app.post("/image/{index}/rectangle")
    async def rectangle(request: Request, index: int) -> Response:
        form, (height, width) = await read_form(request), state.size
        site.check_image(index)
        left, right = (read_number(form, key, 0, width - 1) for key in ("left", "right"))
        top, bottom = (read_number(form, key, 0, height - 1) for key in ("top", "bottom"))
        if left > right or top > bottom:
            raise ValueError(f"a rectangle from {left}, {top} to {right}, {bottom}; expected left before right, and top before bottom")
        empty = torch.zeros(state.size, dtype=torch.bool)
        box, last = mark_rectangle(empty, left, top, right, bottom), state.drawings().get(index)
        painted, erased = (empty, empty) if last is None else (last.painted, last.erased)
        if form.get("mode") == "erase":
            painted, erased = painted & ~box, erased | box
        elif form.get("mode") == "paint":
            painted, erased = painted | box, erased & ~box
        else:
            raise ValueError(f"mode = {form.get('mode')!r}; expected paint or erase")
        return _keep(site, request, index, form, painted, erased)

    @app.post("/image/{index}/undraw")
    async def undraw(request: Request, index: int) -> Response:
        form = await read_form(request)
        empty = torch.zeros(state.size, dtype=torch.bool)
        return _keep(site, request, site.check_image(index), form, empty, empty)


def _decide(site: Site, request: Request, index: int, form: dict[str, str]) -> Response:
    """Stores one verdict, and goes to the segment that follows in the list as it was."""
    state, session, filters = site.state, session_of(request), Filters.read(form)
    value, segment, by = read_value(form.get("value", "")), read_number(form, "segment", 0, 10_000), read_name(form.get("by"))
    before = state.snapshot()
    decide(state.folder, [(index, segment, value)], by=by)
    told = f"Saved: image {index}, S{segment + 1} is {value}, by {by}."
    earlier = before.by_place[index, segment].verdict
    if earlier.source == HUMAN and earlier.by != by and earlier.value != value:
        told += f" {tell_verdict(earlier)} had said {earlier.value}; both are kept, and yours, the later, counts."
    after = state.snapshot()
    if after.all_decided and not before.all_decided:
        session.said = f"{told} That was the last one."
        return go_to("/")  # where it says what comes next
    following = find_next(list_items(before, filters), (index, segment))
    session.said = told if following is not None else f"{told} That was the last one of this list."
    return go_to(f"/{filters.query()}" if following is None else image_address(filters, following))


def _keep(
    site: Site, request: Request, index: int, form: dict[str, str], painted: Bool[Tensor, "height width"], erased: Bool[Tensor, "height width"]
) -> Response:
    """Stores a drawing. A pixel cannot be both; where it is, it is erased."""
    by, painted = read_name(form.get("by")), painted & ~erased
    add_drawing(site.state.folder, Drawing(index, painted, erased, by, now()))
    session_of(request).said = f"Saved: image {index}, {int(painted.sum())} pixels painted as spurious, {int(erased.sum())} erased, by {by}."
    return go_to(f"/image/{index}/draw{Filters.read(form).query()}")


def _read_runs(said: str) -> list[int]:
    """Lengths of runs, separated by commas. Raises ValueError for anything else."""
    words = said.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ValueError("the lengths of a drawing's runs are no whole numbers: reload the page and draw again")
    return [int(word) for word in words]
