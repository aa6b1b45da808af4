"""The pages that are looked at: the queue, an image with its segments, before and after, and what people said."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rightreasons.critic.close_up import SegmentWords
from rightreasons.critic.critique import describe_positions
from rightreasons.review import pictures
from rightreasons.review.queue import PAGE_SIZE, Filters, find_next, find_previous, list_items
from rightreasons.review.site import Site, go_to, image_address, session_of
from rightreasons.runs.drawings import encode_mask

# How many images a page of before and after shows.
COMPARED = 12
SCORES = (
    ("accuracy", "Accuracy on the test split"),
    ("worst_group_accuracy", "Worst group"),
    ("mu_align", "Attribution outside the shortcut (mu_align)"),
    ("spurious_share", "Evidence on segments judged spurious"),
    ("swap_flip_rate", "Answers that pasting them in changes"),
)
Kind = Literal["clean", "heatmap", "after", "mask"]


def add_routes(app: FastAPI, site: Site) -> None:
    """Adds the pages to the application."""
    state = site.state

    @app.get("/")
    def queue(request: Request) -> Response:
        if not session_of(request).name:
            return go_to("/name")
        filters, snapshot = Filters.read(request.query_params), state.snapshot()
        items = list_items(snapshot, filters)
        last = max(1, -(-len(items) // PAGE_SIZE))
        number = min(max(1, _page(request)), last)
        shown = items[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
        return site.show(
            request,
            "queue.html",
            filters=filters,
            snapshot=snapshot,
            items=shown,
            listed=len(items),
            number=number,
            last=last,
            classes=state.classes,
            address=image_address,
        )

    @app.get("/name")
    def name(request: Request) -> Response:
        return site.show(request, "name.html", reviewers=state.snapshot().reviewers)

    @app.get("/image/{index}")
    def image(request: Request, index: int) -> Response:
        if not session_of(request).name:
            return go_to("/name")
        site.check_image(index)
        return site.show(request, "image.html", **_image_values(site, request, index))

    @app.get("/image/{index}/draw")
    def draw(request: Request, index: int) -> Response:
        site.check_image(index)
        drawing = state.drawings().get(index)
        height, width = state.size
        runs = ["", ""] if drawing is None else [",".join(map(str, encode_mask(mask))) for mask in (drawing.painted, drawing.erased)]
        return site.show(
            request,
            "draw.html",
            index=index,
            label=state.label_of(index),
            drawing=drawing,
            drawing_runs=runs,
            height=height,
            width=width,
            marked=int(state.mask(index).sum()),
            filters=Filters.read(request.query_params),
        )

    @app.get("/picture/{index}/{kind}")
    def picture(index: int, kind: Kind) -> Response:
        site.check_image(index)
        content = draw_picture(site, index, kind)
        if content is None:
            return Response("There is no such picture.\n", 404)
        kept = "no-store" if kind in ("mask", "after") else "private, max-age=3600"
        return Response(content, media_type="image/png", headers={"cache-control": kept})

    @app.get("/compare")
    def compare(request: Request) -> Response:
        metrics = state.metrics()
        snapshot = state.snapshot()
        images = list(dict.fromkeys(item.index for item in sorted(snapshot.items, key=lambda item: item.verdict.value != "spurious")))
        last = max(1, -(-len(images) // COMPARED))
        number = min(max(1, _page(request)), last)
        columns = [name for name in ("before", "after", "rejected") if metrics.get(name)]
        rows = [(words, [metrics[name].get(key) for name in columns]) for key, words in SCORES]
        return site.show(
            request,
            "compare.html",
            columns=columns,
            rows=[row for row in rows if any(value is not None for value in row[1])],
            alignment=metrics.get("alignment"),
            repaired=state.heatmap(images[0], after=True) is not None if images else False,
            images=images[(number - 1) * COMPARED : number * COMPARED],
            number=number,
            last=last,
            items_of=snapshot.items_of,
            label_of=state.label_of,
        )

    @app.get("/people")
    def people(request: Request) -> Response:
        snapshot = state.snapshot()
        height = 160
        curve = " ".join(f"{300 * share:.1f},{height * (1 - right):.1f}" for share, right in snapshot.calibration.curve)
        last = [verdict for verdict in reversed(snapshot.history) if verdict.by][:PAGE_SIZE]
        return site.show(
            request,
            "people.html",
            snapshot=snapshot,
            curve=curve,
            last=last,
            drawings=sorted(state.drawings().values(), key=lambda drawing: drawing.at),
        )


def _page(request: Request) -> int:
    said = request.query_params.get("page", "1")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 8 else 1


def _image_values(site: Site, request: Request, index: int) -> dict[str, Any]:
    """What the page of an image shows."""
    state, filters, snapshot = site.state, Filters.read(request.query_params), site.state.snapshot()
    items, segments = snapshot.items_of(index), state.shown_segments(index)
    said = request.query_params.get("segment", "")
    wanted = int(said) if said.isascii() and said.isdecimal() and len(said) < 4 else -1
    if not any(item.segment == wanted for item in items):
        wanted = next((item.segment for item in snapshot.items if item.index == index), -1)
    listed = list_items(snapshot, filters)
    critiques = state.critiques(index)
    words = SegmentWords.read(critiques)
    histories = {item.segment: snapshot.lines[index, item.segment] for item in items}
    after, before = (find(listed, (index, wanted)) for find in (find_next, find_previous))
    return {
        "index": index,
        "label": state.label_of(index),
        "answer": state.answer_of(index),
        "words": state.describe(index),
        "items": items,
        "chosen": wanted,
        "places": describe_positions(segments) if items else [],
        "outlines": pictures.outline_segments(segments, len(items)),
        "width": state.size[1],
        "height": state.size[0],
        "critiques": critiques,
        "paragraphs": words.first,
        "near": words.near,
        "histories": histories,
        "disputes": snapshot.disputes,
        "drawing": state.drawings().get(index),
        "filters": filters,
        "snapshot": snapshot,
        "asks_model": state.asks_model,
        "next": None if after is None else image_address(filters, after),
        "previous": None if before is None else image_address(filters, before),
    }


def draw_picture(site: Site, index: int, kind: Kind) -> bytes | None:
    """A picture of an inspected image as PNG, or None if there is none. The file is found by the image's number, never by a name from outside."""
    state = site.state
    if kind == "clean":
        path = state.folder.pictures / f"{index:06d}-clean.png"
        return path.read_bytes() if path.exists() else None
    if kind == "mask":
        return pictures.mask_png(state.mask(index))
    before = state.heatmap(index)
    shown = state.heatmap(index, after=True) if kind == "after" else before
    # Before and after have one scale, so that the eye may compare them.
    return None if shown is None or before is None else pictures.heatmap_png(shown, pictures.heatmap_scale(before))
