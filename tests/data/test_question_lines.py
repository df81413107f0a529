"""Questions as lines: JSON, the seed's dictionaries, and a file of them in place of a shard."""

import json

import numpy as np
import pytest

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.medquad import QuestionAnswer, read_qa_jsonl
from megatron_yuyuan.data.qa_dataset import QADataset, show_sample
from megatron_yuyuan.data.question_file import QuestionFile
from megatron_yuyuan.data.sources import detect_format
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import DataError

SEED_FORM = """{'question':'What is gout?','answer':'A disease of joints.'}
{ 'question' : "What is Crohn's disease?", 'answer': 'It\\'s in the gut.\\nSee a doctor.', 'id': 3}

{"Question": "What is a cold?", "Answer": "A virus."}
"""
PAIRS = [
    QuestionAnswer("What is gout?", "A disease of joints."),
    QuestionAnswer("What is Crohn's disease?", "It's in the gut.\nSee a doctor."),
    QuestionAnswer("What is a cold?", "A virus."),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(iter(["Question:What is gout? answer: A disease of joints."] * 4), 280)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_the_seeds_dictionaries_are_read_as_json_is(tmp_path, mark):
    file = tmp_path / "qa.jsonl"
    file.write_text(mark + SEED_FORM, encoding="utf-8")
    assert list(read_qa_jsonl(file)) == PAIRS
    assert detect_format(file) == "qa-jsonl"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{'question': open('X', 'w'), 'answer': 'a'}", "Expecting property name"),
        ("{ 'question': open('X', 'w'), 'answer': 'a'}", "Expecting property name"),
        ("{'question': 'q', 'answer': ('a',)}", "Expecting property name"),
        ("{'question': 'q', 1: 'a'}", "Expecting property name"),
        ("{'question': 'q', 'answer': 'a'", "Expecting property name"),
        ("{'question', 'answer'}", "Expecting property name"),
        ("{'question': " + "(" * 5000, "Expecting property name"),
        ("{'question': 'q', 'answer': 'a\\U0000d800'}", "half of a surrogate pair"),
        ("{'question': 'q'}", "no key 'answer'"),
    ],
    ids=range(9),
)
def test_nothing_of_a_line_is_run_and_a_bad_one_is_named(tmp_path, monkeypatch, line, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qa.jsonl").write_text(SEED_FORM + line)
    with pytest.raises(DataError) as error:
        list(read_qa_jsonl("qa.jsonl"))
    assert "line 5: " in error.value.what and what in error.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["qa.jsonl"]


def test_a_file_is_read_as_the_shard_of_its_pairs(tmp_path, tokenizer):
    file = tmp_path / "qa.jsonl"
    file.write_text(
        SEED_FORM + json.dumps({"question": PAIRS[0].question, "answer": PAIRS[0].answer})
    )
    with IndexedDatasetWriter(tmp_path / "shard", np.uint16) as shard:
        for pair in PAIRS:  # the repeat is dropped
            prompt = TEMPLATE.encode_prompt(tokenizer, pair.question)
            shard.add_document([prompt, TEMPLATE.encode_answer(tokenizer, pair.answer)])
        shard.finish()
    pairs = [QuestionFile(file, tokenizer), IndexedDataset(tmp_path / "shard")]
    ours, theirs = (QADataset(shard, 64, tokenizer.eod, 1) for shard in pairs)
    assert len(ours) == len(theirs) == 3
    for number in range(6):
        for a, b in zip(ours[number], theirs[number], strict=True):
            assert a.tolist() == b.tolist()


def test_what_is_cut_is_counted_and_the_example_shows_what_is_learned(tmp_path, tokenizer):
    (tmp_path / "qa.jsonl").write_text(SEED_FORM)
    pairs = QuestionFile(tmp_path / "qa.jsonl", tokenizer)
    whole = QADataset(pairs, 64, tokenizer.eod, None)
    assert (whole.truncated, whole.unanswered, whole.describe()) == (0, 0, "3 pairs")
    longest = int(pairs.sequence_lengths[0::2].max())
    short = QADataset(pairs, longest - 1, tokenizer.eod, None)
    cut = [p + a > longest for p, a in pairs.sequence_lengths.reshape(-1, 2)]
    assert 0 < short.unanswered < short.truncated == sum(cut)
    assert short.describe() == (
        f"3 pairs; {sum(cut)} lose the end of their answer at {longest - 1} tokens, "
        f"{short.unanswered} of them all of it"
    )
    expected = "[[Question:What is gout? answer:]] A disease of joints.<|endoftext|>"
    assert show_sample(*whole[0], tokenizer) == expected


def test_the_prompt_is_learned_where_it_is_asked_for(tmp_path, tokenizer):
    (tmp_path / "qa.jsonl").write_text(SEED_FORM)
    pairs = QuestionFile(tmp_path / "qa.jsonl", tokenizer)
    tokens, labels = QADataset(pairs, 64, tokenizer.eod, None, loss_on_prompt=True)[0]
    count = sum(pairs.sequence_lengths[:2]) - 1
    assert labels[:count].tolist() == [*tokens[1:count], tokenizer.eod]
    assert (labels[count:] == IGNORE).all()
    shown = show_sample(tokens, labels, tokenizer)
    assert shown.replace("[[", "").replace("]]", "").startswith("Question:What is gout? answer: A")
    assert shown.index("]]") < 12  # the first token alone
