"""The page says what a head of department asks, what it rests on, and runs nothing."""

import html
import re

import pytest

from rightreasons.data.loading import StoredImages, read_batches
from rightreasons.networks.predictions import predict_labels
from rightreasons.report.glossary import SCORES
from rightreasons.report.page import write_report
from rightreasons.run import load_run
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import read_profile

EXPECTED = {"Model": "tag_model", "Checkpoint": "model.safetensors, SHA-256", "Judged by": "people decided 20 of", "Version": "rightreasons 0."}
TRACED = r"(\S+T\S+) (Ann|Bob \S+) (\d+) (S\d) (\w+) ((?:unsure|relevant|spurious) by .*?) (counts|a later verdict counts|taken back)"


def text_of(page: str) -> str:
    """What a person reads, without the pictures and the style."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_it_opens_with_the_verdict_and_what_to_do(page, metrics):
    start = text_of(page)[:1200]
    assert metrics["fitness"]["verdict"].capitalize() in start and metrics["fitness"]["reasons"][0].lower() in start.lower() and "Next:" in start
    assert start.index("Next:") < start.index("Shortcut found.")


def test_a_shortcut_has_a_name_three_pictures_and_numbers(page, metrics):
    (tag, *_) = metrics["shortcuts"]
    assert tag["evidence_interval"][0] <= tag["evidence_before"] <= tag["evidence_interval"][1]
    assert "yellow tag" in tag["name"] and tag["named_by"] == "grouping"
    told = page[page.index('id="leans"') : page.index('id="about"')]
    first = told.split('<div class="shortcut">')[1]
    assert first.count('<img src="data:image/jpeg') == 3
    assert f"Seen in {tag['images']} of 24 inspected images" in first and "of all the evidence, and" in first and "after the repair" in first
    assert re.search(r"Pasted into \d+ held-out images of other classes, it changes \d+%", first)
    assert re.search(r"In how many of all the training images|of all \d+ training images", told)


def test_every_class_has_a_verdict_and_a_reason_with_the_bounds_beside_it(page, metrics):
    told = page[page.index('id="classes"') : page.index('id="numbers"')]
    for name, item in metrics["fitness"]["classes"].items():
        assert (
            f'<th scope="row">{name}</th>' in told and item["verdict"] in told and html.escape("; ".join(item["reasons"]), quote=False)[:40] in told
        )
    assert "at most 10%" in told and "Before the repair" in told


@pytest.mark.parametrize("what", ["Model", "Checkpoint", "Data", "Inspected", "Judged by", "Made", "Version", "Seed"])
def test_it_can_be_filed(page, what):
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page[page.index('id="about"') : page.index('id="shortcuts"')], re.DOTALL))
    assert facts[what]
    expected = {
        "Model": "python:tag_model",
        "Checkpoint": "model.safetensors, SHA-256",
        "Judged by": "people decided 20 of",
        "Version": "rightreasons 0.",
    }
    assert expected.get(what, "") in html.unescape(facts[what])


def test_no_path_of_this_machine_is_in_it(page, reviewed):
    for part in (str(reviewed.path.parent), "/tmp", "127.0.0.1"):
        assert part not in page


def test_every_link_leads_somewhere_and_every_number_is_explained(page, metrics):
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    glossary = page[page.index('id="glossary"') :]
    for key, title, _ in SCORES:
        assert f"<dt>{title}</dt>" in glossary
        if metrics["before"][key] is not None:
            assert f">{title}<" in page[page.index('id="numbers"') : page.index('id="tuning"')]


def test_numbers_have_intervals(page, metrics):
    low, high = metrics["intervals"]["before"]["swap_flip_rate"]
    assert low <= metrics["before"]["swap_flip_rate"] <= high
    assert f"<small>{low:.3f} to {high:.3f}</small>" in page
    assert {"accuracy", "swap_flip_rate", "spurious_share"} <= metrics["intervals"]["after"].keys()


def test_the_curve_of_fine_tuning_has_every_epoch(page, metrics):
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2, 3]
    told = page[page.index('id="tuning"') : page.index('id="trust"')]
    assert told.count("<polyline") == 2 and "with segments pasted in" in told


def test_every_verdict_of_a_person_can_be_traced(page, reviewed):
    section = page[page.index('id="people"') : page.index('id="waiting"')]
    assert section.count('<table class="wide">') == 2 and '<td data-head="When">' in section and '<td data-head="last">' in section, "a narrow page"
    told = text_of(section)
    assert "Every verdict of a person, 22 in all" in told
    rows = re.findall(TRACED, told)
    assert len(rows) == 22
    first = reviewed.load_selection().indices.tolist()[0]
    both = [(row[1][:3], row[4], row[6]) for row in rows if row[2] == str(first)]
    assert both == [("Ann", "relevant", "a later verdict counts"), ("Bob", "spurious", "counts")]
    assert "spurious" in told and "Where people disagree" in told and [row[6] for row in rows].count("taken back") == 1


def test_the_critic_is_calibrated_on_what_people_said(page, metrics):
    found = metrics["calibration"]
    assert found["count"] == 20 and sum(level["count"] for level in found["levels"]) == 20
    assert found["curve"][0][0] == 0 and found["curve"][-1] == [1.0, 1.0]
    told = page[page.index('id="trust"') : page.index('id="people"')]
    assert "a person sees" in told and '<polyline points="0.0,' in told


def test_the_filter_needs_no_script(page):
    assert '#by-class option[value="c0"]:checked) .card:not(.c0)' in page and '#by-verdict option[value="v-person"]' in page
    assert re.search(r'<section class="card c\d[^"]*v-person', page) and page.count('<section class="card ') == 24


def test_injection_nothing_that_is_said_becomes_markup(page):
    """A critic, an expert and a reviewer's name with a script: all of them stand on the page, as text."""
    assert "<script" not in page and "<img src=x" not in page and "\x1b" not in page and "default-src 'none'" in page
    assert page.count("&lt;script&gt;document.title=") > 20
    assert "{{ 7 * 7 }}" in page and "Bob &lt;script&gt;" in page


