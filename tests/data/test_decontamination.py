"""Decontamination: texts that share a long run of words with an evaluation file, and no others."""

import gzip
import json
import pickle
import random
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_yuyuan.data.decontamination import BLOCK, NGRAM, SHORTEST, Decontaminator
from megatron_yuyuan.data.jsonl import read_json_lines
from megatron_yuyuan.errors import DataError

QUESTION = "Does long-term aspirin lower the risk of colorectal cancer in adults?"  # 12 words
ANSWER = " ".join(f"word{n}" for n in range(40))


def written(path, content) -> Decontaminator:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return Decontaminator([path])


@pytest.fixture
def planted(tmp_path) -> Decontaminator:
    return written(tmp_path / "test.json", {"1": {"q": QUESTION, "deep": [{"a": [ANSWER]}]}})


def test_three_of_a_hundred_are_found(planted):
    texts = [" ".join(f"t{n}x{m}" for m in range(200)) for n in range(100)]
    copied = ANSWER.split()[5 : 5 + NGRAM]
    texts[7] += " " + " ".join(copied)
    texts[50] = f"{texts[50]} ({QUESTION.upper()}) {texts[50]}"
    texts[99] = "; ".join(copied) + ". " + texts[99]
    assert [n for n, text in enumerate(texts) if planted.overlap(text)] == [7, 50, 99]
    assert [planted.overlap(texts[n]) for n in (7, 8)] == ["test.json", ""]


def test_one_word_less_or_another_is_not_a_copy(planted):
    copied = ANSWER.split()[:NGRAM]
    for text in (" ".join(copied[:-1]), " ".join([*copied[:6], "other", *copied[7:]]), "", "word1"):
        assert not planted.overlap(text)
    assert not planted.overlap(QUESTION.replace("adults", "children"))
    assert planted.overlap(" ".join(copied))


def test_every_shared_run_is_told_with_its_words(planted):
    text = "Before. " + " ".join(ANSWER.split()[: NGRAM + 1]) + " after"
    first, second = planted.matches(text)
    assert first == ("test.json", " ".join(ANSWER.split()[:NGRAM]))
    assert second == ("test.json", " ".join(ANSWER.split()[1 : NGRAM + 1]))
    shared = "does long term aspirin lower the risk of colorectal cancer in adults"
    assert list(planted.matches(f"Oh: {QUESTION}")) == [("test.json", shared)]


