"""The command name: one question, names in metrics.json and on the page until the grouping changes, and what cannot be asked."""

import html
import json
import re

import pytest

from rightreasons.runs.deciding import decide
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.names import load_names
from rightreasons.runs.profile import read_profile
from tests.support.fault_server import ANSWER_USD, INPUT_USD, OUTPUT_USD, FaultServer
from tests.support.helpers import Direct, edit, invoke, the_error
from tests.support.review import copy_run, make_run

PRICES = f'["openai:stub"]\ndate = 2026-01-01\ninput_usd = {INPUT_USD}\noutput_usd = {OUTPUT_USD}\n'


def name_all(name):
    """A model that gives the first group a ``name``, and the others their ID."""
    return lambda seen: json.dumps({key: name if key == "G1" else f"thing {key}" for key in re.findall(r"^(G\d+): in", seen.text, re.MULTILINE)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    make_run(root, size=4)
    return root


def follow_stub(run):
    """Makes a run whose critic is a script one whose critic is the stub; the address in its configuration is that of no server."""
    config = run / "config.toml"
    config.write_text(re.sub(r'lvlm = "scripted:.*"', 'lvlm = "openai:stub"', config.read_text()))
    return run


@pytest.fixture
def scripted(finished, tmp_path):
    """A run whose critic is a script."""
    return copy_run(finished, tmp_path / "copy")


@pytest.fixture
def run(scripted):
    """The same run as if the stub had been its critic."""
    return follow_stub(scripted)


@pytest.fixture(scope="module")
def named(finished, tmp_path_factory):
    """A run that was named twice at a price, after a person had decided: the run, its metrics before, the server, and both results."""
    run = follow_stub(copy_run(finished, tmp_path_factory.mktemp("twice") / "copy"))
    before = RunFolder(run).load_metrics()
    decide(RunFolder(run), [(next(iter(RunFolder(run).segment_counts())), 2, "spurious")], by="Dr Ann Smith")
    (run.parent / "prices.toml").write_text(PRICES)
    with FaultServer(answer=name_all("Yellow ICU tag")) as stub:
        edit(run / "config.toml", '"http://127.0.0.1:9/v1"', f'"{stub.base_url}"\nprices = "prices.toml"')
        first, second = invoke("name", run), invoke("name", run, "--json")
        assert first.exit_code == second.exit_code == 0, first.stderr + second.stderr
    return run, before, stub, first, second


@pytest.fixture
def ask(run, monkeypatch):
    """Runs the command with a model that answers so, without a courier; the server comes back with the result."""
    direct = Direct()

    def name_with(answer):
        with FaultServer(answer=answer) as stub:
            monkeypatch.setattr("rightreasons.pipeline.naming.open_role", lambda *_: direct(stub))
            return invoke("name", run), stub

    yield name_with
    direct.close()


def shortcuts(run):
    return RunFolder(run).load_metrics()["shortcuts"]


def test_ledger_asked_twice_costs_one_request(named):
    run, before, stub, first, second = named
    assert (stub.requests, stub.seen[0].pictures) == (1, ()) and "G1: Yellow ICU tag (" in first.stdout
    assert json.loads(second.stdout)["names"]["G1"] == "Yellow ICU tag"
    calls, dollars = (RunFolder(run).load_metrics()["critic"][key] - before["critic"][key] for key in ("calls", "cost_usd"))
    assert (calls, dollars) == (1, pytest.approx(ANSWER_USD))
    (stage,) = [stage for stage in read_profile(RunFolder(run)) if stage.stage == "name"]
    assert (stage.times, stage.calls, stage.cost_usd) == (2, 1, pytest.approx(ANSWER_USD))
    cost = invoke("name", run, "--estimate").stdout
    assert "openai:stub: 0 requests, 1 answered already, 0.0000 US dollars at most" in cost


def test_the_name_is_in_the_metrics_and_on_the_page(named):
    run, *_ = named
    assert {"name": "Yellow ICU tag", "named_by": "openai:stub"}.items() <= shortcuts(run)[0].items()
    page = (run / "report.html").read_text()
    assert "Yellow ICU tag</h3>" in page and "was given by openai:stub, which read the critiques" in page


def test_nothing_but_words_of_critiques_is_sent(named):
    run, _, stub, *_ = named
    sent = json.dumps(stub.seen[0].body)
    assert "A tag." in sent and "A tag in the corner." in sent
    for private in ("Smith", ".png", str(run.parent), "image_url"):
        assert private not in sent, private


def test_an_unusable_name_leaves_that_of_the_grouping(run, ask):
    before = shortcuts(run)
    done, _ = ask(name_all("x" * 61))
    assert done.exit_code == 0, done.stderr
    assert "G1 keeps the name of the grouping: the name has 61 characters" in done.stderr
    assert shortcuts(run)[0] == before[0] and before[0]["named_by"] == "grouping"
    assert "was given by" not in (run / "report.html").read_text()


def test_names_of_another_grouping_are_not_used(run, ask):
    ask(name_all("ward tag"))
    assert shortcuts(run)[0]["name"] == "ward tag"
    first, *_ = RunFolder(run).segment_counts() or ()
    decide(RunFolder(run), [(first, 0, "relevant")], by="Ann")
    scored = invoke("score", run)
    assert "ward tag" not in (run / "report.html").read_text() and {item["named_by"] for item in shortcuts(run)} == {"grouping"}
    assert "those of an earlier grouping" in scored.stderr
    assert invoke("name", run, "--estimate").stdout.startswith("openai:stub: 1 requests"), "another grouping is another question"


def test_injection_a_name_is_text_on_the_page(run, ask):
    evil = "<script>alert(1)</script>{{ 7*7 }}"
    done, _ = ask(name_all(evil))
    page = (run / "report.html").read_text()
    assert done.exit_code == 0 and shortcuts(run)[0]["name"] == evil
    assert "<script>alert(1)" not in page and html.escape(evil, quote=False).casefold() in page.casefold()


def test_the_cost_comes_first_and_nothing_is_sent(run):
    found = json.loads(invoke("name", run, "--estimate", "--json").stdout)
    assert (found["model"], found["requests"], found["answered"], found["usd_at_most"]) == ("openai:stub", 1, 0, 0)
    assert not (run / "names.json").exists()


def test_what_is_no_model_cannot_be_asked(scripted):
    before = (scripted / "metrics.json").read_bytes()
    said = the_error(invoke("name", scripted))
    assert "cannot be asked for names" in said and "the names stay those of the grouping" in said and "openai:" in said
    assert (scripted / "metrics.json").read_bytes() == before and not (scripted / "names.json").exists()


def test_another_host_wants_leave(run):
    edit(run / "config.toml", '"http://127.0.0.1:9/v1"', '"https://models.example.org/v1"')
    assert "--allow-remote" in the_error(invoke("name", run))


def test_a_run_without_a_shortcut_has_nothing_to_name(run, ask):
    counts = RunFolder(run).segment_counts()
    decide(RunFolder(run), [(image, segment, "relevant") for image, count in counts.items() for segment in range(count)], by="Ann")
    done, stub = ask(name_all("tag"))
    assert "has nothing to name" in the_error(done) and stub.requests == 0


def test_a_damaged_file_of_names_is_told(run):
    (run / "names.json").write_text('{"names": []}')
    assert "is not a file of names" in the_error(invoke("score", run))
    assert load_names(RunFolder(run.parent)) is None