def test_each_image_has_both_answers_with_their_probability(page, reviewed):
    run = load_run(reviewed)
    expected = []
    for model in filter(None, (run.model, run.aligned)):
        images = StoredImages(run.train, run.selection.indices)[:]
        best = model(images).softmax(1).max(1)
        expected.append(dict(zip(run.selection.indices.tolist(), zip(best.values.tolist(), best.indices.tolist(), strict=True), strict=True)))
    said = re.findall(
        r'id="image-(\d+)">.*?<p class="soft">Classified as (\w+), probability ([\w. ]+); after the repair: (\w+), probability ([\w. ]+?)\.</p>',
        page,
        re.DOTALL,
    )
    assert len(said) == 24
    for index, *words in said:
        for model, (name, sure) in zip(expected, (words[:2], words[2:]), strict=True):
            probability, label = model[int(index)]
            assert name == run.descriptions[label].name
            assert probability >= 0.99 if sure == "over 0.99" else float(sure) == pytest.approx(probability, abs=0.011)


def test_the_cost_has_every_stage(page, reviewed):
    cost = page[page.index('id="cost"') : page.index('id="limits"')]
    stages = {stage.stage: stage for stage in read_profile(reviewed)}
    assert set(re.findall(r'<th scope="row">(.*?)</th>', cost)) == {*stages, "all"}
    assert f'{stages["align"].seconds:.1f}</td><td class="number" data-head="times">1</td>' in cost


def test_one_of_something_is_told_as_one(reviewed, metrics, tmp_path):
    run = load_run(reviewed)
    answers = [predict_labels(run.model, read_batches(run.train, indices=run.selection.indices))]
    once = metrics | {"skipped_images": 1, "critic": metrics["critic"] | {"unsure": 1, "calls": 1}}
    write_report(run, once, None, RunFolder(tmp_path), answers=answers, stages=[])
    told = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "1 is undecided and counts as not spurious" in told and "1 file is left out" in told and re.search(r"\b1 call, \d+ more were", told)
