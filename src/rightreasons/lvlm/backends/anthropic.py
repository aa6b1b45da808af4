"""Claude through Anthropic's own SDK, because its OpenAI-compatible endpoint ignores schemas."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rightreasons.errors import LVLMError, LVLMUnavailable, LVLMUnsupported
from rightreasons.lvlm.protocol import Answer, Request, Usage, read_count, read_model
from rightreasons.lvlm.wire.failures import Failure, classify
from rightreasons.lvlm.wire.privacy import KEYS, redact
from rightreasons.lvlm.wire.server import CONNECT_SECONDS, Connection, Server

if TYPE_CHECKING:
    import anthropic

BASE_URL = "https://api.anthropic.com"
_LIKE = "Anthropic's API"
_NO_SCHEMA = ("output_config", "output_format", "structured output")


class Anthropic:
    """One model at Anthropic, or at ``base_url``. The key comes only from ANTHROPIC_API_KEY or the keyring.

    A model that refuses a schema is asked without one for as long as this object lives.
    """

    simulated = False
    concurrency = (4, 32)

    def __init__(self, model: str, *, base_url: str | None = None, allow_remote: tuple[str, ...] = (), timeout: float = 180.0) -> None:
        self._server = Server(base_url or BASE_URL, allow_remote=allow_remote, keys=(KEYS["anthropic"],))
        self.name = f"anthropic:{model}"
        self.address: dict[str, Any] | None = {
            "spec": self.name,
            "base_url": self._server.base_url,
            "allow_remote": list(allow_remote),
            "timeout": timeout,
        }
        self._model, self._timeout = model, timeout
        self._takes_schema = True
        self._connection = Connection(self._start, lambda client: client.close())

    def check(self) -> None:
        """Asks for the model's description, which is free. A server without descriptions counts as available."""
        import anthropic

        loop, client = self._connection.get()
        try:
            loop.run(client.models.with_raw_response.retrieve(self._model), CONNECT_SECONDS)
        except (TimeoutError, anthropic.APIConnectionError) as error:
            raise LVLMUnavailable(
                f"no answer from {self._server.base_url} ({error.__cause__ or error!r}): can this machine reach it? Check the network and the proxy"
            ) from error
        except anthropic.APIStatusError as error:
            if error.status_code in (401, 403) or error.type == "not_found_error":
                raise self._explain(error) from error
        finally:
            self.close()  # a courier does the sending

    def body(self, request: Request) -> dict[str, Any]:
        """The parameters of one message, in the form that the batch service takes too."""
        import anthropic

        content = [{"type": "text", "text": part} if isinstance(part, str) else _picture(part) for part in request.parts]
        body: dict[str, Any] = {"model": self._model, "max_tokens": request.max_tokens, "messages": [{"role": "user", "content": content}]}
        if request.schema is not None:
            # The service does not take bounds on strings and numbers; transform_schema puts them into the descriptions.
            body["output_config"] = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(dict(request.schema))}}
        return body

    def send(self, body: dict[str, Any]) -> str:
        """One POST, without the SDK's own retries, with one deadline for the whole exchange."""
        import anthropic

        loop, client = self._connection.get()
        sent = body if self._takes_schema else {key: value for key, value in body.items() if key != "output_config"}
        try:
            return loop.run(_post(client, sent), self._timeout)
        except (TimeoutError, anthropic.APIConnectionError) as error:
            raise self._server.lost(error, self._timeout) from error
        except anthropic.APIStatusError as error:
            if "output_config" in sent and error.status_code == 400 and any(words in error.response.text.lower() for words in _NO_SCHEMA):
                self._takes_schema = False
                raise LVLMUnsupported(f"{self._model} refuses a schema; asking again without", wait=0.0) from error
            raise self._explain(error) from error

    def parse(self, raw: str) -> Answer:
        """The text blocks, joined. Raises LVLMProtocolError for what is not a message, LVLMTimeout if the answer breaks off."""
        message = self._server.read_object(raw, like=_LIKE)
        return replace(self._read(message, raw), model=read_model(message.get("model")))

    def close(self) -> None:
        """Ends the connections."""
        self._connection.close()

    def _read(self, message: dict[str, Any], raw: str) -> Answer:
        blocks, reason = message.get("content"), message.get("stop_reason")
        if message.get("type") != "message" or not isinstance(blocks, list):
            raise self._server.alien(raw, like=_LIKE)
        usage, text = _usage(message.get("usage")), "".join(block["text"] for block in blocks if block.get("type") == "text")
        if reason == "refusal":
            details = message.get("stop_details") or {}
            return Answer("", problem=f"refused: {details.get('explanation') or text.strip() or 'no reason given'}", outcome="refused", usage=usage)
        if reason in ("max_tokens", "model_context_window_exceeded") or not text.strip():
            said = "the answer was cut off at its longest" if text.strip() else "empty answer"
            return Answer(text, problem=f"truncated: {said} (stop reason {reason!r})", outcome="truncated", usage=usage)
        return Answer(text, usage=usage)

    def _start(self) -> anthropic.AsyncAnthropic:
        import anthropic

        # If a key is given, the SDK does not look for other credentials in the environment or the home folder.
        settings = {"api_key": self._server.key(), "base_url": self._server.base_url, "max_retries": 0, "timeout": self._timeout}
        return anthropic.AsyncAnthropic(**settings, http_client=self._server.open_http(self._timeout))

    def _explain(self, error: anthropic.APIStatusError) -> LVLMError:
        failure = Failure(error.status_code, redact(error.response.text), error.response.headers)
        return classify(failure, server=self._server.base_url, model=self._model, key=KEYS["anthropic"])


async def _post(client: anthropic.AsyncAnthropic, body: dict[str, Any]) -> str:
    response = await client.messages.with_raw_response.create(**body)
    return response.http_response.text


def _picture(png: bytes) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}}


def _usage(said: dict[str, Any] | None) -> Usage:
    """Input tokens include those from a cache, at the full price: a discount for cached tokens is not counted on."""
    if not said:
        return Usage()
    parts = [read_count(said.get(name)) for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")]
    return Usage(sum(part or 0 for part in parts) if parts[0] is not None else None, read_count(said.get("output_tokens")))
