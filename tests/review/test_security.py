"""Who is let in and who is not, and that words from models, files and people are only ever read."""

import json
import re

import pytest
from starlette.testclient import TestClient

from rightreasons.review.security import Doorkeeper
from rightreasons.runs.folder import RunFolder
from tests.support.helpers import edit
from tests.support.review import EVIL, HOME, PORT, Browser, copy_run

PAGES = ("/", "/name", "/words", "/work", "/compare", "/people")


def test_nothing_is_shown_without_the_token(browser):
    stranger = TestClient(browser.app, base_url=HOME)
    image = browser.images[0]
    for address in (*PAGES, f"/image/{image}", f"/picture/{image}/clean", "/static/app.css", "/work/log?start=0", "/docs", "/openapi.json"):
        answer = stranger.get(address)
        assert answer.status_code == 403 and "open the address" in answer.text, address
    before = (browser.run / "verdicts.jsonl").read_bytes()
    fields = {"segment": "0", "value": "unsure", "by": "Eve"}
    assert browser.post(f"/image/{image}/verdict", fields, client=stranger).status_code == 403
    assert (browser.run / "verdicts.jsonl").read_bytes() == before


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?Token=TOKEN", "?token=TOKENx"])
def test_another_token_lets_nobody_in(browser, query):
    stranger = TestClient(browser.app, base_url=HOME)
    answer = stranger.get("/start" + query.replace("TOKEN", browser.doorkeeper.token))
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_the_cookie_is_for_this_server_alone_and_is_not_the_token(browser):
    answer = TestClient(browser.app, base_url=HOME).get(f"/start?token={browser.doorkeeper.token}")
    cookie = answer.headers["set-cookie"]
    assert (
        "HttpOnly" in cookie and "SameSite=Strict" in cookie and browser.doorkeeper.token not in cookie and cookie.startswith(f"rightreasons_{PORT}=")
    )
    assert Doorkeeper(1).token != Doorkeeper(1).token and len(Doorkeeper(1).token) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", f"127.0.0.1.evil.example:{PORT}", "127.0.0.1:1", f"127.0.0.1:{PORT}.", "[::1]:8765"]
)
def test_another_host_is_refused(browser, host):
    """A name that an attacker's name server points at this machine."""
    for address in ("/", f"/start?token={browser.doorkeeper.token}"):
        answer = browser.client.get(address, headers={"host": host})
        assert answer.status_code == 403 and "its own address" in answer.text


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:1", HOME + ".evil.example", None])
def test_a_form_of_another_page_is_refused(browser, origin):
    image, before = browser.images[0], (browser.run / "verdicts.jsonl").read_bytes()
    fields = {"segment": "0", "value": "unsure", "by": "Eve"}
    for address in (f"/image/{image}/verdict", "/undo", "/words", "/again", "/work/fix", "/work/stop", "/name", f"/image/{image}/draw"):
        assert browser.post(address, fields, origin=origin).status_code == 403, address
    assert (browser.run / "verdicts.jsonl").read_bytes() == before and not browser.site.jobs.running
    if origin is not None:
        assert browser.client.get("/", headers={"origin": origin}).status_code == 403


def test_an_enormous_body_is_refused_unread(browser):
    answer = browser.client.post("/name", content=b"x", headers={"origin": HOME, "content-length": str(10**9)})
    assert answer.status_code == 413
    answer = browser.client.post("/name", content=iter([b"name=a"]), headers={"origin": HOME})
    assert answer.status_code == 413, "a body of unknown length"


@pytest.mark.parametrize(
    "address",
    [
        "/static/../server.py",
        "/static/..%2Fserver.py",
        "/static/%2e%2e/%2e%2e/config.py",
        "/static//etc/passwd",
        "/picture/../config.toml",
        "/picture/0/..%2F..%2Fconfig.toml",
        "/picture/IMAGE/../../config.toml",
        "/picture/IMAGE/clean.png",
        "/picture/..%2F..%2Fetc%2Fpasswd/clean",
        "/picture/-1/clean",
        "/picture/999999/clean",
        "/image/IMAGE/../../../etc/passwd",
        "/image/%00",
    ],
)
def test_no_address_leads_out_of_the_pages(browser, address):
    answer = browser.client.get(address.replace("IMAGE", str(browser.images[0])))
    assert answer.status_code in (400, 404, 422)
    assert not re.search(r"root:|\[data\]|import ", answer.text)


