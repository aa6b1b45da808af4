"""Permission to send, one deadline per request, no redirects, proxies only for allowed hosts; SDK errors become errors of this package."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from rightreasons.errors import ConfigError, LVLMBusy, LVLMProtocolError, LVLMTimeout, LVLMUnavailable
from rightreasons.lvlm.wire.privacy import check_permission, is_loopback, read_key

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Client = TypeVar("Client")
CONNECT_SECONDS = 10.0
# Names of connection errors before which nothing was sent.
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")


def read_host(base_url: str) -> str:
    """The host in an address. Raises ConfigError for a text that is not the address of a server."""
    address = urlsplit("")
    try:
        address = urlsplit(base_url)
        host = address.hostname if address.scheme in ("http", "https") and (address.port is None or address.port) else None
    except ValueError:
        host = None
    if host is None:
        raise ConfigError(f"[critic] base_url = {base_url!r} is not an address such as http://127.0.0.1:8000/v1")
    if address.username is not None or address.password is not None or address.query:
        raise ConfigError(f"[critic] base_url names {host} with a user, a password or a query: keys come from the environment or the keyring alone")
    return host


class Server:
    """A server that requests may be sent to; ``remote`` if it is another machine. Raises LVLMUnavailable for a host that was not allowed."""

    def __init__(self, base_url: str, *, allow_remote: tuple[str, ...], keys: tuple[str, ...]) -> None:
        host = read_host(base_url)
        check_permission(host, allow_remote, encrypted=urlsplit(base_url).scheme == "https")
        self.base_url, self._keys, self.remote = base_url, keys, not is_loopback(host)

    def key(self) -> str:
        """The API key, from the first variable or keyring entry that has one. A server on this machine needs none."""
        key = next(filter(None, map(read_key, self._keys)), None)
        if key is None and self.remote:
            raise LVLMUnavailable(f"{self.base_url} needs a key: set {' or '.join(self._keys)} in the environment, or put it into the keyring")
        return key or "none"

    def open_http(self, timeout: float) -> httpx2.AsyncClient:
        """An HTTP client that follows no redirect, and uses a proxy from the environment only for an allowed remote host.

        The SDK's own client is not used, because it mounts the environment's proxies whatever ``trust_env`` says.
        """
        import httpx2

        limits = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        return httpx2.AsyncClient(follow_redirects=False, trust_env=self.remote, timeout=limits)

    def lost(self, error: Exception, timeout: float) -> LVLMBusy:
        """The error to raise if no complete answer came."""
        cause = error.__cause__ or error
        if type(cause).__name__ in NOT_SENT:
            return LVLMBusy(f"no connection to {self.base_url}: {cause}")
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return LVLMTimeout(f"{self.base_url} gave no complete answer within {timeout:g} seconds")
        return LVLMTimeout(f"{self.base_url} dropped the connection before the answer was complete: {cause}")

    def read_object(self, raw: str, *, like: str) -> dict[str, Any]:
        """The JSON object of an answer. Raises LVLMTimeout if it breaks off, LVLMProtocolError if it is anything else.

        OpenRouter and DeepSeek send blank lines while a request waits, so an answer that breaks off can be nothing else.
        """
        try:
            whole = json.loads(raw)
        except (ValueError, RecursionError) as error:
            if not raw.strip():
                raise LVLMTimeout(f"{self.base_url} sent an answer without a word") from error
            if raw.lstrip().startswith("{"):
                raise LVLMTimeout(f"{self.base_url} sent half an answer, which ends {raw[-40:]!r}") from error
            raise self.alien(raw, like=like) from error
        if not isinstance(whole, dict):
            raise self.alien(raw, like=like)
        return whole

    def alien(self, raw: str, *, like: str) -> LVLMProtocolError:
        """The error to raise for an answer in another protocol."""
        return LVLMProtocolError(f"{self.base_url} answers, but not as {like} does; its answer starts {raw[:120]!r}: check [critic] base_url")


class Loop:
    """An event loop in a thread of its own, to which other threads hand requests: asyncio can bound a whole request by one deadline."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T], timeout: float) -> T:
        """The result of ``work``. Raises TimeoutError after ``timeout`` seconds, even if bytes still arrive."""

        async def within() -> T:
            async with asyncio.timeout(timeout):
                return await work

        return asyncio.run_coroutine_threadsafe(within(), self._loop).result()

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Connection(Generic[Client]):
    """An SDK's asynchronous client and the loop that it runs in, which threads share: opened when first used, and again if used after ``close``."""

    def __init__(self, start: Callable[[], Client], end: Callable[[Client], Awaitable[object]]) -> None:
        self._start, self._end = start, end
        self._lock = threading.Lock()
        self._open: tuple[Loop, Client] | None = None

    def get(self) -> tuple[Loop, Client]:
        """The loop and the client."""
        with self._lock:
            if self._open is None:
                self._open = Loop(), self._start()
            return self._open

    def close(self) -> None:
        """Ends both."""
        with self._lock:
            if self._open is not None:
                loop, client = self._open
                loop.run(self._end(client), CONNECT_SECONDS)
                loop.close()
                self._open = None
