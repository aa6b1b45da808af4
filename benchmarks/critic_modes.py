"""What the two modes of the critic send and receive, on the images of the demo: python benchmarks/critic_modes.py [--json] [--images 20].

No server is asked. The requests are those that a server would get; tokens are four bytes of text each, and pictures by the rule of gpt-4o. What comes
back is the simulated critic's, which is short: six sentences of reasoning from a real one weigh more, and two-call sends them twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rightreasons.common.progress import Silent
from rightreasons.common.seeds import seeded
from rightreasons.critic.case import Cases
from rightreasons.critic.judge import read_examples
from rightreasons.critic.panel import Panel, consult_case
from rightreasons.explain.evidence import gather_evidence
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.ledger.prices import likely_input_tokens
from rightreasons.lvlm.protocol import Answer, Request, get_reply
from rightreasons.pipeline.find import prepare
from rightreasons.project.project import open_lvlms, open_project
from rightreasons.runs.folder import RunFolder

BYTES_A_TOKEN = 4


def count_mode(cases, project, mode: str, images: int) -> dict:
    """Means per image."""
    lvlm, _ = open_lvlms(project, ())
    server = open_lvlm("openai:gpt-4o")
    totals = defaultdict(int)

    def ask(model: LVLM, request: Request) -> Answer:
        raw = get_reply(model, request)
        totals["requests"] += 1
        totals["pictures"] += sum(isinstance(part, bytes) for part in request.parts)
        totals["text_bytes_sent"] += sum(len(part.encode()) for part in request.parts if isinstance(part, str))
        totals["text_bytes_received"] += len(raw.encode())
        totals["input_tokens"] += likely_input_tokens(server.body(request))
        totals["output_tokens"] += -(-len(raw.encode()) // BYTES_A_TOKEN)
        return model.parse(raw)

    rows = cases.rows[:images]
    panel = Panel(lvlm, lvlm, read_examples(None, seeded(0, "few-shot")), mode)
    verdicts = [verdict.value for row in rows for verdict in consult_case(cases[row], panel, ask)[1]]
    return {"mode": mode, "images": len(rows), "segments": len(verdicts), "verdicts": verdicts} | {key: totals[key] / len(rows) for key in totals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON a mode, and nothing else")
    parser.add_argument("--images", type=int, default=20)
    options = parser.parse_args()
    project = open_project({"data": {"path": "decoy-mnist:packaged"}}, source="demo", root=Path.cwd())
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        model = prepare(project, folder, Silent())
        evidence = gather_evidence(
            project.config, folder, model, project.train, project.validation, project.task.classes, Silent(), root=project.root
        )
        cases = Cases(evidence, project.descriptions, folder)
        modes = [count_mode(cases, project, mode, options.images) for mode in ("two-call", "fused")]
    two, fused = modes
    if two.pop("verdicts") != fused.pop("verdicts"):
        sys.exit("the modes give other verdicts: there is something to mend before anything is counted")
    for counted in modes:
        counted["tokens_of_two_call"] = (counted["input_tokens"] + counted["output_tokens"]) / (two["input_tokens"] + two["output_tokens"])
        text = (counted["text_bytes_sent"] + counted["text_bytes_received"]) / (two["text_bytes_sent"] + two["text_bytes_received"])
        counted["text_of_two_call"] = text
        if options.json:
            print(json.dumps(counted))
        else:
            print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in counted.items()))


if __name__ == "__main__":
    main()
