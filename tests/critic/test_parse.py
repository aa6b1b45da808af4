"""What models write, in the shapes in which they write it; and that no text, however made, takes long to read."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from rightreasons.critic.judge import parse_verdicts
from rightreasons.critic.parse import LONGEST_ANSWER, MalformedAnswer, describe_unusable, read_conclusion, read_json, read_paragraphs, read_tagged
from rightreasons.critic.votes import restore_names
from rightreasons.lvlm import open_lvlm

N = LONGEST_ANSWER


@pytest.mark.parametrize(
    "opening",
    ["S1: ", "**S1**: ", "- **S1:** ", "### S1\n\n", "1. S1: ", "2) **S1** - ", "Segment S1: ", "**Segment S1:** ", "__S1__: ", "> S1 | ", "S1\n- "],
)
def test_the_ways_in_which_a_paragraph_starts(opening):
    critique = f"1. A cell.\n\n{opening}A crack.\nIt is long.\n\nSomething else.\n\n{opening.replace('S1', 'S2')}A tag."
    assert read_paragraphs(critique) == {"S1": "A crack.\nIt is long.", "S2": "A tag."}


def test_a_conclusion_in_a_paragraph_of_its_own_belongs_to_the_segment_before_it():
    read = read_paragraphs("## S1\n\nA tag.\n\n**Conclusion:** it does not matter.\n\n## S2\n\nA crack.\n\nThat is all.\n\nConclusion: it matters.")
    assert read_conclusion(read["S1"]) == "spurious" and read["S2"] == "A crack.", "of the last nobody knows what it concludes"


def test_a_segment_without_words_does_not_get_those_of_the_next():
    assert read_paragraphs("S1:\n\nS2: A tag.") == {"S1": "", "S2": "A tag."}


@pytest.mark.parametrize("name", ["XS1", "S1b", "PS1:"])
def test_what_is_no_id(name):
    assert read_paragraphs(f"{name} A part.") == {}


@pytest.mark.parametrize("line", ["1. {}: {}", "Segment {}: **{}**", "- **{}** - {}.", "| {} | {} |"])
def test_lines_of_verdicts(line):
    text = line.format("S1", "spurious") + "\n" + line.format("S2", "Relevant")
    assert read_tagged(text, ["S1", "S2"]) == {"S1": "spurious", "S2": "Relevant"}


@pytest.mark.parametrize("line", ["S1: !relevant", "S1 \u2260 relevant", "S1: \u00acrelevant", "S1: relevant?"])
def test_a_line_that_denies_or_doubts_is_no_verdict(line):
    with pytest.raises(MalformedAnswer):
        parse_verdicts(f"{line}\nS2: relevant", ["S1", "S2"])


def test_a_name_in_underscores_is_restored_too():
    assert restore_names("__S1__ and S2, not XS1", (1, 0)) == "__S2__ and S1, not XS1"


def test_names_are_read_where_words_have_no_space_between_them():
    """Chinese and Japanese; "S1 lies at the top left, it covers the label; S2 covers the lesion"."""
    assert read_paragraphs("S1位于左上角,覆盖标签。\n\nS2覆盖病灶。") == {"S1": "位于左上角,覆盖标签。", "S2": "覆盖病灶。"}
    assert restore_names("S1位于左上角,和S2。", (1, 0)) == "S2位于左上角,和S1。"


def test_a_conclusion_with_a_typographic_apostrophe():
    assert read_conclusion("Conclusion: it doesn\u2019t matter.") == "spurious"


@pytest.mark.parametrize(
    "unit", ["\n", "-\n", "- ", "{", "{}", "[", '"\\', "'\\", "S1\n", "S1: x\n-\n", "1.", "1", "_", "Segment ", ", ", "conclusion:"]
)
@pytest.mark.parametrize("before", ["", "{", "S1: x\n", '{"S1": "'])
def test_no_text_takes_long_to_read(unit, before):
    """A small model often repeats itself to its cap, and a hostile one can choose."""
    text = (before + unit * N)[: N - 1] + "}"
    began = time.process_time()  # what a busy machine does beside this is not counted
    for words in read_paragraphs(text).values():
        read_conclusion(words)
    read_tagged(text, ["S1"])
    with contextlib.suppress(MalformedAnswer):
        read_json(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("thought", ["[THINK]S1 is{}[/THINK]", "\u25c1think\u25b7S1 is{}\u25c1/think\u25b7"])
def test_thoughts_in_other_marks(thought):
    from rightreasons.lvlm.wire.chat import read_content

    assert read_content(thought.format(" a tag") + "\nS1: spurious") == "S1: spurious"
    assert read_content(thought.split("{")[0]) == "", "the thoughts used up the cap"


def test_no_choices_is_an_empty_answer_and_a_deep_one_is_none():
    lvlm = open_lvlm("openai:m")
    assert lvlm.parse('{"object": "chat.completion", "choices": []}').outcome == "truncated"
    with pytest.raises(Exception, match="half an answer"):
        lvlm.parse('{"a":' + "[" * 100_000)


FINAL = '{"S1": "spurious", "S2": "relevant"}'
READ = {
    "thoughts with a draft": '<think>Perhaps {"S1": "relevant"}? No, it is the tag.</think>\n' + FINAL,
    "thoughts of which the prompt has the opening": "The format is {id: verdict}, so ...</think>" + FINAL,
    "thoughts in other marks": '<|channel|>analysis<|message|>{"S1": "relevant"}<|end|><|start|>assistant<|channel|>final<|message|>' + FINAL,
    "words before": "I answer as {ID: verdict}:\n" + FINAL,
    "words after": f"```json\n{FINAL}\n```\nThe form was {{ID: verdict}}.",
    "a form before that is no JSON": '{"S1": verdict, ...}\n' + FINAL,
    "the same twice": FINAL + "\n" + FINAL,
    "the same twice in two spellings": FINAL.replace('"', "'").replace("}", ",}") + "\n" + FINAL,
    "an object about something else": '{"confidence": 0.9}\n' + FINAL,
}


@pytest.mark.parametrize("case", READ)
def test_an_answer_among_other_words_is_read_where_one_reading_is_possible(case):
    assert parse_verdicts(READ[case], ("S1", "S2")) == {"S1": "spurious", "S2": "relevant"}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with medical images.",
        "I am very sorry. I cannot provide a diagnosis from this picture.",
        "Sorry, I won't do that.",
        "Unfortunately, as an AI language model, I am not able to interpret medical images.",
        "As an AI, I cannot analyze X-rays. Please ask a doctor.",
        "<think>Is this a patient?</think>\n**I'm unable to help** identify what is shown.",
        "We cannot comply with this request.",
    ],
)
def test_a_refusal_in_prose_is_told_as_one_in_its_own_words(text):
    said = text.split("</think>")[-1].strip()
    assert describe_unusable(text, "no paragraph names a segment") == f"refused: {said}"


@pytest.mark.parametrize(
    "text",
    [
        "Just a cat.",
        "",
        "I'm sorry, but I can't see any picture here.",  # nothing is refused: a picture is missing
        "I can see a cat, and I cannot help but notice the tag.",
        "The tag can't help a doctor with the diagnosis.",
        "I can't help with S1, but S2 covers the tag.",
        "A long answer. " * 50 + "I'm sorry, but I can't help with that.",
        "I cannot provide more. " + "The image shows a mole. " * 40,
        "I refuse nothing: the tag does not matter.",
    ],
)
def test_what_is_no_plain_refusal_stays_malformed(text):
    assert describe_unusable(text, "no paragraph names a segment") == "malformed: no paragraph names a segment"


OTHER = FINAL.replace("spurious", "relevant")
UNREAD = {
    "two that differ": FINAL + "\n" + OTHER,
    "a draft without one segment": '{"S1": "spurious"}\n' + FINAL,
    "a draft, and a last one that breaks off": FINAL + '\nNo: {"S1": "relevant", "S2',
    "a draft, and a last one that is no JSON": FINAL + '\nNo: {"S1": relevant, "S2": relevant}',
    "thoughts alone": "<think>" + FINAL,
    "thoughts and nothing after them": FINAL + "</think>",
    "one inside of what is no JSON": '{"verdicts": oops, "x": {"S1": "spurious"}}',
    "braces without end": "{a} " * 2000 + FINAL,
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_can_be_read_in_two_ways_stays_unread(case):
    with pytest.raises(MalformedAnswer):
        parse_verdicts(UNREAD[case], ("S1", "S2"))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_an_answer_that_a_server_takes_for_thoughts(field):
    """A server's reasoning parser can put a whole answer there; thoughts that merely end are none."""
    lvlm = open_lvlm("openai:m")

    def parse(thoughts, content=None, reason="stop"):
        choice = {"message": {"role": "assistant", "content": content, field: thoughts}, "finish_reason": reason}
        return lvlm.parse(json.dumps({"object": "chat.completion", "choices": [choice]}))

    assert parse(f"It is a tag.\n{FINAL}").text.endswith(FINAL) and parse(f"Hm. {OTHER}", FINAL).text == FINAL
    assert parse("S1 may be a tag.").outcome == parse(FINAL, reason="length").outcome == "truncated"
