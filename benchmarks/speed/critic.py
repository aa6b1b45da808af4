"""Drawing the critic's pictures, and building what is sent: 500 images of 28 pixels and 60 of 224, five segments each.

The rival draws the same three pictures as its documentation has it: enlarged by Pillow, outlined by scikit-image's ``mark_boundaries``, coloured by
``label2rgb``, saved by Pillow; it writes no labels, which is less work. The floor is the saving of three such pictures by Pillow alone.
Seconds are of processor time, on one thread. ``ratio`` is our time over the rival's, ``floor_ratio`` over the floor's. ``agrees``: the clean pictures
are equal in every pixel, and nine tenths of the rival's outlines lie on ours, which do not turn around corners. A request is the body of a call
with three pictures, whose floor is their base64 text; nothing else builds it.

    pip install scikit-image
    python benchmarks/speed/critic.py [--images 500] [--rounds 3] --json
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.helpers import make_case
from tests.support.soak import DESCRIPTIONS, resident_mib

from rightreasons.common.peak import measure_peak
from rightreasons.critic.fused import fused_request
from rightreasons.critic.pictures import COLOURS, MARGIN, fit_size, render_pictures
from rightreasons.lvlm import open_lvlm
from rightreasons.records import Pictures, Subject

CASES = ((28, 1, 1.0), (224, 3, 0.125))


def draw_case(side: int, channels: int, count: int) -> tuple[Tensor, Tensor]:
    """Smooth images with grain, and for each five segments around as many points, with some pixels of none."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 7, 7, generator=random)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 0.9
    images += 0.1 * torch.rand(count, channels, side, side, generator=random)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2) / side
    away, segments = torch.cdist(places.expand(count, -1, -1), torch.rand(count, 5, 2, generator=random)).min(2)
    return images, torch.where(away < 0.3, segments, -1).view(count, side, side)


def ours(images: Tensor, segments: Tensor) -> list[Pictures]:
    return [render_pictures(image, numbers) for image, numbers in zip(images, segments, strict=True)]


def scikit_image(images: Tensor, segments: Tensor) -> list[tuple[bytes, bytes, bytes]]:
    from skimage.color import label2rgb
    from skimage.segmentation import mark_boundaries

    (height, width), drawn = fit_size(*images.shape[2:]), []
    for image, numbers in zip(images, segments, strict=True):
        pixels = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().numpy()
        clean = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
        labels = np.asarray(Image.fromarray(numbers.numpy().astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)) + 1
        outlined = np.round(np.asarray(mark_boundaries(clean, labels, color=(1, 0.6, 0), outline_color=(1, 1, 1), mode="thick")) * 255).astype(
            np.uint8
        )
        flat = (label2rgb(labels, colors=np.array(COLOURS) / 255, bg_label=0) * 255).round().astype(np.uint8)
        drawn.append((save(clean), save(outlined), save(flat)))
    return drawn


def save(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def agree(drawn: Pictures, rival: tuple[bytes, bytes, bytes]) -> bool:
    """Equal clean pictures, and the rival's outlines within ours."""
    clean, theirs, outlined = read(drawn.clean), read(rival[1]), read(drawn.contours)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    touched = (theirs != clean).any(2)
    return bool((clean == read(rival[0])).all() and (outlined != clean).any(2)[touched].mean() > 0.9)


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def growth(work: Callable[[], object]) -> float | None:
    """MiB by which the process's memory grows at most."""
    before = resident_mib()
    with measure_peak() as peak:
        work()
    return None if peak.resident is None else max(0.0, peak.resident / 2**20 - before)


def measure_pictures(side: int, channels: int, count: int, rounds: int) -> Iterator[dict[str, object]]:
    """Ours, the rival and the floor in turns; medians over the rounds, of all images."""
    images, segments = draw_case(side, channels, count)
    has_rival = importlib.util.find_spec("skimage") is not None
    drawn = ours(images, segments)
    agrees = not has_rival or all(map(agree, drawn[:5], scikit_image(images[:5], segments[:5])))
    pixels = [[read(png) for png in (one.clean, one.contours, one.map)] for one in drawn]
    times: dict[str, list[float]] = {"ours": [], "rival": [], "floor": []}
    for _ in range(rounds):
        times["ours"].append(timed(lambda: ours(images, segments)))
        times["floor"].append(timed(lambda: [save(picture) for three in pixels for picture in three]))
        if has_rival:
            times["rival"].append(timed(lambda: scikit_image(images, segments)))
    mib = growth(lambda: ours(images[:1], segments[:1])), growth(lambda: scikit_image(images[:1], segments[:1])) if has_rival else None
    case = f"{count} images of {side} px, three pictures each"
    yield line("render", case, times, "scikit-image mark_boundaries, label2rgb and Pillow", mib, agrees=agrees)

    lvlm = open_lvlm("openai:stub", base_url="http://localhost:1")
    cases = []
    for row, (numbers, one) in enumerate(zip(segments, drawn, strict=True)):
        subject = Subject(row, numbers, (numbers >= 0).float())
        cases.append(make_case(one, subject, label=0, descriptions=DESCRIPTIONS, shares=[0.3, 0.25, 0.2, 0.15, 0.1]))
    build = lambda: [lvlm.body(fused_request(one)) for one in cases]  # noqa: E731
    encode = lambda: [base64.b64encode(png) for one in drawn for png in (one.clean, one.contours, one.map)]  # noqa: E731
    times = {"ours": [], "rival": [], "floor": []}
    for _ in range(rounds):
        times["ours"].append(timed(build))
        times["floor"].append(timed(encode))
    sent = json.dumps(build()[0])
    agrees = all(base64.b64encode(png).decode() in sent for png in (drawn[0].clean, drawn[0].contours, drawn[0].map))
    yield line("judge", f"bodies of {count} requests of {side} px, fused", times, "none", (growth(build), None), agrees=agrees)


def line(
    stage: str, case: str, times: dict[str, list[float]], rival: str, mib: tuple[float | None, float | None], *, agrees: bool
) -> dict[str, object]:
    ours_s, floor_s = statistics.median(times["ours"]), statistics.median(times["floor"])
    rival_s = statistics.median(times["rival"]) if times["rival"] else None
    return {
        "stage": stage, "case": case, "ours_s": ours_s, "rival_s": rival_s, "rival": rival, "ratio": rival_s and ours_s / rival_s,
        "floor_s": floor_s, "floor_ratio": ours_s / floor_s, "ours_mib": mib[0], "rival_mib": mib[1], "agrees": agrees,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=500, help="of 28 pixels; an eighth as many of 224")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for side, channels, share in CASES:
        for result in measure_pictures(side, channels, max(5, round(share * options.images)), options.rounds):
            print(json.dumps(result) if options.json else "\n".join(f"{key:12} {value}" for key, value in result.items()) + "\n", flush=True)


if __name__ == "__main__":
    main()
