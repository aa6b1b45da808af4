"""A small server on loopback that speaks the OpenAI chat protocol, reads the pictures it gets, and counts what it is asked.

Its critic really looks: a segment is a label plate when the outlined region in the clean picture is mostly bright yellow.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

PLATE = (255, 230, 40)


class OpenAIStub:
    """``misbehave(number, body)`` may return (status, headers, bytes) in place of the proper answer to the number-th request, or None."""

    def __init__(self, *, delay: float = 0.0, misbehave=None):
        self.delay, self.misbehave = delay, misbehave
        self.bodies = Counter()
        self.pictures = []
        self.headers = []
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self._reply(200, {"object": "list", "data": []})

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["content-length"]))
                with stub._lock:
                    stub.bodies[hashlib.sha256(raw).hexdigest()] += 1
                    stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                    number = sum(stub.bodies.values())
                body = json.loads(raw)
                time.sleep(stub.delay)
                wrong = stub.misbehave(number, body) if stub.misbehave else None
                if wrong is not None:
                    status, headers, content = wrong
                    self._send(status, headers, content)
                    return
                self._reply(200, completion(stub.answer(body)))

            def _reply(self, status, value):
                self._send(status, {"content-type": "application/json"}, json.dumps(value).encode())

            def _send(self, status, headers, content):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def requests(self) -> int:
        return sum(self.bodies.values())

    def answer(self, body) -> str:
        parts = body["messages"][0]["content"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        pictures = [decode(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        if not pictures:
            critique = text.rsplit("<critique>", 1)[1]
            said = re.findall(r"^(S\d+): (.*)$", critique, re.MULTILINE)
            return json.dumps({name: "spurious" if "plate" in words else "relevant" for name, words in said})
        with self._lock:
            self.pictures.append(pictures)
        clean, _, flat = pictures
        names = re.findall(r"^(S\d+): .*, \d+%$", text, re.MULTILINE)
        return "1. A part.\n" + "\n".join(f"{name}: It covers {describe(clean, flat, number)}." for number, name in enumerate(names))


def describe(clean: Image.Image, flat: Image.Image, segment: int) -> str:
    from rightreasons.render import COLOURS, MARGIN

    inner = np.asarray(flat.crop((MARGIN, MARGIN, flat.width - MARGIN, flat.height - MARGIN)))
    region = (inner == np.array(COLOURS[segment % len(COLOURS)])).all(-1)
    pixels = np.asarray(clean)[region].astype(int)
    yellow = (pixels[:, 0] - pixels[:, 2] > 80).mean() if len(pixels) else 0
    return "the label plate" if yellow > 0.3 else "metal"


def decode(url: str) -> Image.Image:
    assert url.startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    picture.load()
    return picture


def completion(text, **message) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
