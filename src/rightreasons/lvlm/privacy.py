"""What leaves this machine: where to, with whose leave and under which key. Free of torch, so that a courier starts small and quickly."""

from __future__ import annotations

import importlib.util
import ipaddress
import os

from rightreasons.errors import LVLMUnavailable

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
# The name under which a keyring keeps the keys: `keyring set rightreasons OPENAI_API_KEY`.
SERVICE = "rightreasons"
# Every key that was read, so that none is ever shown.
_read: set[str] = set()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: nothing is looked up, so that no resolver can say otherwise."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_leave(host: str, allow_remote: tuple[str, ...]) -> None:
    """Raises LVLMUnavailable, and says what would be sent, where ``host`` is another machine and was not allowed."""
    if not is_loopback(host) and host not in allow_remote:
        raise LVLMUnavailable(
            f"{host} is not this machine. Of each inspected image, its pixels (three pictures), its true label and where its segments lie would be "
            f"sent there, with the class descriptions; no file name, no metadata, no other image. Allow it with --allow-remote {host}, look at one "
            f"request first with --dry-run, or use a server on 127.0.0.1"
        )


def read_key(variable: str) -> str | None:
    """The key that the environment has under this name, or else the keyring (where the extra ``keyring`` is installed); None where neither does.

    Raises LVLMUnavailable for a keyring that is there and stays locked.
    """
    key = os.environ.get(variable) or _from_keyring(variable)
    if key:
        _read.add(key)
    return key or None


def redact(text: str) -> str:
    """The text without any key that this process has read or could read: a server can repeat one in what it says."""
    for key in {*_read, *filter(None, map(os.environ.get, KEYS.values()))}:
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