def test_strings_too_short_to_tell_are_left_alone(tmp_path):
    short, whole = "in patients with type two diabetes mellitus", "one two three four five six 7 8"
    decontaminator = written(tmp_path / "test.json", [short, whole])
    assert len(short.split()) == SHORTEST - 1
    assert not decontaminator.overlap(f"we saw it {short} and others")
    assert decontaminator.overlap(f"zero {whole} nine")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.json", json.dumps([[{"a": [QUESTION, 3, None]}], "x"], indent=1).encode()),
        ("lines.jsonl", f'{{"q": 1}}\n\n{json.dumps({"q": QUESTION})}\n'.encode()),
        ("lines.jsonl.gz", gzip.compress(json.dumps({"q": QUESTION}).encode(), mtime=0)),
        ("plain.txt", f"short\r\n{QUESTION}\r\nother\n".encode()),
        ("signed.txt", b"\xef\xbb\xbf" + QUESTION.encode()),
    ],
)
def test_every_kind_of_file_is_read(tmp_path, name, content):
    decontaminator = written(tmp_path / name, content)
    assert decontaminator.overlap(QUESTION) == name
    assert not decontaminator.overlap(f"short {QUESTION[5:]} other")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b'{"q": "too short"}', "no string of 8 words or more"),
        (json.dumps({QUESTION: 1}).encode(), "no string of 8 words or more"),
        (b'[{"q": "a"}\n{]', "line 2 column 1"),
        (b"[" * 100_000, "nested deeper"),
        (b"\xff\xfe" + QUESTION.encode("utf-16-le"), "invalid start byte"),
        (f"<Document>{QUESTION}</Document>".encode(), "as XML does"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_would_protect_nothing_is_refused(tmp_path, content, what):
    with pytest.raises(DataError, match=what):
        written(tmp_path / "test.json", content)
    with pytest.raises(DataError, match="cannot read"):
        Decontaminator([tmp_path / "absent.json"])


def test_the_file_is_named_and_the_fingerprint_is_of_the_runs_alone(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    written(one, [QUESTION])
    written(two, [ANSWER, ANSWER])
    both = Decontaminator([one, two])
    assert [both.overlap(text) for text in (QUESTION, ANSWER)] == ["one.json", "two.json"]
    assert both.fingerprint == Decontaminator([two, one, two]).fingerprint
    assert (
        both.fingerprint
        == written(tmp_path / "all.txt", f"{ANSWER}\n{QUESTION}".encode()).fingerprint
    )
    assert both.fingerprint != Decontaminator([two]).fingerprint


def test_another_process_decides_alike(planted, tmp_path):
    copy = pickle.loads(pickle.dumps(planted))
    assert copy.overlap(f"x {ANSWER}") and copy.fingerprint == planted.fingerprint
    code = (
        "import sys; from megatron_yuyuan.data.decontamination import Decontaminator as D\n"
        "print(D([sys.argv[1]]).fingerprint)"
    )
    command = [sys.executable, "-c", code, tmp_path / "test.json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == planted.fingerprint


@pytest.mark.parametrize("before", [BLOCK - NGRAM, BLOCK - 1, BLOCK, 3 * BLOCK - 5])
def test_a_run_across_the_blocks_of_a_long_text_is_found_once(planted, before):
    text = " ".join(["filler"] * before + ANSWER.split()[:NGRAM] + ["filler"] * BLOCK)
    assert len(list(planted.matches(text))) == 1


def test_so_is_a_run_across_the_blocks_of_a_long_evaluation_text(tmp_path):
    words = [f"w{n}" for n in range(2 * BLOCK + 50)]
    decontaminator = written(tmp_path / "test.txt", " ".join(words).encode())
    for begin in (0, BLOCK - 5, BLOCK, 2 * BLOCK - 3, len(words) - NGRAM):
        assert decontaminator.overlap(" ".join(words[begin : begin + NGRAM]))
    assert len(list(decontaminator.matches(" ".join(words)))) == len(words) - NGRAM + 1


def shared_runs(evaluation: list[str], text: str) -> bool:
    """The definition, spelt out with tuples of words."""
    runs = set()
    for words in (re.findall(r"[^\W_]+", string.casefold()) for string in evaluation):
        length = min(len(words), NGRAM)
        if length >= SHORTEST:
            runs |= {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
    words = re.findall(r"[^\W_]+", text.casefold())
    return any(
        tuple(words[i : i + length]) in runs
        for length in range(SHORTEST, NGRAM + 1)
        for i in range(len(words))
    )


WORDS = st.lists(
    st.sampled_from(["a", "B", "ß", "β2", "≥", "-", "_", "\ud800", "a’b"]), max_size=16
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=4))
def test_hashes_decide_as_words_do(tmp_path_factory, evaluation, pieces):
    """Few words, so that runs repeat; with letters and marks outside ASCII, and half a pair."""
    strings = [" ".join(words) for words in [*evaluation, "abcdefgh"]]
    path = tmp_path_factory.mktemp("any") / "test.json"
    text = " ".join(" ".join(words).upper() for words in [*pieces, *evaluation[:1]])
    assert bool(written(path, strings).overlap(text)) == shared_runs(strings, text)


def test_real_questions_are_found_in_real_abstracts(real_data):
    evaluation = real_data / "pubmedqa" / "pqal_dev500.json"
    decontaminator = Decontaminator([evaluation])
    abstracts = real_data / "pubmed_text" / "abstracts.jsonl.gz"
    texts = [record["abstract"] for number, record in read_json_lines(abstracts) if number <= 300]
    questions = [record["QUESTION"] for record in json.loads(evaluation.read_bytes()).values()]
    long = [question for question in questions if len(question.split()) >= SHORTEST]
    chosen = random.Random(0).sample(range(len(texts)), 20)
    for place, question in zip(chosen, long, strict=False):
        texts[place] += f" {question}"
    found = {place for place, text in enumerate(texts) if decontaminator.overlap(text)}
    assert found == set(chosen)


def test_the_unicode_form_does_not_hide_a_copy(tmp_path):
    words = "Does naïve élan therapy lower the café risk of colorectal cancer in older adults"
    forms = [unicodedata.normalize(form, words) for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    for one, other in (forms, forms[::-1]):
        assert written(tmp_path / "test.txt", one.encode()).overlap(other)
