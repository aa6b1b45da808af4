"""The review app on a queue of 10,000 segments: server time of each page and of a verdict, and the memory of a browser that shows them.

python benchmarks/review.py [--segments 10000] [--repeats 20] [--browser] --json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

from rightreasons.config import parse_config
from rightreasons.critic.pictures import render_pictures
from rightreasons.records import Attribution, Critique, Segmentation, Selection, Verdict
from rightreasons.review.security import Doorkeeper
from rightreasons.review.server import create_app, open_site
from rightreasons.runs.folder import RunFolder

PER_IMAGE, SIDE, PORT = 5, 112, 8765
HOME = f"http://127.0.0.1:{PORT}"


def write_run(place: Path, segments: int) -> RunFolder:
    """A run folder with that many segments, a fifth of which wait, on images of random values."""
    images, generator = segments // PER_IMAGE, torch.Generator().manual_seed(0)
    words = {"description": "The bar.", "irrelevant": "Tags."}
    tables = {"data": {"path": "images"}, "model": {"source": "python:a:b"}, "classes": {"bolt": words, "nut": words}, "critic": {"lvlm": "openai:m"}}
    folder = RunFolder(place)
    folder.start(parse_config(tables, source="benchmark"), manifest="none", root=place, splits={})
    labels = torch.arange(images) % 2
    folder.save_selection(Selection("random", torch.arange(images), labels, torch.zeros(images)))
    heatmaps = torch.randn(images, SIDE, SIDE, generator=generator)
    folder.save_attribution(Attribution(heatmaps, labels, torch.zeros(images)))
    stripes = (torch.arange(SIDE) * PER_IMAGE // SIDE).to(torch.int8)[:, None].expand(SIDE, SIDE)
    shares = torch.rand(images, PER_IMAGE, generator=generator)
    folder.save_segmentation(
        Segmentation(stripes.repeat(images, 1, 1), heatmaps > 0.5, shares / shares.sum(1, keepdim=True), ("segmented",) * images)
    )
    folder.save_critiques(
        [Critique(index, "\n".join(f"S{part}: A part. It matters." for part in range(1, PER_IMAGE + 1))) for index in range(images)]
    )
    folder.save_verdicts([_verdict(index, part) for index in range(images) for part in range(PER_IMAGE)])
    folder.save_metrics({"classifier": {"train": {"classes": {"bolt": {}, "nut": {}}}}})
    drawn = render_pictures(torch.rand(3, SIDE, SIDE, generator=generator), stripes)
    folder.pictures.mkdir(mode=0o700)
    for index in range(images):
        (folder.pictures / f"{index:06d}-clean.png").write_bytes(drawn.clean)
    return folder


def _verdict(index: int, part: int) -> Verdict:
    waits = part == index % PER_IMAGE
    value = "unsure" if waits else ("spurious", "relevant")[part % 2]
    return Verdict(index, part, value, "openai:m", p=0.5 if waits else (0.75, 0.25)[part % 2], doubt="unsure" if waits else None)


def measure_pages(folder: RunFolder, repeats: int) -> dict[str, tuple[float, float]]:
    """The server's time for each address in milliseconds, on the clock and on the processor, without a network."""
    doorkeeper = Doorkeeper(PORT, "Dr Ann")
    client = TestClient(create_app(open_site(folder), doorkeeper), base_url=HOME, follow_redirects=False)
    client.get(f"/start?token={doorkeeper.token}")
    addresses = (
        "/",
        "/?waiting=yes&label=nut",
        "/?page=150",
        "/image/7",
        "/people",
        "/words",
        "/compare",
        "/work",
        "/picture/7/heatmap",
        "/picture/7/mask",
    )
    found = {address: _median(lambda address=address: client.get(address), repeats) for address in addresses}
    numbers = iter(range(10, 10 + repeats + 1))

    def decide() -> Any:
        fields = {"segment": "0", "value": "relevant", "by": "Dr Ann"}
        return client.post(f"/image/{next(numbers)}/verdict", data=fields, headers={"origin": HOME})

    found["a verdict, until it is on the disk"] = _median(decide, repeats)

    def look_after_another() -> Any:
        folder.add_verdicts([Verdict(5, 0, "spurious", "human", by="Bob", at="2026-01-01T00:00:00+00:00")])
        return client.get("/image/7")

    found["a page after another process wrote"] = _median(look_after_another, repeats)
    return found


def _median(ask: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The median in milliseconds, after one try that does not count: on the clock, and of this process on the processor."""
    clock, processor = [], []
    for _ in range(repeats + 1):
        start, worked = time.perf_counter(), time.process_time()
        answer = ask()
        clock.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - worked))
        assert answer.status_code in (200, 303), answer.text
    return round(statistics.median(clock[1:]), 1), round(statistics.median(processor[1:]), 1)


def measure_browser(folder: RunFolder) -> dict[str, float]:
    """The memory of the browser's process for the page, in megabytes, after the queue, forty images and twenty verdicts."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "rightreasons", "review", str(folder.path), "--by", "Dr Ann"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as tool:
        assert server.stdout is not None
        address = server.stdout.readline().split()[1]
        browser = tool.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("table.queue")
        home = re.sub(r"/start.*", "", address)
        for number in range(40):
            page.goto(f"{home}/image/{number}")
            if number % 2:
                page.click("button[value=relevant] >> nth=0")
        page.goto(home)
        processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
        found = {"renderer_mb": round(max(_resident(process["id"]) for process in processes if process["type"] == "renderer"), 1)}
        browser.close()
        server.terminate()
    return found


def _resident(process: int) -> float:
    """Memory of a process in megabytes, with its share of what it shares with others."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = write_run(Path(place) / "run", options.segments)
        result = {"segments": options.segments, "milliseconds": measure_pages(folder, options.repeats)}
        if options.browser:
            result |= measure_browser(folder)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
