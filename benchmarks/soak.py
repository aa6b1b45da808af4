"""2,000 images with a fault in 30 % of the requests: every image answered or queued, no paid answer asked for again, memory flat.

python benchmarks/soak.py [--images 2000] [--share 0.3] --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm = soak(Path(folder) / "calm.sqlite", options.images, share=0.0)
        rough = soak(Path(folder) / "rough.sqlite", options.images, share=options.share)
    answered = [row for row, verdicts in enumerate(rough.verdicts) if all(verdict.value != "unsure" for verdict in verdicts)]
    values = [[[verdict.value for verdict in run.verdicts[row]] for row in answered] for run in (calm, rough)]
    result = {
        "images": options.images,
        "fault_share": options.share,
        "answered": len(answered),
        "queued": options.images - len(answered),
        "requests": rough.requests,
        "requests_without_faults": calm.requests,
        "answers_delivered_twice": rough.most_delivered - 1,
        "charged_usd": rough.charged_usd,
        "counted_usd": rough.counted_usd,
        "same_verdicts": values[0] == values[1],
        "mib_after_a_quarter": rough.mib[0],
        "mib_at_the_end": rough.mib[1],
        "seconds": rough.seconds,
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key:24} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
