"""MedQuAD: cleaned pairs of both schemas, and splits through which nothing leaks."""

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_yuyuan.data.medquad import (
    SPLITS,
    QuestionAnswer,
    assign_splits,
    normalise,
    read_medquad,
    read_qa_jsonl,
    write_jsonl,
)
from megatron_yuyuan.errors import DataError, UnsafeError

USUAL = """<Document id="7" source="GARD" url="u"><Focus>Gout</Focus><QAPairs>
<QAPair pid="1"><Question qid="7-1" qtype="information">What is (are) Gout ?</Question>
<Answer>Gout is a disease.
   - Joints    - Pain</Answer></QAPair>
<QAPair pid="2"><Question qid="7-2" qtype="symptoms">Symptoms of Gout? ?</Question><Answer/></QAPair>
<QAPair pid="3"><Question qid="7-1" qtype="x">What is (are) Gout?</Question>
<Answer>  Gout is  a disease.    - Joints  -  Pain</Answer></QAPair>
<QAPair pid="4"><Question qid="7-4" qtype="treatment">What are the treatments for Gout ?</Question>
<Answer>These resources address the diagnosis or management of gout:  - Gene Review</Answer></QAPair>
</QAPairs></Document>"""
LOWER = """<doc docid="8" corpus="NINDS"><doctitle-focus>Ataxia</doctitle-focus><qaPairs><pair pid="1">
<question qid="8-1" qtype="outlook">what is the prognosis ?</question><answer>Good.</answer>
</pair></qaPairs></doc>"""
GOUT = QuestionAnswer(
    "What is (are) Gout?",
    "Gout is a disease.\n- Joints\n- Pain",
    "Gout",
    "GARD",
    "7",
    "information",
)
ATAXIA = QuestionAnswer("what is the prognosis?", "Good.", "Ataxia", "NINDS", "8", "outlook")


def test_both_schemas_several_documents_and_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.xml").write_text(LOWER)
    (tmp_path / "a.xml").write_text(USUAL)
    (tmp_path / "readme.txt").write_text("not XML")
    (tmp_path / "c.xml").write_text(f"<all>{USUAL.replace('Document', 'DiseaseFile')}{LOWER}</all>")
    dropped = Counter()
    assert list(read_medquad(tmp_path / "a.xml", dropped)) == [GOUT]
    assert dropped == {"no answer": 1, "answer of links alone": 1, "exact repeat": 1}
    assert list(read_medquad(tmp_path / "c.xml")) == [GOUT, ATAXIA]
    assert list(read_medquad(tmp_path)) == [GOUT, ATAXIA]


def test_what_holds_no_questions_is_refused(tmp_path):
    file = tmp_path / "a.xml"
    with pytest.raises(DataError, match="cannot read"):
        list(read_medquad(file))
    with pytest.raises(DataError, match="no page of questions"):
        list(read_medquad(tmp_path))
    for text, kind, what in (
        (" <a/>", DataError, "no page of questions"),
        (USUAL[:-20], DataError, r"line 10: not well-formed .*last whole record"),
        (f'<!DOCTYPE a [<!ENTITY b "c">]><a>{USUAL}</a>', UnsafeError, "entities"),
    ):
        file.write_text(text)
        with pytest.raises(kind, match=what):
            list(read_medquad(file))


def pairs_of(*keys):
    return [
        QuestionAnswer(question, f"answer {n}", focus) for n, (question, focus) in enumerate(keys)
    ]


KEYS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", *"pqrstuvw"])), max_size=20
)


@settings(deadline=None)
@given(KEYS, st.randoms())
def test_nothing_leaks_and_order_does_not_matter(keys, chance):
    pairs = pairs_of(*keys)
    splits = assign_splits(pairs, (1, 1, 1))
    for (one, its), (other, others) in combinations(zip(pairs, splits, strict=True), 2):
        if one.question == other.question or (one.focus and one.focus == other.focus):
            assert its == others
    shuffled = list(zip(pairs, splits, strict=True))
    chance.shuffle(shuffled)
    assert assign_splits([pair for pair, _ in shuffled], (1, 1, 1)) == [
        split for _, split in shuffled
    ]


