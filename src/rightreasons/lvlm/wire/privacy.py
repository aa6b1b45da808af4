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


def is_in_house(host: str) -> bool:
    """Whether a host is in the network of its own that this machine is in, again by its very name: a private address, or a name without a dot."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def check_leave(host: str, allow_remote: tuple[str, ...], *, encrypted: bool = True) -> None:
    """Raises LVLMUnavailable, and says what would be sent, where ``host`` is another machine and was not allowed.

    Out of the house and without encryption the leave is another one, ``http://HOST``: whoever is on the way reads the pictures and the key.
    """
    if is_loopback(host) or f"http://{host}" in allow_remote:
        return
    if host in allow_remote and not encrypted and not is_in_house(host):
        raise LVLMUnavailable(
            f"http:// to {host} is not encrypted: everybody on the way could read the images, and the key. Use https:// in [critic] base_url, or, "
            f"where you trust the whole way, --allow-remote http://{host}"
        )
    if host not in allow_remote:
        raise LVLMUnavailable(
            f"{host} is not this machine. Of each inspected image, its pixels (three pictures), its true label and where its segments lie would be "
            f"sent there, with the class descriptions; no file name, no metadata, no other image. Allow it with --allow-remote {host}, look at one "
            f"request first with --dry-run, or use a server on 127.0.0.1"
        )


def read_key(variable: str) -> str | None:
    """The key that the environment has under this name, or else the keyring (where the extra ``keyring`` is installed); None where neither does.

    Raises LVLMUnavailable for a keyring that is there and stays locked, and for what can be no key.
    """
    key = (os.environ.get(variable) or _from_keyring(variable) or "").strip()  # a file of variables can end its lines as Windows does
    if not key:
        return None
    _read.add(key)
    if not (key.isascii() and key.isprintable()):  # an HTTP client would refuse it, and show it
        raise LVLMUnavailable(f"the key in {variable} has characters that no header can carry, such as a line break or an accent: set it again")
    return key


def redact(text: str) -> str:
    """The text without any key that this process has read or could read: a server can repeat one in what it says."""
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
