"""Any server that speaks the OpenAI chat protocol: vLLM, Ollama, llama.cpp, LM Studio, SGLang, and the hosted ones."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rightreasons.errors import ConfigError, LVLMBusy, LVLMProtocolError, LVLMRejected, LVLMTimeout, LVLMUnavailable, MissingExtra
from rightreasons.lvlm.privacy import KEYS, check_leave, is_loopback, read_key, redact
from rightreasons.lvlm.protocol import Answer, Request

if TYPE_CHECKING:
    import openai

TIMEOUT_SECONDS = 180.0


class OpenAICompatible:
    """One model on one server. Pictures go as PNG data URLs; the key comes from OPENAI_API_KEY or the keyring and from nowhere else."""

    simulated = False
    concurrency = (4, 32)

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
        remote = not is_loopback(host)
        check_leave(host, allow_remote)
        self.name = f"openai:{model}"
        self.address: dict[str, Any] | None = {"spec": self.name, "base_url": base_url, "allow_remote": list(allow_remote)}
        self._model, self._base_url = model, base_url
        self._without: set[str] = set()
        self._remote, self._timeout = remote, timeout
        self._open: openai.OpenAI | None = None

    def check(self) -> None:
        """Asks for the list of models, which is free. A server without such a list is taken as being there."""
        import openai

        try:
            with self._connect(timeout=10.0) as client:
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
        return body

    def send(self, body: dict[str, Any], request: Request | None) -> str:
        """One POST, without the SDK's own retries. A parameter that the server names in a 400 is left out from then on."""
        import openai

        self._open = self._open or self._connect(timeout=self._timeout)
        allowed = {key: value for key, value in body.items() if key not in self._without}
        try:
            return self._open.chat.completions.with_raw_response.create(**allowed).text
        except openai.BadRequestError as error:
            named = next((key for key in ("response_format", "max_completion_tokens") if key in allowed and key in str(error)), None)
            if named is None:
                raise LVLMRejected(self._explain(error)) from error
            self._without.add(named)
            raise LVLMBusy(f"the server does not take {named!r}; asking again without it", wait=0.0) from error
        except openai.APITimeoutError as error:
            raise LVLMTimeout(f"{self._base_url} gave no answer within {self._timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            raise LVLMBusy(f"{self._base_url} dropped the connection: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise LVLMBusy(self._explain(error), wait=_retry_after(error)) from error
            raise LVLMRejected(self._explain(error)) from error

    def parse(self, raw: str) -> Answer:
        """The first choice's content. Raises LVLMProtocolError where there are no choices at all."""
        try:
            choice = json.loads(raw)["choices"][0]
            message = dict(choice["message"])
        except (ValueError, LookupError, TypeError) as error:
            raise LVLMProtocolError(
                f"{self._base_url} answers, but not as an OpenAI-compatible server does; its answer starts {raw[:120]!r}: check [critic] base_url"
            ) from error
        if message.get("refusal"):
            return Answer("", problem=f"refused: {message['refusal']}")
        text = message.get("content")
        if not isinstance(text, str) or not text.strip():
            return Answer("", problem=f"empty answer (finish reason {choice.get('finish_reason')!r})")
        return Answer(text)

    def close(self) -> None:
        """Ends the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _connect(self, timeout: float) -> openai.OpenAI:
        import openai

        # A redirect, or a proxy from the environment, would carry pictures to a host that nobody allowed.
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=self._remote)
        key = read_key(KEYS["openai"]) or "none"
        return openai.OpenAI(api_key=key, base_url=self._base_url, max_retries=0, timeout=timeout, http_client=http)

    def _explain(self, error: openai.APIStatusError) -> str:
        hint = {401: "set OPENAI_API_KEY", 403: "this key may not use this model", 404: f"is {self._model!r} the name of a model there?"}
        said = redact(str(error.message))[:300]
        return f"{self._base_url} answers {error.status_code}: {said} ({hint.get(error.status_code, 'the run can be resumed')})"


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        seconds = float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return min(60.0, max(0.0, seconds)) if not math.isnan(seconds) else None
