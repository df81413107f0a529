"""Answers as a file and as a page: read as they were written, shown and never run."""

import json
from html.parser import HTMLParser
from itertools import chain

import pytest

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.answers import (
    Answered,
    read_predictions,
    score_one,
    score_systems,
    write_predictions,
)
from megatron_yuyuan.evaluate.answers_page import POLICY, answers_page

HOSTILE = "<script>alert('x')</script> & \"gout\" <img src=//x>"
SYSTEMS = {
    "run, greedy": [
        Answered("What is gout?", "A disease\n- of joints", "A disease — of 1 < 2 bones"),
        Answered(HOSTILE, HOSTILE, HOSTILE),
    ],
    "run, <b>sampled</b>": [
        Answered("What is gout?", "A disease\n- of joints", ""),
        Answered(HOSTILE, HOSTILE, "No idea <iframe src=//y>"),
    ],
}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "answers.jsonl"
    with path.open("wb") as stream:
        write_predictions(stream, SYSTEMS)
    return path


def test_what_is_written_is_read_again(written):
    assert read_predictions(written) == SYSTEMS
    lines = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert [line["system"] for line in lines] == ["run, greedy"] * 2 + ["run, <b>sampled</b>"] * 2
    for line, answered in zip(lines, chain(*SYSTEMS.values()), strict=True):
        expected = score_one(answered)
        assert line["scores"]["token_f1"] == expected.token_f1
        assert line["scores"]["sentence_bleu"]["method7"] == [*expected.sentence_bleu["method7"]]
    assert score_systems(SYSTEMS)["run, greedy"].pairs == 2


def test_answers_of_another_program_need_no_system(tmp_path):
    path, answered = tmp_path / "theirs.jsonl", Answered("Q", "R", "A")
    path.write_text('{"question": "Q", "reference": "R", "answer": "A", "model": 3}\n')
    assert read_predictions(path) == {"theirs": [answered]}


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "no answer in"),
        ([{"question": "q", "answer": "a"}], "line 1: question, reference, answer .* has question"),
        ([{"question": "q", "reference": "r", "answer": None}], "line 1: .* must be strings"),
        ([{"question": "q", "reference": "r", "answer": "a", "system": 1}], "line 1: .* strings"),
        (
            [{"question": q, "reference": "r", "answer": "a", "system": q} for q in "ab"],
            "'b' and 'a' did not answer the same questions",
        ),
        (
            [{"question": "q", "reference": "r", "answer": "a", "system": s} for s in "aab"],
            "did not answer the same questions",
        ),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path, lines, message):
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "\n"]))
    with pytest.raises(DataError, match=message):
        read_predictions(path)


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_every_text_and_runs_none():
    page = Page(answers_page("Answers <of> a run", SYSTEMS))
    assert not page.open  # every tag was closed in its turn
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "b", "of", "link", "iframe", "a"} and "article" in names
    attributes = {name for _, of in page.tags for name in of}
    assert attributes == {"lang", "charset", "name", "content", "http-equiv", "class", "id"}
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in page.tags
    shown = "".join(page.texts)
    for answered in chain(*SYSTEMS.values()):
        assert all(text in shown for text in vars(answered).values())
    assert "Answers <of> a run" in shown and "run, <b>sampled</b>" in shown and "(empty)" in shown
    assert "tok:13a" in shown and "no medical advice" in shown and "never published" in shown
    assert shown.count("method7") == 2  # a title and a signature
    assert [of["id"] for tag, of in page.tags if tag == "article"] == ["pair-1", "pair-2"]


def test_shared_words_are_marked():
    text = answers_page("t", {"s": [Answered("q", "A disease of JOINTS.", "The joints, gout <of")]})
    assert '<p class="text">The <mark>joints,</mark> gout <mark>&lt;of</mark></p>' in text
