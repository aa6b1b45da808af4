"""The key that identifies a request in a ledger, a batch file and a person's queue."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rightreasons.lvlm.pictures import hash_pictures
from rightreasons.lvlm.protocol import LVLM, Request

ADAPTER_VERSION = 2


def canonical(value: object) -> str:
    """JSON in a canonical form: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def describe_request(lvlm: LVLM, request: Request, body: dict[str, Any]) -> str:
    """The request, model and server as text, pictures as hashes. API key, timeout and concurrency are not in it, since they change no answer."""
    server = None if lvlm.address is None else str(lvlm.address.get("base_url")).rstrip("/")
    asked = {"body": hash_pictures(body), "prompt": request.prompt, "vote": request.vote, "permutation": request.permutation}
    return canonical({"adapter": ADAPTER_VERSION, "backend": lvlm.name, "server": server, **asked})


def hash_description(described: str) -> str:
    """The key of a request, from its description."""
    return hashlib.sha256(described.encode()).hexdigest()


def request_key(lvlm: LVLM, request: Request) -> str:
    """The SHA-256 of a request's body, its pictures' bytes, the model and the server."""
    return hash_description(describe_request(lvlm, request, lvlm.body(request)))
