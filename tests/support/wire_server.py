"""A real HTTP server on 127.0.0.1 for the native SDKs: it keeps what it is sent, and answers as ``reply`` says."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict
    body: dict | None


class WireServer:
    """``reply(seen)`` gives (status, headers, value or bytes), "drop" for a closed connection, or "half" for half of an answer."""

    def __init__(self, reply):
        self.reply, self.seen = reply, []
        self._release = threading.Event()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self._answer()

            def do_POST(self):
                self._answer()

            def _answer(self):
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                seen = Seen(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}, json.loads(raw) if raw else None)
                wire.seen.append(seen)
                said = wire.reply(seen)
                if said == "hang":
                    wire._release.wait(20)
                if said in ("drop", "half", "hang"):
                    if said == "half":
                        self.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"type": "mess')
                    self.close_connection = True
                    return
                status, headers, value = said
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, text)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._release.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
