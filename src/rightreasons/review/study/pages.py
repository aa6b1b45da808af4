"""The pages of a blind study: a segment without the LVLM's verdict, then its argument, then the next segment. Nothing else can be reached."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rightreasons.critic.critique import describe_positions
from rightreasons.review import pictures
from rightreasons.review.forms import read_form, read_number
from rightreasons.review.pages import draw_picture
from rightreasons.review.site import Site, go_to, session_of
from rightreasons.review.study.sample import order_questions
from rightreasons.runs.appended import read_name
from rightreasons.runs.blind import OPINIONS, Question, Reply, Sample, add_opinion, add_verdict, load_replies, read_opinion
from rightreasons.runs.verdict_lines import read_value

# What a page shows of an image. Masks are not among them: they are made of verdicts.
Kind = Literal["clean", "heatmap"]


def add_routes(app: FastAPI, site: Site, sample: Sample) -> None:
    """Adds the study's pages, and what can be done on them, to the application."""
    folder = site.state.folder
    asked = {question.place: question for question in sample.questions}
    images = {question.index for question in sample.questions}

    def replies_of(name: str) -> dict[tuple[int, int], Reply]:
        return {reply.place: reply for reply in load_replies(folder, sample) if reply.by.casefold() == name.casefold()}

    def read_question(form: dict[str, str]) -> Question:
        index, segment = (read_number(form, key, 0, 10**9 - 1) for key in ("index", "segment"))
        if (index, segment) not in asked:
            raise ValueError(f"image {index}, S{segment + 1} is not one of the {len(asked)} segments of this study")
        return asked[index, segment]

    @app.get("/")
    def study(request: Request) -> Response:
        name = session_of(request).name
        if not name:
            return go_to("/name")
        mine = replies_of(name)
        order = order_questions(sample, name)
        question = next((question for question in order if not _is_done(question, mine.get(question.place))), None)
        done = sum(_is_done(question, mine.get(question.place)) for question in order)
        if question is None:
            return site.show(request, "study/end.html", count=len(order))
        reply = mine.get(question.place)
        template = "study/verdict.html" if reply is None else "study/argument.html"
        return site.show(request, template, done=done, count=len(order), reply=reply, opinions=OPINIONS, **_show_question(site, question))

    @app.get("/name")
    def name(request: Request) -> Response:
        return site.show(request, "study/name.html", count=len(asked))

    @app.post("/name")
    async def begin(request: Request) -> Response:
        session, said = session_of(request), read_name((await read_form(request)).get("name"))
        known = replies_of(said)
        # Whoever comes back is the same person, however the name is spelled this time.
        session.name = next((reply.by for reply in known.values()), said)
        session.said = f"You judge as {session.name}. {len(known)} of {len(asked)} segments have a verdict of yours already."
        return go_to("/")

    @app.post("/verdict")
    async def verdict(request: Request) -> Response:
        form = await read_form(request)
        question, value, by = read_question(form), read_value(form.get("value", "")), read_name(form.get("by"))
        earlier = replies_of(by).get(question.place)
        if earlier is None:
            add_verdict(folder, sample, question, value, by)
            session_of(request).said = f"Saved: {_name(question)} is {value}, by {by}."
        else:
            session_of(request).said = f"Not changed: {by} had said {earlier.value} on {_name(question)}, and the first verdict counts."
        return go_to("/")

    @app.post("/argument")
    async def argument(request: Request) -> Response:
        form = await read_form(request)
        question, opinion, by = read_question(form), read_opinion(form.get("opinion", "")), read_name(form.get("by"))
        earlier = replies_of(by).get(question.place)
        if earlier is None:
            raise ValueError(f"{by} has not given a verdict on {_name(question)} yet, which comes before its argument")
        if earlier.opinion is None:
            add_opinion(folder, sample, question, opinion, by)
            session_of(request).said = f"Saved: {opinion} on the argument about {_name(question)}, by {by}."
        else:
            session_of(request).said = f"Not changed: {by} had said {earlier.opinion} on {_name(question)}, and the first answer counts."
        return go_to("/")

    @app.get("/picture/{index}/{kind}")
    def picture(index: int, kind: Kind) -> Response:
        content = draw_picture(site, index, kind) if index in images else None
        if content is None:
            return Response("There is no such picture.\n", 404)
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _is_done(question: Question, reply: Reply | None) -> bool:
    """Whether nothing is left to ask about a segment. A critique that has no words on it has no argument."""
    return reply is not None and (reply.opinion is not None or not question.words)


def _name(question: Question) -> str:
    return f"image {question.index}, S{question.segment + 1}"


def _show_question(site: Site, question: Question) -> dict[str, Any]:
    """What both pages of a question show: the picture with the outline of this segment alone, and the expert's words with which the LVLM judged."""
    state = site.state
    segments = state.shown_segments(question.index)
    shown = (segments == question.segment).numpy()
    return {
        "question": question,
        "answer": state.answer_of(question.index),
        "words": state.original(question.label),
        "place": describe_positions(segments)[question.segment],
        "share": state.describe_place(question.place)[1],
        "fill": pictures.fill_path(shown),
        "rim": pictures.rim_path(shown),
        "height": state.size[0],
        "width": state.size[1],
    }
