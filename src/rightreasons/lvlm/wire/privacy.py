"""Permission to send to a host, and the API keys. Free of torch, so that a courier starts small and quickly."""

from __future__ import annotations

import importlib.util
import ipaddress
import os

from rightreasons.errors import LVLMUnavailable

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
# The service name of the keys in a keyring: `keyring set rightreasons OPENAI_API_KEY`.
SERVICE = "rightreasons"
# Every key that this process has read, so that ``redact`` can hide it.
_read: set[str] = set()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, judged by its name alone: nothing is looked up, so a resolver cannot make another host pass."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_in_house(host: str) -> bool:
    """Whether a host is in this machine's private network, judged by its name alone: a private address, or a name without a dot."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def check_permission(host: str, allow_remote: tuple[str, ...], *, encrypted: bool = True) -> None:
    """Raises LVLMUnavailable, which says what would be sent, if ``host`` is another machine and was not allowed.

    Unencrypted requests out of the private network need a permission of their own, ``http://HOST``: anyone on the route can read the pictures and
    the key.
    """
    if is_loopback(host) or f"http://{host}" in allow_remote:
        return
    if host in allow_remote and not encrypted and not is_in_house(host):
        raise LVLMUnavailable(
            f"http:// to {host} is not encrypted: anyone on the route could read the images and the key. Use https:// in [critic] base_url, or, "
            f"if you trust the whole route, --allow-remote http://{host}"
        )
    if host not in allow_remote:
        raise LVLMUnavailable(
            f"{host} is not this machine. For each inspected image, its pixels (three pictures, and two more of each unsure segment with close_up), "
            f"its true label, and the places and shares of its segments would be sent there, with the class descriptions; no file name, no metadata, "
            f"no other image. Allow it with --allow-remote {host}, look at one request first with --dry-run, or use a server on 127.0.0.1"
        )


def read_key(variable: str) -> str | None:
    """The key from the environment, or else from the keyring (if the extra ``keyring`` is installed); None if neither has one.

    Raises LVLMUnavailable for a keyring that stays locked, and for a text that cannot be a key.
    """
    key = (os.environ.get(variable) or _from_keyring(variable) or "").strip()  # a file of variables can have Windows line ends
    if not key:
        return None
    _read.add(key)
    if not (key.isascii() and key.isprintable()):  # an HTTP client would refuse such a key, and show it in the error
        raise LVLMUnavailable(f"the key in {variable} has characters that no header can carry, such as a line break or an accent: set it again")
    return key


def redact(text: str) -> str:
    """The text without any key that this process has read or could read, since a server's message can repeat one."""
    for key in {*_read, *filter(None, (os.environ.get(variable, "").strip() for variable in KEYS.values()))}:
        text = text.replace(key, "***")
    return text


def _from_keyring(variable: str) -> str | None:
    if importlib.util.find_spec("keyring") is None:
        return None
    import keyring
    from keyring.errors import KeyringError, NoKeyringError

    try:
        return keyring.get_password(SERVICE, variable)
    except NoKeyringError:
        return None
    except KeyringError as error:
        raise LVLMUnavailable(f"the keyring cannot be read for {variable} ({error}): unlock it, or set {variable} in the environment") from error
