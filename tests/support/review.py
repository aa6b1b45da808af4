"""A run to review, and a browser without a screen that was given the token."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from starlette.testclient import TestClient

from rightreasons.review.security import Doorkeeper
from rightreasons.review.server import create_app, open_site
from rightreasons.review.state import ReviewState
from rightreasons.review.study import server as study
from rightreasons.review.study.sample import open_sample
from rightreasons.review.study.server import open_study_site
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import edit, invoke, write_scripted

PORT = 8765
HOME = f"http://127.0.0.1:{PORT}"
# What an LVLM, a file, a class and a person may be called who mean harm.
EVIL = "<script>alert(1)</script>"


def make_run(root: Path, *, words: str = "A tag in the corner.", size: int = 6) -> Path:
    """A folder with a project and its run, whose judge is unsure of every third segment."""
    config = write_scripted(root, changes={"size = 12": f"size = {size}"})
    said = "S1: A tag.\nConclusion: it does not matter.\nS2: The bar.\nConclusion: it matters.\nS3: " + words
    script = {"critic": [said], "judge": [json.dumps({"S1": "spurious", "S2": "relevant", "S3": "unsure"})]}
    (root / "script.json").write_text(json.dumps(script))
    result = invoke("find", config, "--out", root / "run")
    assert result.exit_code == 0, result.stderr
    return root / "run"


def copy_run(finished: Path, place: Path) -> Path:
    """A copy of the project and its run, as if it had been made there; the path of the run."""
    shutil.copytree(finished, place)
    edit(place / "run" / "environment.json", str(finished), str(place))
    return place / "run"


class Browser:
    """Asks the application as a browser does that was let in; forms come from the page itself."""

    def __init__(self, run: Path, name: str = "Dr Ann") -> None:
        self.run = run
        self.site = open_site(RunFolder(run))
        self.open(create_app, name)

    def open(self, create, name: str, command: str = "review") -> None:
        """Lets the reviewer in to the application that ``create`` makes of the site and a doorkeeper."""
        self.doorkeeper = Doorkeeper(PORT, command=command)
        self.app = create(self.site, self.doorkeeper)
        self.client = self.enter(name)

    def enter(self, name: str) -> TestClient:
        """Another browser, with a reviewer of its own."""
        client = TestClient(self.app, base_url=HOME, follow_redirects=True)
        assert client.get(f"/start?token={self.doorkeeper.token}").status_code == 200
        if name:
            assert self.post("/name", {"name": name}, client=client).status_code == 200
        return client

    def get(self, address: str) -> str:
        answer = self.client.get(address)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, address: str, fields: dict, *, client: TestClient | None = None, origin: str | None = HOME):
        headers = {} if origin is None else {"origin": origin}
        return (client or self.client).post(address, data=fields, headers=headers)

    def decide(self, index: int, segment: int, value: str, by: str = "Dr Ann", **more: str):
        return self.post(f"/image/{index}/verdict", {"segment": segment, "value": value, "by": by, **more})

    @property
    def images(self) -> list[int]:
        return list(self.site.state.row_of)


class Participant(Browser):
    """Asks the pages of a blind study in the same way."""

    def __init__(self, run: Path, name: str = "Ann", size: int | None = None) -> None:
        self.run = run
        state = ReviewState(RunFolder(run))
        self.sample = open_sample(state, size=size)
        self.site = open_study_site(state)
        self.open(lambda site, doorkeeper: study.create_app(site, doorkeeper, self.sample), name, "study")

    def asked(self, client: TestClient | None = None) -> tuple[int, int]:
        """The image and segment that the page asks about."""
        page = (client or self.client).get("/").text
        index, segment = (re.search(rf'name="{key}" value="(\d+)"', page) for key in ("index", "segment"))
        assert index is not None and segment is not None, page
        return int(index.group(1)), int(segment.group(1))

    def say(self, place: tuple[int, int], by: str = "Ann", client: TestClient | None = None, **said: str):
        """A verdict (value=...) or what is thought of the argument (opinion=...)."""
        fields = {"index": place[0], "segment": place[1], "by": by, **said}
        return self.post("/verdict" if "value" in said else "/argument", fields, client=client)


def said(page: str) -> str:
    """What a page says first."""
    found = re.search(r'<p id="said"[^>]*>(.*?)</p>', page, re.DOTALL)
    assert found is not None
    return found.group(1)
