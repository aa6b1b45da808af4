"""The page of words: descriptions and few-shot pairs that an expert edits, what would change by them, and having images judged again."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rightreasons.common.seeds import seeded
from rightreasons.critic.judge import parse_examples
from rightreasons.critic.prompts import read_prompt
from rightreasons.errors import ConfigError
from rightreasons.lvlm.backends import BACKENDS, anthropic, gemini, kind_of
from rightreasons.lvlm.wire.privacy import is_loopback
from rightreasons.project.project import find_server
from rightreasons.records import ClassDescription, Verdict, Words
from rightreasons.review.forms import read_form, read_numbers
from rightreasons.review.site import Site, go_to, session_of
from rightreasons.review.snapshot import Snapshot
from rightreasons.review.state import ReviewState
from rightreasons.runs.appended import now, read_name
from rightreasons.runs.words import add_words

# Where a backend sends that is given no address.
PROVIDERS = {"anthropic": anthropic.BASE_URL, "gemini": gemini.BASE_URL}
# The longest description and the longest file of pairs, in characters.
LONGEST_DESCRIPTION, LONGEST_EXAMPLES = 4000, 40_000


def add_routes(app: FastAPI, site: Site) -> None:
    """Adds the page and what it can do to the application."""
    state = site.state

    @app.get("/words")
    def words(request: Request) -> Response:
        changes, snapshot = state.words(), state.snapshot()
        waiting = list(dict.fromkeys(item.index for item in snapshot.items if item.waiting is not None))
        by_class: dict[str, list[int]] = {name: [] for name in state.classes}
        for item in snapshot.by_place.values():
            if item.segment == 0:
                by_class[item.label].append(item.index)
        edited = {name: (state.original(name), item) for name, item in state.descriptions().items() if item != state.original(name)}
        return site.show(
            request,
            "words.html",
            descriptions=state.descriptions(),
            examples=read_current_examples(state),
            changes=changes,
            edited=edited,
            waiting=waiting,
            by_class=by_class,
            remote=remote_hosts(state),
            critic=state.config.critic,
            asks_model=state.asks_model,
            changed=list_changed(snapshot),
            images=request.query_params.get("images", ""),
        )

    @app.post("/words")
    async def save(request: Request) -> Response:
        form = await read_form(request)
        by, items = read_name(form.get("by")), []
        for number, name in enumerate(state.classes):
            item = ClassDescription(name, *(_read_text(form, f"{key}-{number}", LONGEST_DESCRIPTION) for key in ("description", "irrelevant")))
            if not item.description and not item.irrelevant:
                raise ConfigError(f"class {name!r} has neither what matters nor what does not: write at least one of them")
            items.append(item)
        examples = _read_text(form, "examples", LONGEST_EXAMPLES)
        parse_examples(examples, "the few-shot pairs", seeded(state.config.run.seed, "few-shot"))
        add_words(state.folder, Words(tuple(items), None if examples == read_original_examples(state) else examples, by, now()))
        session_of(request).said = f"Saved by {by}. Verdicts do not change until images are judged again."
        return go_to("/words")

    @app.post("/again")
    async def again(request: Request) -> Response:
        form = await read_form(request)
        by, images, role = read_name(form.get("by")), read_numbers(form.get("images", "")), form.get("role", "")
        if role not in ("critic", "judge"):
            raise ValueError(f"role = {role!r}; expected critic or judge")
        for image in images:
            site.check_image(image)
        numbers = [str(image) for image in dict.fromkeys(images)]
        arguments = ["ask-again", str(state.path), *numbers, "--role", role]
        if form.get("do") == "estimate":
            site.jobs.start(f"What judging {len(numbers)} images again costs", [*arguments, "--estimate"], by)
            return go_to("/work")
        for host in remote_hosts(state):
            if form.get(f"allow-{host}") != "yes":
                raise ConfigError(f"judging again sends to {host}, which is another machine: allow that on the page, or take a model on this machine")
            arguments += ["--allow-remote", host]
        most = form.get("most", "").strip()
        if most:
            arguments += ["--max-usd", str(_read_money(most))]
        site.jobs.start(f"Judging {len(numbers)} images again", [*arguments, "--by", by], by)
        return go_to("/work")


def read_current_examples(state: ReviewState) -> str:
    """The few-shot pairs as they are now, as TOML."""
    texts = [change.examples for change in state.words() if change.examples is not None]
    return texts[-1] if texts else read_original_examples(state)


def read_original_examples(state: ReviewState) -> str:
    """The few-shot pairs with which ``find`` ran, as TOML with the line endings of a form."""
    named = state.config.critic.examples
    text = read_prompt("judge_examples.toml") if named is None else (state.folder.root() / named).read_text(encoding="utf-8")
    return _plain(text)


def remote_hosts(state: ReviewState) -> list[str]:
    """The hosts other than this machine to which judging again would send, as --allow-remote wants them."""
    critic, hosts = state.config.critic, []
    for spec, address in (find_server(critic, "critic"), find_server(critic, "judge")):
        parts = urlsplit(address or PROVIDERS.get(kind_of(spec), ""))
        if parts.hostname and BACKENDS[kind_of(spec)].key is not None and not is_loopback(parts.hostname):
            hosts.append(parts.hostname if parts.scheme == "https" else f"http://{parts.hostname}")
    return list(dict.fromkeys(hosts))


def list_changed(snapshot: Snapshot) -> list[tuple[Verdict, Verdict]]:
    """The model's verdicts that judging again has changed: as ``find`` had it, and as it is now."""
    again = [item.said for item in snapshot.by_place.values() if item.said is not None and item.said.at is not None]
    pairs = [(next((line for line in snapshot.lines[new.index, new.segment] if line.at is None), None), new) for new in again]
    return [(old, new) for old, new in pairs if old is not None and old.value != new.value]


def _read_text(form: dict[str, str], key: str, longest: int) -> str:
    text = _plain(form.get(key, ""))
    if len(text) > longest:
        raise ValueError(f"{key} has {len(text)} characters; expected at most {longest}")
    return text


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _read_money(said: str) -> float:
    try:
        money = float(said)
    except ValueError as error:
        raise ValueError(f"{said[:40]!r}; expected US dollars, such as 0.50") from error
    if not 0 <= money < 1e6:
        raise ValueError(f"{said[:40]!r}; expected US dollars from 0 on, such as 0.50")
    return money