def test_spelling_and_chains_of_pairs_make_one_group():
    pairs = pairs_of(
        ("What is GOUT?", "Gout"), ("what is gout", "Arthritis"), ("Who?", "ARTHRITIS!")
    )
    others = [(f"Question {n}", f"Focus {n}") for n in range(200)]
    splits = assign_splits(pairs + pairs_of(*others), (1, 1, 1))
    assert len(set(splits[:3])) == 1
    assert set(splits) == {"train", "valid", "test"}  # not vacuous
    assert normalise("Größe, 2!") == "grösse2"
    assert (
        normalise("Me\u0301nie\u0300re?") == normalise("M\u00e9ni\u00e8re") == "m\u00e9ni\u00e8re"
    )


def test_a_split_is_the_hash_of_the_smallest_key_alone():
    """Written out, so that a change which moves test questions into training is seen."""
    for question, focus, smallest in (("B?", "z", "focus:z"), ("A", "", "question:a")):
        point = int(hashlib.sha256(smallest.encode()).hexdigest()[:16], 16) / 2**64 * 3
        assert assign_splits(pairs_of((question, focus)), (1, 1, 1)) == [SPLITS[int(point)]]
    chain = pairs_of(("x", "focus 9"), ("x", "focus 2"), ("y", "focus 9"))
    alone = pairs_of(("other", "focus 2"))
    assert set(assign_splits(chain, (1, 1, 1))) == set(assign_splits(alone, (1, 1, 1)))


def test_shares_are_met_and_zero_shares_stay_empty():
    pairs = pairs_of(*((f"Question {n}", "") for n in range(4000)))
    counts = Counter(assign_splits(pairs))
    assert abs(counts["train"] - 3600) < 100 and abs(counts["valid"] - 200) < 60
    assert set(assign_splits(pairs, (1, 0, 0))) == {"train"}
    assert set(assign_splits(pairs, (0, 0, 7))) == {"test"}


def test_jsonl_comes_back(tmp_path):
    stream = io.BytesIO()
    write_jsonl(stream, [GOUT, ATAXIA])
    file = tmp_path / "qa.jsonl"
    file.write_bytes(stream.getvalue())
    assert [set(json.loads(line)) for line in file.open()] == [{"question", "answer"}] * 2
    assert [pair.answer for pair in read_qa_jsonl(file)] == [GOUT.answer, "Good."]
    file.write_text('{"Question": " q\\n ?", "Answer": " a  b\\n\\n - \\n-  c\\r\\n"}\n\n')
    assert list(read_qa_jsonl(file)) == [QuestionAnswer("q?", "a b\n- c")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"question": "q", "reply": "a"}', "no key 'answer'; it has 'question', 'reply'"),
        ('{"question": "q", "answer": 3}', "'answer' is no string but int"),
        ('{"question": "q", "answer": " "}', "an empty question or answer"),
        ('["q", "a"]', "a list, not an object"),
        ("{'question': 'q'}", "no key 'answer'; it has 'question'"),
        ('{"question": "\\ud800", "answer": "a"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested deeper"),
        ("__import__('os').system('touch X')", "Expecting value"),
    ],
    ids=str,
)
def test_a_bad_line_is_named(tmp_path, line, what):
    file = tmp_path / "qa.jsonl"
    file.write_text('{"question": "q", "answer": "a"}\n' + line)
    with pytest.raises(DataError) as error:
        list(read_qa_jsonl(file))
    assert "line 2: " in error.value.what and what in error.value.what
    assert "--json-keys" not in error.value.remedy  # no command that reads questions has it


def test_the_real_dataset_is_read_and_divided(real_data, tmp_path):
    if not shutil.which("zstd"):
        pytest.skip("needs the command zstd to unpack the real files")
    packed = real_data / "medquad" / "medquad_xml_shared.tar.zst"
    plain = subprocess.run(["zstd", "-dcq", packed], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        archive.extractall(tmp_path, filter="data")
    dropped = Counter()
    pairs = list(read_medquad(tmp_path, dropped))
    assert len(pairs) == 12685
    assert dropped["exact repeat"] == 23 and dropped["answer of links alone"] == 964
    splits = assign_splits(pairs)
    shuffled = list(zip(pairs, splits, strict=True))
    random.Random(0).shuffle(shuffled)
    assert assign_splits([pair for pair, _ in shuffled]) == [split for _, split in shuffled]
    for key in ("question", "focus"):
        seen: dict[str, set] = {}
        for pair, split in zip(pairs, splits, strict=True):
            seen.setdefault(normalise(getattr(pair, key)), set()).add(split)
        assert all(len(found) == 1 for text, found in seen.items() if text)
    assert Counter(splits)["test"] > 300 and Counter(splits)["valid"] > 300
