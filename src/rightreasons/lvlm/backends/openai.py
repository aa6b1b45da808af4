"""Any server that speaks the OpenAI chat protocol: vLLM, Ollama, llama.cpp, LM Studio, SGLang, and hosted ones."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rightreasons.errors import LVLMError, LVLMRejected, LVLMTimeout, LVLMUnavailable, LVLMUnsupported
from rightreasons.lvlm.protocol import Answer, Request, Usage, read_count, read_model
from rightreasons.lvlm.wire.chat import chat_message, read_content, read_misplaced
from rightreasons.lvlm.wire.failures import Failure, classify
from rightreasons.lvlm.wire.privacy import KEYS, read_key, redact
from rightreasons.lvlm.wire.server import CONNECT_SECONDS, Connection, Server

if TYPE_CHECKING:
    import openai

_LIKE = "an OpenAI-compatible server"
_CAP, _OLDER_CAP = "max_completion_tokens", "max_tokens"
# Finish reasons of an answer that its cap or the context ended, and of one that a failure or a stop of the server did: OpenRouter and Mistral say
# "error", SGLang and vLLM "abort", DeepSeek that it ran out of resources. All come with status 200 and the text so far.
_CUT = ("length", "model_length")
_BROKEN = ("error", "abort", "insufficient_system_resource")


class OpenAICompatible:
    """One model on one server. Pictures are sent as PNG data URLs. The key comes only from OPENAI_API_KEY or the keyring.

    A parameter that the server refuses is replaced for as long as this object lives: ``max_completion_tokens`` by ``max_tokens``, a JSON schema by
    any JSON object, that by plain text, and ``store`` is left out. A server on this machine is sent the cap under both of its names, since some
    ignore one of them and still answer 200.
    """

    simulated = False
    concurrency: tuple[int, int] = (4, 32)

    def __init__(self, model: str, *, base_url: str, allow_remote: tuple[str, ...] = (), timeout: float = 180.0) -> None:
        self._server = Server(base_url, allow_remote=allow_remote, keys=(KEYS["openai"],))
        self.name = f"openai:{model}"
        self.address: dict[str, Any] | None = {"spec": self.name, "base_url": base_url, "allow_remote": list(allow_remote), "timeout": timeout}
        self._model, self._timeout = model, timeout
        self._refused: set[str] = set()
        self._connection = Connection(self._start, lambda client: client.close())

    def check(self) -> None:
        """Asks for the list of models, which is free. A server without such a list counts as available."""
        import openai

        loop, client = self._connection.get()
        server = self._server.base_url
        try:
            listed = loop.run(_list_models(client), CONNECT_SECONDS)
        except (TimeoutError, openai.APIConnectionError) as error:
            raise LVLMUnavailable(
                f"no LVLM server answers at {server} ({error.__cause__ or error!r}): start it, or correct [critic] base_url"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise LVLMRejected(f"{server} refuses the key (status {error.status_code}): set {KEYS['openai']}") from error
        except openai.APIStatusError as error:
            if error.status_code == 404:
                self._look_below()
            return
        finally:
            self.close()  # a courier does the sending
        self._check_list(listed)

    def body(self, request: Request) -> dict[str, Any]:
        """A chat completion with one message from the user."""
        body: dict[str, Any] = {"model": self._model, "messages": [chat_message(request)], "max_completion_tokens": request.max_tokens}
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": dict(request.schema)}}
        # A server on this machine stores what it likes anyway, and many refuse an unknown parameter.
        return body | {"store": False} if self._server.remote else body

    def send(self, body: dict[str, Any]) -> str:
        """One POST, without the SDK's own retries, with one deadline for the whole exchange even if the answer comes byte by byte."""
        import openai

        loop, client = self._connection.get()
        sent = self.fit(body)
        try:
            return loop.run(_post(client, sent), self._timeout)
        except (TimeoutError, openai.APIConnectionError) as error:
            raise self._server.lost(error, self._timeout) from error
        except openai.APIStatusError as error:
            failure = Failure(error.status_code, redact(error.response.text), error.response.headers)
            named = set() if failure.too_big else self._steps_for(failure, sent)
            if named:
                self._refused |= named
                raise LVLMUnsupported(f"{self._server.base_url} refuses {', '.join(sorted(named))}; asking again without", wait=0.0) from error
            raise self._explain(failure) from error

    def parse(self, raw: str) -> Answer:
        """The first choice's content. Raises LVLMProtocolError if there are no choices at all, LVLMTimeout if the answer breaks off."""
        whole = self._server.read_object(raw, like=_LIKE)
        return replace(self._read(whole, raw), model=read_model(whole.get("model")))

    def close(self) -> None:
        """Ends the connections."""
        self._connection.close()

    def _read(self, whole: dict[str, Any], raw: str) -> Answer:
        if isinstance(failed := whole.get("error"), dict) and not whole.get("choices"):  # a router passes on a failure of the server behind it
            code = failed.get("code")
            raise self._explain(Failure(code if isinstance(code, int) and 400 <= code < 600 else 500, redact(raw), {}))
        if whole.get("choices") == [] and whole.get("object") == "chat.completion":  # some servers report an empty answer this way
            return Answer("", problem="truncated: empty answer (no choices)", outcome="truncated", usage=_usage(whole.get("usage")))
        try:
            choice = whole["choices"][0]
            message = dict(choice["message"])
        except (LookupError, TypeError, ValueError) as error:
            raise self._server.alien(raw, like=_LIKE) from error
        usage, reason, text = _usage(whole.get("usage")), choice.get("finish_reason"), read_content(message.get("content"))
        if choice.get("error") or reason in _BROKEN:
            said = redact(json.dumps(choice.get("error") or reason))[:300]
            raise LVLMTimeout(f"{self._server.base_url} broke an answer off: {said}")
        if not text and reason == "stop":  # some servers return the answer as reasoning
            text = read_misplaced(message)
        if message.get("refusal"):
            return Answer("", problem=f"refused: {message['refusal']}", outcome="refused", usage=usage)
        if reason == "content_filter":
            return Answer("", problem="refused: the provider's content filter stopped the answer", outcome="refused", usage=usage)
        if not text:
            return Answer("", problem=f"truncated: empty answer (finish reason {reason!r})", outcome="truncated", usage=usage)
        if reason in _CUT:
            return Answer(text, problem="truncated: the answer was cut off at its longest", outcome="truncated", usage=usage)
        return Answer(text, usage=usage)

    def _start(self) -> openai.AsyncOpenAI:
        import openai

        # Many private servers need no key, but the SDK requires one.
        settings = {"api_key": read_key(KEYS["openai"]) or "none", "base_url": self._server.base_url, "max_retries": 0}
        return openai.AsyncOpenAI(**settings, timeout=self._timeout, http_client=self._server.open_http(self._timeout))

    def _explain(self, failure: Failure) -> LVLMError:
        return classify(failure, server=self._server.base_url, model=self._model, key=KEYS["openai"])

    def _check_list(self, listed: str) -> None:
        """Raises LVLMProtocolError unless this can be a list of models: an object or, at Together AI, an array."""
        if not listed.lstrip().startswith("["):
            self._server.read_object(listed, like=_LIKE)

    def _look_below(self) -> None:
        """Raises LVLMUnavailable if the list of models is found under /v1 instead: the address lacks its /v1."""
        import openai

        below = f"{self._server.base_url.rstrip('/')}/v1"
        loop, client = self._connection.get()
        try:
            listed = loop.run(_list_models(client.with_options(base_url=below)), CONNECT_SECONDS)
        except (TimeoutError, openai.OpenAIError):
            return  # a server without such a list
        self._check_list(listed)
        raise LVLMUnavailable(f"nothing answers at {self._server.base_url} itself, and {below} does: set [critic] base_url = {below!r}")

    def fit(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without what this server has refused so far. A cap of None means that this name must not be sent."""
        fitted = {key: value for key, value in body.items() if key not in self._refused and value is not None}
        both = not self._server.remote and _OLDER_CAP not in body and _OLDER_CAP not in self._refused
        if _CAP in body and (_CAP in self._refused or both):
            fitted[_OLDER_CAP] = body[_CAP]
        if "json_object" in self._refused:
            fitted.pop("response_format", None)
        elif "json_schema" in self._refused and "response_format" in body:
            fitted["response_format"] = {"type": "json_object"}
        return fitted

    def _steps_for(self, failure: Failure, sent: dict[str, Any]) -> set[str]:
        """The refused parameters that can be sent in another form. The cap on an answer is never left out: without it no cost is bounded."""
        named = {key for key in ("store", _CAP) if key in sent and failure.names(key)}
        if _CAP in sent and _OLDER_CAP in sent and failure.names(_OLDER_CAP):  # the two may not go together
            named = named - {_CAP} | {_OLDER_CAP}
        if "response_format" in sent and (failure.names("response_format") or failure.names("json_schema") or failure.names("json_object")):
            named.add(sent["response_format"]["type"])
        return named


async def _list_models(client: openai.AsyncOpenAI) -> str:
    return (await client.models.with_raw_response.list()).text


async def _post(client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
    return (await client.chat.completions.with_raw_response.create(**body)).text


def _usage(counted: object) -> Usage:
    """Tokens as the server counted them, if it did. Some, such as xAI's and Gemini's, count thoughts in the total alone, and are paid for them."""
    counts = counted if isinstance(counted, dict) else {}
    went_in, came_out, total = (read_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if went_in is None or came_out is None or total is None:
        return Usage(went_in, came_out)
    return Usage(went_in, max(came_out, total - went_in))
