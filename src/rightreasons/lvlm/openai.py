"""Any server that speaks the OpenAI chat protocol: vLLM, Ollama, llama.cpp, LM Studio, SGLang, and the hosted ones."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import threading
from typing import Any
from urllib.parse import urlsplit

from rightreasons.errors import ConfigError, LVLMBusy, LVLMProtocolError, LVLMRejected, LVLMTimeout, LVLMUnavailable, LVLMUnsupported, MissingExtra
from rightreasons.lvlm.failures import Failure, classify
from rightreasons.lvlm.privacy import KEYS, check_leave, is_loopback, read_key, redact
from rightreasons.lvlm.protocol import Answer, Request, Usage

# From the first byte that is sent to the last one that comes back.
TIMEOUT_SECONDS = 180.0
CONNECT_SECONDS = 10.0
# Causes of a connection error under which nothing has been sent.
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")


class OpenAICompatible:
    """One model on one server. Pictures go as PNG data URLs; the key comes from OPENAI_API_KEY or the keyring and from nowhere else.

    What the server does not take of a request is remembered as long as this object lives: ``max_completion_tokens`` becomes ``max_tokens``, a JSON
    schema any JSON object, that plain text, and ``store`` goes.
    """

    simulated = False
    concurrency: tuple[int, int] = (4, 32)

    def __init__(self, model: str, *, base_url: str, allow_remote: tuple[str, ...] = (), timeout: float = TIMEOUT_SECONDS) -> None:
        if importlib.util.find_spec("openai") is None:
            raise MissingExtra("openai", "openai")
        try:
            address = urlsplit(base_url)
            host = address.hostname if address.scheme in ("http", "https") and (address.port is None or address.port) else None
        except ValueError:
            host = None
        if host is None:
            raise ConfigError(f"[critic] base_url = {base_url!r} is not an address such as http://127.0.0.1:8000/v1")
        check_leave(host, allow_remote)
        self.name = f"openai:{model}"
        self.address: dict[str, Any] | None = {"spec": self.name, "base_url": base_url, "allow_remote": list(allow_remote)}
        self._model, self._base_url = model, base_url
        self._remote, self._timeout = not is_loopback(host), timeout
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._line: _Line | None = None

    def check(self) -> None:
        """Asks for the list of models, which is free. A server without such a list is taken as being there."""
        import openai

        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=self._remote)
        try:
            with openai.OpenAI(**self._settings(CONNECT_SECONDS), http_client=http) as client:
                listed = client.models.with_raw_response.list().text
        except openai.APIConnectionError as error:
            raise LVLMUnavailable(
                f"no LVLM server answers at {self._base_url} ({error.__cause__ or error}): start it, or correct [critic] base_url"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise LVLMRejected(f"{self._base_url} refuses the key (status {error.status_code}): set OPENAI_API_KEY") from error
        except openai.APIStatusError:
            return
        try:
            is_object = isinstance(json.loads(listed), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise LVLMProtocolError(f"{self._base_url} answers, but not as an OpenAI-compatible server does; its answer starts {listed[:80]!r}")

    def body(self, request: Request) -> dict[str, Any]:
        """A chat completion with one message from the user."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(part).decode()}"}}
            for part in request.parts
        ]
        body: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": content}], "max_completion_tokens": request.max_tokens}
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": dict(request.schema)}}
        # A server on this machine keeps what it likes anyway, and many refuse a parameter that they do not know.
        return body | {"store": False} if self._remote else body

    def send(self, body: dict[str, Any], request: Request | None) -> str:
        """One POST, without the SDK's own retries, and with one deadline for all of it, however slowly the answer drips."""
        import openai

        with self._lock:
            self._line = self._line or _Line(self._settings(self._timeout), trust_env=self._remote)
        sent = self._fit(body)
        try:
            return self._line.post(sent, self._timeout)
        except TimeoutError as error:
            raise LVLMTimeout(f"{self._base_url} gave no whole answer within {self._timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in _NOT_SENT:
                raise LVLMBusy(f"no connection to {self._base_url}: {cause}") from error
            if isinstance(error, openai.APITimeoutError):
                raise LVLMTimeout(f"{self._base_url} gave no whole answer within {self._timeout:g} seconds") from error
            raise LVLMTimeout(f"{self._base_url} dropped the connection before the answer was whole: {cause}") from error
        except openai.APIStatusError as error:
            failure = Failure(error.status_code, redact(error.response.text), error.response.headers)
            named = self._steps_for(failure, sent)
            if named:
                self._refused |= named
                raise LVLMUnsupported(f"{self._base_url} does not take {', '.join(sorted(named))}; asking again without", wait=0.0) from error
            raise classify(failure, server=self._base_url, model=self._model, key=KEYS["openai"]) from error

    def parse(self, raw: str) -> Answer:
        """The first choice's content. Raises LVLMProtocolError where there are no choices at all, LVLMTimeout where the answer breaks off."""
        try:
            whole = json.loads(raw)
            choice = whole["choices"][0]
            message = dict(choice["message"])
        except (ValueError, LookupError, TypeError) as error:
            if isinstance(error, json.JSONDecodeError) and raw.lstrip().startswith("{"):
                raise LVLMTimeout(f"{self._base_url} sent half an answer, which ends {raw[-40:]!r}") from error
            raise LVLMProtocolError(
                f"{self._base_url} answers, but not as an OpenAI-compatible server does; its answer starts {raw[:120]!r}: check [critic] base_url"
            ) from error
        usage, reason, text = _usage(whole.get("usage")), choice.get("finish_reason"), message.get("content")
        if message.get("refusal"):
            return Answer("", problem=f"refused: {message['refusal']}", outcome="refused", usage=usage)
        if reason == "content_filter":
            return Answer("", problem="refused: the provider's content filter stopped the answer", outcome="refused", usage=usage)
        if not isinstance(text, str) or not text.strip():
            return Answer("", problem=f"truncated: empty answer (finish reason {reason!r})", outcome="truncated", usage=usage)
        if reason == "length":
            return Answer(text, problem="truncated: the answer was cut off at its longest", outcome="truncated", usage=usage)
        return Answer(text, usage=usage)

    def close(self) -> None:
        """Ends the connections."""
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    def _settings(self, timeout: float) -> dict[str, Any]:
        import openai

        limits = openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        return {"api_key": read_key(KEYS["openai"]) or "none", "base_url": self._base_url, "max_retries": 0, "timeout": limits}

    def _fit(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body as this server takes it, by what it has refused so far."""
        fitted = {key: value for key, value in body.items() if key not in self._refused}
        if "max_completion_tokens" in self._refused:
            fitted["max_tokens"] = body["max_completion_tokens"]
        if "json_object" in self._refused:
            fitted.pop("response_format", None)
        elif "json_schema" in self._refused and "response_format" in body:
            fitted["response_format"] = {"type": "json_object"}
        return fitted

    def _steps_for(self, failure: Failure, sent: dict[str, Any]) -> set[str]:
        """What a 400 names of what was sent and can be sent otherwise. The cap on an answer is never left out: without it no cost is bounded."""
        named = {key for key in ("max_completion_tokens", "store") if key in sent and failure.names(key)}
        if "response_format" in sent and (failure.names("response_format") or failure.names("json_schema") or failure.names("json_object")):
            named.add(sent["response_format"]["type"])
        return named


class _Line:
    """Connections to one server in an event loop of their own, which threads hand requests to: only there can all of a request have one deadline."""

    def __init__(self, settings: dict[str, Any], *, trust_env: bool) -> None:
        import openai

        # A redirect, or a proxy from the environment, would carry pictures to a host that nobody allowed.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=trust_env)
        self._client = openai.AsyncOpenAI(**settings, http_client=http)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def post(self, body: dict[str, Any], timeout: float) -> str:
        """The answer as it came. Raises TimeoutError and the SDK's errors."""
        return asyncio.run_coroutine_threadsafe(self._post(body, timeout), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _post(self, body: dict[str, Any], timeout: float) -> str:
        async with asyncio.timeout(timeout):
            return (await self._client.chat.completions.with_raw_response.create(**body)).text


def _usage(counted: object) -> Usage:
    """Tokens as the server counted them, where it did."""
    counts = counted if isinstance(counted, dict) else {}
    read = [value if isinstance(value := counts.get(key), int) else None for key in ("prompt_tokens", "completion_tokens")]
    return Usage(*read)
