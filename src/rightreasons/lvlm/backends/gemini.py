"""Gemini through Google's own SDK and the Gemini API with a key, not through a cloud project."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rightreasons.errors import LVLMError, LVLMUnavailable, LVLMUnsupported
from rightreasons.lvlm.protocol import Answer, Request, Usage, read_count, read_model
from rightreasons.lvlm.wire.failures import Failure, classify
from rightreasons.lvlm.wire.privacy import KEYS, redact
from rightreasons.lvlm.wire.server import CONNECT_SECONDS, Connection, Server

if TYPE_CHECKING:
    import httpx2
    from google import genai
    from google.genai import errors

BASE_URL = "https://generativelanguage.googleapis.com"
_LIKE = "the Gemini API"


class Gemini:
    """One model at Google, or at ``base_url``. The key comes only from GEMINI_API_KEY or GOOGLE_API_KEY, in the environment or the keyring.

    A model that refuses a schema is asked for any JSON object for as long as this object lives.
    """

    simulated = False
    concurrency = (4, 32)

    def __init__(self, model: str, *, base_url: str | None = None, allow_remote: tuple[str, ...] = (), timeout: float = 180.0) -> None:
        self._server = Server(base_url or BASE_URL, allow_remote=allow_remote, keys=(KEYS["gemini"], "GOOGLE_API_KEY"))
        self.name = f"gemini:{model}"
        self.address: dict[str, Any] | None = {
            "spec": self.name,
            "base_url": self._server.base_url,
            "allow_remote": list(allow_remote),
            "timeout": timeout,
        }
        self._model, self._timeout = model, timeout
        self._takes_schema = True
        self._connection = Connection(self._start, _end)

    def check(self) -> None:
        """Asks for the model's description, which is free. A server without descriptions counts as available."""
        import httpx2
        from google.genai import errors

        loop, (client, _) = self._connection.get()
        try:
            loop.run(client.aio.models.get(model=self._model), CONNECT_SECONDS)
        except (TimeoutError, httpx2.HTTPError) as error:
            raise LVLMUnavailable(
                f"no answer from {self._server.base_url} ({error!r}): can this machine reach it? Check the network and the proxy"
            ) from error
        except errors.APIError as error:
            failure = self._explain(error)
            if error.code in (400, 401, 403) or error.status == "NOT_FOUND":
                raise failure from error
        finally:
            self.close()  # a courier does the sending

    def body(self, request: Request) -> dict[str, Any]:
        """The request in the form of the REST interface, and the model's name beside it."""
        parts = [
            {"text": part} if isinstance(part, str) else {"inlineData": {"mimeType": "image/png", "data": _encode(part)}} for part in request.parts
        ]
        settings: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
        if request.schema is not None:
            settings |= {"responseMimeType": "application/json", "responseJsonSchema": dict(request.schema)}
        return {"model": self._model, "contents": [{"role": "user", "parts": parts}], "generationConfig": settings}

    def send(self, body: dict[str, Any]) -> str:
        """One POST, without the SDK's own retries, with one deadline for the whole exchange."""
        import httpx2
        from google.genai import errors

        loop, (client, _) = self._connection.get()
        settings = {key: value for key, value in body["generationConfig"].items() if self._takes_schema or key != "responseJsonSchema"}
        try:
            return loop.run(_post(client, body, settings), self._timeout)
        except (TimeoutError, httpx2.HTTPError) as error:
            raise self._server.lost(error, self._timeout) from error
        except errors.APIError as error:
            if "responseJsonSchema" in settings and error.code == 400 and re.search("schema", str(error.message), re.IGNORECASE):
                self._takes_schema = False
                raise LVLMUnsupported(f"{self._model} refuses this schema; asking again without", wait=0.0) from error
            raise self._explain(error) from error

    def parse(self, raw: str) -> Answer:
        """The first candidate's text. Raises LVLMProtocolError for what is not a response, LVLMTimeout if the answer breaks off."""
        whole = self._server.read_object(raw, like=_LIKE)
        return replace(self._read(whole, raw), model=read_model(whole.get("modelVersion")))

    def close(self) -> None:
        """Ends the connections."""
        self._connection.close()

    def _read(self, whole: dict[str, Any], raw: str) -> Answer:
        usage, blocked = _usage(whole.get("usageMetadata")), (whole.get("promptFeedback") or {}).get("blockReason")
        if blocked:
            return Answer("", problem=f"refused: the request was blocked ({blocked})", outcome="refused", usage=usage)
        try:
            candidate = whole["candidates"][0]
            parts = (candidate.get("content") or {}).get("parts") or []
            text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
        except (LookupError, TypeError, AttributeError) as error:
            raise self._server.alien(raw, like=_LIKE) from error
        reason = candidate.get("finishReason")
        if reason not in ("STOP", "MAX_TOKENS", None):
            return Answer(
                "", problem=f"refused: {candidate.get('finishMessage') or 'no answer was given'} ({reason})", outcome="refused", usage=usage
            )
        if reason == "MAX_TOKENS" or not text.strip():
            said = "the answer was cut off at its longest" if text.strip() else "empty answer"
            return Answer(text, problem=f"truncated: {said} (finish reason {reason!r})", outcome="truncated", usage=usage)
        return Answer(text, usage=usage)

    def _start(self) -> tuple[genai.Client, httpx2.AsyncClient]:
        from google import genai
        from google.genai import types

        http = self._server.open_http(self._timeout)
        options = types.HttpOptions(
            base_url=self._server.base_url,
            timeout=int(1000 * self._timeout),
            retry_options=types.HttpRetryOptions(attempts=1),
            httpx_async_client=http,
        )
        # vertexai is stated, so that nothing in the environment can redirect requests to a cloud project and its host.
        return genai.Client(api_key=self._server.key(), vertexai=False, http_options=options), http

    def _explain(self, error: errors.APIError) -> LVLMError:
        text = redact(getattr(error.response, "text", None) or json.dumps(error.details))
        failure = Failure(error.code, text, dict(getattr(error.response, "headers", None) or {}))
        return classify(failure, server=self._server.base_url, model=self._model, key=KEYS["gemini"])


async def _end(opened: tuple[genai.Client, httpx2.AsyncClient]) -> None:
    client, http = opened
    await http.aclose()
    client.close()


async def _post(client: genai.Client, body: dict[str, Any], settings: dict[str, Any]) -> str:
    from google.genai import types

    contents = [types.Content.model_validate_json(json.dumps(content)) for content in body["contents"]]
    config = types.GenerateContentConfig.model_validate({**settings, "should_return_http_response": True})
    response = await client.aio.models.generate_content(model=body["model"], contents=contents, config=config)
    assert response.sdk_http_response is not None  # it was asked for
    return response.sdk_http_response.body or ""


def _encode(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _usage(said: dict[str, Any] | None) -> Usage:
    """Output tokens include those of thoughts, which are paid for as answers are."""
    counts = said or {}
    out = read_count(counts.get("candidatesTokenCount")), read_count(counts.get("thoughtsTokenCount"))
    return Usage(read_count(counts.get("promptTokenCount")), None if out == (None, None) else sum(part or 0 for part in out))
