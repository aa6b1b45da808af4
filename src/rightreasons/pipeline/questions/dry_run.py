"""One request exactly as it would be sent, its pictures as files, and the server it would go to. Nothing is sent, and no API key is read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from rightreasons.common.files import write_bytes, write_text
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.prices import worst_case_tokens
from rightreasons.lvlm.pictures import picture_size, replace_pictures
from rightreasons.pipeline.questions.estimate import answer_unsure
from rightreasons.pipeline.questions.open_questions import Desk, Plan, Question

STRIPPED = (
    "file names and folders; EXIF, DICOM and text fields of the image files (the pictures are drawn anew from pixels); groups and masks; "
    "the classifier and its weights; every other image"
)


def show_request(plan: Plan, ledger: Ledger, to: Path) -> dict[str, Any] | None:
    """Writes the first open request to ``to``/request.json with its pictures beside it, and describes it; None if no request is open.

    Where close-ups may be asked for, one of them stands beside it. In request.json each picture's base64 text is replaced by the name of the file
    that holds its very bytes.
    """
    question = next(plan.open_questions(ledger), None)
    if question is None:
        return None
    shown = _write_request(question, to, "")
    address = question.lvlm.address
    close_up = _find_close_up(plan) if question.request.role != "close-up" else None
    return {
        "model": question.lvlm.name,
        "role": question.request.role,
        "goes_to": None if address is None else address["base_url"],
        "custom_id": ledger.key(question.lvlm, question.request),
        **shown,
        "stripped": STRIPPED,
        "close_up": None if close_up is None else _write_request(close_up, to, "close-up-") | {"segments": _count_segments(plan)},
    }


def _write_request(question: Question, to: Path, prefix: str) -> dict[str, Any]:
    """Writes one request and its pictures under names that start with ``prefix``; the request, the files, and its tokens at most."""
    body = question.lvlm.body(question.request)
    # A backend that adapts requests to its server (``fit``) shows the adapted one.
    body = getattr(question.lvlm, "fit", lambda whole: whole)(body)
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    pictures: list[dict[str, Any]] = []

    def write_picture(encoded: str) -> str:
        path = to / f"{prefix}picture-{len(pictures) + 1}.png"
        content = base64.b64decode(encoded)
        write_bytes(path, content)
        pictures.append({"file": str(path), "size": list(picture_size(encoded)), "bytes": len(content)})
        return f"<{path.name}>"

    shown = replace_pictures(body, write_picture)
    file = to / f"{prefix}request.json"
    write_text(file, json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    worst = worst_case_tokens(body, question.request.max_tokens)
    return {
        "request": shown,
        "file": str(file),
        "pictures": pictures,
        "input_tokens_at_most": worst.input_tokens,
        "output_tokens_at_most": worst.output_tokens,
    }


def _find_close_up(plan: Plan) -> Question | None:
    """The close-up of the first segment that might be asked about, if the first answer should be unsure; None where no close-ups are asked for."""
    if not plan.panel.close_up or not plan.cases.rows:
        return None
    desk = Desk(None, stand_in=answer_unsure)
    plan.consult(plan.cases[plan.cases.rows[0]], desk)
    return next(question for question in desk.open if question.request.role == "close-up")


def _count_segments(plan: Plan) -> int:
    return sum(plan.cases.evidence.segmentation.count(row) for row in plan.cases.rows)
