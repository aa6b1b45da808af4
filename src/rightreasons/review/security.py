"""Who may talk to the server: this page, in a browser that was given the token. Everything else is refused before a page is reached."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# No script, style or picture but the server's own; nothing inline; no other page may frame this one or be sent a form.
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# The largest body of a request in bytes; a drawing on a large image is the largest.
LARGEST_BODY = 4 * 2**20
# The referrer policy is not "no-referrer": with it browsers send forms with the Origin "null", which could be anybody's.
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# A cookie that is SameSite=Strict does not go along with a redirect that came from elsewhere, so the browser is told to ask anew.
_HEAD = '<meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/"><link rel="icon" href="/static/icon.svg"><title>rightreasons</title>'
_ENTER = f'<!doctype html><html lang="en"><head>{_HEAD}</head><body><a href="/">Go on</a></body></html>'


@dataclass
class Session:
    """One browser that came with the token: the name of its reviewer, and what the next page is to say."""

    name: str = ""
    said: str = ""

    def take_said(self) -> str:
        """What is to be said, once."""
        said, self.said = self.said, ""
        return said


@dataclass
class Doorkeeper:
    """Tells requests that may come in from all others.

    ``port`` is the server's, ``command`` what started it; the ``token`` is random and lasts as long as the server.
    """

    port: int
    name: str = ""
    command: str = "review"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The address that lets a browser in."""
        return f"http://127.0.0.1:{self.port}/start?token={self.token}"

    @property
    def cookie(self) -> str:
        """The name of the cookie: one for each port, since browsers do not keep cookies of ports apart."""
        return f"rightreasons_{self.port}"

    def find_fault(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused whoever sends it, or None: a Host or Origin that is not this server."""
        hosts = (f"127.0.0.1:{self.port}", f"localhost:{self.port}")
        if headers.getlist("host") not in [[host] for host in hosts]:
            return "this server answers to its own address alone"
        origin = headers.get("origin")
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            return "the request comes from another page"
        if origin is None and method not in ("GET", "HEAD"):
            return "a request that changes something has to say which page it comes from"
        return None

    def find_session(self, headers: Headers) -> Session | None:
        """The session of the cookie that came along."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return None if morsel is None else self.sessions.get(morsel.value)

    def open_session(self, query: str) -> str | None:
        """A new session's cookie if the query has the token, else None."""
        given = parse_qs(query).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return None
        key = secrets.token_urlsafe(32)
        self.sessions[key] = Session(self.name)
        return f"{self.cookie}={key}; HttpOnly; SameSite=Strict; Path=/"


class Guarded:
    """An application behind the doorkeeper."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper) -> None:
        self.app, self.doorkeeper = app, doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or refuses, one request. Every answer says what a browser may do with it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._answer(scope, receive, send_guarded)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        fault = self.doorkeeper.find_fault(scope["method"], headers)
        length = headers.get("content-length", "0")
        if fault is not None:
            await PlainTextResponse(f"Refused: {fault}.\n", 403)(scope, receive, send)
        elif scope["path"] == "/start":
            await self._enter(scope, receive, send)
        elif (session := self.doorkeeper.find_session(headers)) is None:
            command = self.doorkeeper.command
            told = f"Refused: open the address that `rightreasons {command}` printed; it has the token that lets a browser in.\n"
            await PlainTextResponse(told, 403)(scope, receive, send)
        elif "transfer-encoding" in headers or not length.isdecimal() or int(length) > LARGEST_BODY:
            await PlainTextResponse(f"Refused: a body of at most {LARGEST_BODY} bytes, of a stated length, was expected.\n", 413)(
                scope, receive, send
            )
        else:
            scope.setdefault("state", {})["session"] = session
            await self.app(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        cookie = self.doorkeeper.open_session(scope["query_string"].decode("latin-1")) if scope["method"] == "GET" else None
        if cookie is None:
            await PlainTextResponse(f"Refused: this is not the token that `rightreasons {self.doorkeeper.command}` printed.\n", 403)(
                scope, receive, send
            )
        else:
            await HTMLResponse(_ENTER, headers={"set-cookie": cookie})(scope, receive, send)
