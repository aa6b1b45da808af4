"""500 images, one request each with three pictures, against a server that answers after 2 seconds, with at most 32 under way.

The floor is what 32 at a time from the first moment on would take. The rival is the SDK alone in 32 threads: no ledger, no courier, no ramp.

    python benchmarks/speed/throughput.py [--images 500] [--delay 2] [--rival] --json
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.fault_server import INPUT_USD, OUTPUT_USD, FaultServer
from tests.support.soak import resident_mib

from rightreasons.common.parallel import map_in_order
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.prices import Price
from rightreasons.lvlm.ledger.throttle import count_workers
from rightreasons.lvlm.protocol import Request


def picture(row: int) -> bytes:
    """A PNG of 512 x 512 that does not compress to nothing."""
    noise = np.random.default_rng(row).integers(0, 256, (128, 128, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def ours(stub: FaultServer, requests: list[Request]) -> tuple[float, list[str]]:
    lvlm = open_lvlm("openai:stub", base_url=stub.base_url)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ledger = Ledger(Path(folder) / "lvlm.sqlite", price=Price(INPUT_USD, OUTPUT_USD), max_usd=1000.0)
        try:
            ask = lambda row: ledger.ask(lvlm, requests[row]).text  # noqa: E731
            answers = map_in_order(ask, range(len(requests)), workers=count_workers(lvlm), advance=lambda done, total: None, stop=ledger.stop)
        finally:
            ledger.close()
        return time.perf_counter() - started, answers


def sdk_alone(stub: FaultServer, requests: list[Request]) -> tuple[float, list[str]]:
    import openai

    lvlm = open_lvlm("openai:stub", base_url=stub.base_url)
    with openai.OpenAI(api_key="none", base_url=stub.base_url) as client, ThreadPoolExecutor(32) as pool:
        started = time.perf_counter()
        complete = lambda request: client.chat.completions.create(**lvlm.body(request)).choices[0].message.content or ""  # noqa: E731
        answers = list(pool.map(complete, requests))
        return time.perf_counter() - started, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--rival", action="store_true", help="run the SDK alone too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shared = picture(10**6)
    requests = [Request("fused", (f"Image {row}.", shared, shared, picture(row))) for row in range(options.images)]
    say = lambda seen: seen.text.split("\n")[0]  # noqa: E731
    with FaultServer(answer=say, delay=options.delay, remember=False) as stub:
        seconds, answers = ours(stub, requests)
        most = stub.most_under_way
        mib = resident_mib()
        rival, theirs = sdk_alone(stub, requests) if options.rival else (None, answers)
    floor = math.ceil(options.images / 32) * options.delay
    result = {
        "stage": "judge",
        "case": f"{options.images} images, {options.delay:g} s an answer, {most} under way at most",
        "ours_s": seconds,
        "rival_s": rival,
        "rival": "openai SDK in 32 threads",
        "ratio": None if rival is None else seconds / rival,
        "floor_s": floor,
        "floor_ratio": seconds / floor,
        "ours_mib": mib,
        "rival_mib": None,
        "agrees": answers == theirs == [f"Image {row}." for row in range(options.images)],
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key:12} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