def test_every_answer_forbids_foreign_and_inline_script(browser):
    for address in (*PAGES, f"/image/{browser.images[0]}", "/absent", "/static/review.js"):
        answer = browser.client.get(address)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=\"/static/)|\son\w+=|style=|https?://", answer.text) or address.endswith(".js"), address


def test_pictures_are_kept_by_this_browser_alone(browser):
    answer = browser.client.get(f"/picture/{browser.images[0]}/clean")
    assert answer.headers["content-type"] == "image/png" and answer.headers["cache-control"].startswith("private")


@pytest.fixture
def evil(reviewed, tmp_path):
    """A run whose critic, class and expert's words are script."""
    run = copy_run(reviewed, tmp_path / "evil")
    lines = (run / "critiques.jsonl").read_text().replace("A tag in the corner.", EVIL)
    assert EVIL in lines
    (run / "critiques.jsonl").write_text(lines)
    edit(run / "config.toml", "[classes.bolt]", f"[classes.{json.dumps(EVIL)}]")
    edit(run / "config.toml", "A tag in a corner.", EVIL)
    edit(run / "metrics.json", '"bolt"', json.dumps(EVIL))
    verdicts = (run / "verdicts.jsonl").read_text().splitlines()
    first = json.loads(verdicts[0])
    verdicts.append(json.dumps(first | {"source": "human", "by": f"{EVIL}1", "at": "2026-01-01T00:00:00+00:00", "value": "relevant"}))
    verdicts.append(json.dumps(first | {"source": f"openai:{EVIL}", "doubt": EVIL}))
    (run / "verdicts.jsonl").write_text("\n".join(verdicts) + "\n")
    return Browser(run, name=f'"><img src=x onerror=alert(1)>{EVIL}')


def test_script_in_words_of_models_files_and_people_is_only_read(evil):
    image = evil.images[0]
    evil.decide(image, 0, "spurious", by=f"Bob {EVIL}")
    evil.post("/words", {"by": EVIL, "description-0": EVIL, "description-1": "</textarea>" + EVIL, "examples": ""})
    pages = [*PAGES, f"/image/{image}", f"/image/{image}/draw", f"/?label={EVIL}&reviewer={EVIL}", f"/words?images={EVIL}", f"/?page={EVIL}"]
    seen = ""
    for address in pages:
        page = evil.client.get(address).text
        assert EVIL not in page and "<img src=x" not in page, address
        seen += page
    assert seen.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10, "and they are shown"


def test_script_in_an_error_is_only_read(evil):
    for answer in (evil.decide(evil.images[0], 0, EVIL), evil.post("/again", {"images": EVIL, "by": "Ann"}), evil.client.get(f"/{EVIL}")):
        assert answer.status_code in (400, 404) and EVIL not in answer.text


def test_a_file_name_is_shown_nowhere(browser):
    """Pages name images by their number; a file's name may name a patient."""
    names = {path.name for path in (browser.run.parent / "images").rglob("*.png")}
    text = "".join(browser.get(address) for address in (*PAGES, f"/image/{browser.images[0]}"))
    assert names and not any(name in text for name in names)


def test_keys_are_never_shown(browser, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-123456")
    edit(browser.run / "critiques.jsonl", "A tag in the corner.", "The key is sk-very-secret-123456.")
    text = "".join(browser.get(address) for address in (*PAGES, *(f"/image/{image}" for image in browser.images)))
    assert "sk-very-secret" not in text
    jobs = browser.site.jobs
    jobs.start("sk-very-secret-123456", ["--version"], "Ann")
    jobs._process.wait(60)
    assert "sk-very-secret" not in jobs.look().words and "Ann" in jobs.look().words


def test_the_server_listens_on_this_machine_alone(run, monkeypatch):
    from rightreasons.review import server

    seen = {}
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: seen.update(address=sockets[0].getsockname(), config=self.config))
    server.serve(RunFolder(run), port=0, name="", announce=lambda address: seen.update(told=address))
    assert seen["address"][0] == "127.0.0.1" and not seen["config"].access_log
    assert seen["told"].startswith(f"http://127.0.0.1:{seen['address'][1]}/start?token=")
