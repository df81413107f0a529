"""The commands that prepare data: their outputs, and errors that leave nothing behind."""

import gzip
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_yuyuan.data.files import hold
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.medquad import read_qa_jsonl
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer, train_bpe

TOOLS = Path(__file__).parents[2] / "tools"
ARTICLE = (
    "<PubmedArticle><MedlineCitation><PMID>{n}</PMID><Article><ArticleTitle>Title {n}.</ArticleTitle>"
    "<Abstract><AbstractText>Gout number {n}.</AbstractText></Abstract></Article>"
    "</MedlineCitation></PubmedArticle>\n"
)
PUBMED = (
    "<PubmedArticleSet>\n"
    + "".join(ARTICLE.format(n=n) for n in range(1500))
    + "</PubmedArticleSet>"
)
PAGE = (
    '<Document id="{n}" source="S"><Focus>F{n}</Focus><QAPairs><QAPair><Question qtype="x">What is F{n} ?'
    "</Question><Answer>It is {n}.</Answer></QAPair><QAPair><Question>Why F{n} ?</Question><Answer/>"
    "</QAPair></QAPairs></Document>\n"
)
MEDQUAD = "<all>\n" + "".join(PAGE.format(n=n) for n in range(200)) + "</all>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> tuple[Tokenizer, list[str]]:
    """A small tokenizer and the flags that name it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_bpe(iter([PUBMED, MEDQUAD]), 300)
    tokenizer.save(folder)
    return tokenizer, [
        "--vocab-file",
        str(folder / "vocab.json"),
        "--merge-file",
        str(folder / "merges.txt"),
    ]


def run(tool, *args):
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_pubmed_becomes_one_shard_whatever_the_workers(tmp_path, tokenizer):
    ours, flags = tokenizer
    file = tmp_path / "pubmed.xml.gz"
    file.write_bytes(gzip.compress(PUBMED.encode(), mtime=0))
    for workers in (1, 3):
        done = run(
            "preprocess_data",
            "--input",
            file,
            "--output_prefix",
            tmp_path / f"out{workers}/p",
            "--append-eod",
            "--workers",
            workers,
            *flags,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "1500 documents" in done.stdout and "dropped              0" in done.stdout
    names = ["p_text_document.bin", "p_text_document.idx", "p_text_document.meta.json"]
    assert sorted(path.name for path in (tmp_path / "out1").iterdir()) == names
    for name in names:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes()

    shard = IndexedDataset(tmp_path / "out1/p_text_document")
    shard.check_vocabulary(ours.fingerprint, ours.vocab_size)
    expected = [*ours.encode("Title 7.\nGout number 7."), ours.eod]
    assert [sequence.tolist() for sequence in shard.document(7)] == [expected]
    assert shard.dtype == np.uint16 and shard.meta["sources"][0]["file"] == "pubmed.xml.gz"
    assert shard.meta["kind"] == "text" and shard.meta["append_eod"] is True


def test_a_key_of_jsonl_becomes_a_shard(tmp_path, tokenizer):
    ours, flags = tokenizer
    file = tmp_path / "a.jsonl"
    file.write_text('{"title": "T", "body": "B <|endoftext|>"}\n{"title": "U", "body": ""}\n')
    done = run(
        "preprocess_data",
        "--input",
        tmp_path,
        "--output-prefix",
        tmp_path / "p",
        "--json-keys",
        "title",
        "body",
        *flags,
    )
    assert done.returncode == 0, done.stderr
    assert "1  no text" in done.stdout and "--append-eod" in done.stdout
    assert IndexedDataset(tmp_path / "p_title_document").num_documents == 2
    (body,) = IndexedDataset(tmp_path / "p_body_document").document(0)
    assert body.tolist() == ours.encode("B <|endoftext|>") and ours.eod not in body


def test_medquad_becomes_three_splits_of_prompts_and_answers(tmp_path, tokenizer):
    ours, flags = tokenizer
    file = tmp_path / "m.xml"
    file.write_text(MEDQUAD)
    done = run(
        "preprocess_data",
        "--input",
        file,
        "--output-prefix",
        tmp_path / "m",
        "--split",
        "2,1,1",
        *flags,
    )
    assert done.returncode == 0, done.stderr
    assert "200  no answer" in done.stdout
    total = 0
    for split in ("train", "valid", "test"):
        shard = IndexedDataset(tmp_path / f"m_{split}_qa_document")
        pairs = list(read_qa_jsonl(tmp_path / f"m_{split}.jsonl"))
        assert shard.num_documents == len(pairs) > 0 and shard.num_sequences == 2 * len(pairs)
        prompt, answer = shard.document(0)
        assert ours.decode(prompt) == f"Question:{pairs[0].question} answer:"
        assert ours.decode(answer) == f" {pairs[0].answer}<|endoftext|>"
        assert QuestionTemplate.from_dict(shard.meta["template"]) == TEMPLATE
        total += len(pairs)
    assert total == 200

    done = run(
        "preprocess_data",
        "--input",
        tmp_path / "m_valid.jsonl",
        "--output-prefix",
        tmp_path / "q",
        *flags,
    )
    assert done.returncode == 0, done.stderr
    again, before = (tmp_path / name for name in ("q_qa_document.bin", "m_valid_qa_document.bin"))
    assert again.read_bytes() == before.read_bytes()


def test_an_empty_split_writes_no_shard_and_says_so(tmp_path, tokenizer):
    (tmp_path / "m.xml").write_text(MEDQUAD)
    done = run(
        "preprocess_data",
        "--input",
        tmp_path / "m.xml",
        "--output-prefix",
        tmp_path / "m",
        "--split",
        "90,10,0",
        *tokenizer[1],
    )
    assert done.returncode == 0 and "test is empty: no shard\n" in done.stdout
    assert not list(tmp_path.glob("m_test*"))


def test_an_empty_part_takes_its_older_files_away(tmp_path, tokenizer):
    (tmp_path / "m.xml").write_text(MEDQUAD)
    (tmp_path / "m_test.txt").write_text("not ours")
    command = ["preprocess_data", "--input", tmp_path / "m.xml", "--output-prefix", tmp_path / "m"]
    assert run(*command, "--split", "1,0,1", *tokenizer[1]).returncode == 0
    assert len(list(tmp_path.glob("m_test*"))) == 5
    done = run(*command, "--split", "1,0,0", *tokenizer[1])
    assert done.returncode == 0, done.stderr
    assert "valid is empty: no shard\n" in done.stdout
    assert "test is empty: no shard; removed m_test_qa_document.idx, m_test" in done.stdout
    assert [path.name for path in tmp_path.glob("m_test*")] == ["m_test.txt"]
    assert IndexedDataset(tmp_path / "m_train_qa_document").num_documents == 200


def test_an_input_is_not_taken_for_an_older_file(tmp_path, tokenizer):
    file = tmp_path / "m_test.jsonl"
    file.write_text('{"question": "Why?", "answer": "Because."}\n')
    flags = ("--output-prefix", tmp_path / "m", "--split", "1,0,0", *tokenizer[1])
    done = run("preprocess_data", "--input", file, *flags)
    assert done.returncode == 0 and file.exists(), done.stderr


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(tmp_path, tokenizer):
    (tmp_path / "p.xml").write_text(PUBMED)
    flags = ("--output-prefix", tmp_path / "p", "--log-interval", 600, *tokenizer[1])
    done = run("preprocess_data", "--input", tmp_path / "p.xml", *flags)
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["1000", "1500"], done.stderr
    assert all(line.endswith(f"now {tmp_path / 'p.xml'}") for line in lines)


def test_a_bar_is_shown_on_a_terminal(tmp_path, tokenizer):
    (tmp_path / "p.xml").write_text(PUBMED)
    master, terminal = pty.openpty()
    command = [sys.executable, TOOLS / "preprocess_data.py", "--input", tmp_path / "p.xml"]
    command += ["--output-prefix", tmp_path / "p", *tokenizer[1]]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=False)
    shown = os.read(master, 1 << 16).decode()
    assert done.returncode == 0 and "100 %" in shown and "1500 documents" in shown


def test_tasks_share_the_work_and_the_same_command_without_them_ends_it(tmp_path, tokenizer):
    for n in range(3):
        (tmp_path / f"{n}.xml").write_text(PUBMED.replace("Gout", f"Gout {n}"))
    command = ["preprocess_data", "--input", tmp_path, "--append-eod", *tokenizer[1]]
    assert run(*command, "--output-prefix", tmp_path / "whole").returncode == 0
    for index in (1, 0):
        tasks = ("--num-tasks", 2, "--task-index", index)
        done = run(*command, "--output-prefix", tmp_path / "tasks", *tasks)
        assert done.returncode == 0 and f"task {index} of 2" in done.stdout, done.stderr
        assert not list(tmp_path.glob("tasks_*"))
    done = run(*command, "--output-prefix", tmp_path / "tasks")
    assert done.returncode == 0 and done.stderr.startswith("resuming: 1 of 1 units")
    for end in ("bin", "idx", "meta.json"):
        whole, tasks = (tmp_path / f"{name}_text_document.{end}" for name in ("whole", "tasks"))
        assert whole.read_bytes() == tasks.read_bytes()


def test_filters_and_bad_files_are_reported_by_reason(tmp_path, tokenizer):
    more = "<Language>fre</Language></Article>"
    foreign = ARTICLE.format(n=9001).replace("</Article>", more)
    title_only = re.sub("<Abstract>.*</Abstract>", "", ARTICLE.format(n=9002))
    (tmp_path / "a.xml").write_text(
        PUBMED.replace("</PubmedArticleSet>", foreign + title_only + "</PubmedArticleSet>")
    )
    (tmp_path / "b.xml").write_text(PUBMED[:-9])
    command = [
        "preprocess_data",
        "--input",
        tmp_path,
        "--output-prefix",
        tmp_path / "p",
        *tokenizer[1],
    ]
    done = run(*command)
    assert done.returncode == 2 and "b.xml" in done.stderr.splitlines()[0]
    assert [path.name for path in tmp_path.glob("p*")] == ["p.partial"]
    done = run(*command, "--skip-bad-files")
    assert done.returncode == 0, done.stderr
    assert "1  other language" in done.stdout and "1  no abstract" in done.stdout
    assert f"skipped   {tmp_path / 'b.xml'}" in done.stdout and "1500 documents" in done.stdout
    report = IndexedDataset(tmp_path / "p_text_document").meta["report"]
    assert report["dropped"] == {"no abstract": 1, "other language": 1}
    assert report["bad_files"][0]["file"] == str(tmp_path / "b.xml")
    done = run(*command, "--skip-bad-files", "--languages", "any", "--keep-title-only")
    assert "1502 documents" in done.stdout and "dropped              0" in done.stdout


@pytest.mark.parametrize(
    "flag", [("--languages", "fre"), ("--keep-retracted",)], ids=lambda f: f[0]
)
def test_what_chooses_among_articles_is_refused_for_plain_texts(tmp_path, tokenizer, flag):
    (tmp_path / "t.jsonl").write_text('{"text": "gout"}\n')
    where = ("--input", tmp_path / "t.jsonl", "--output-prefix", tmp_path / "p")
    done = run("preprocess_data", *where, *tokenizer[1], *flag)
    assert done.returncode == 2 and f"{flag[0]}: not for these texts" in done.stderr


@pytest.mark.parametrize(
    ("flag", "status"),
    [(("--languages", "fre"), 2), (("--keep-title-only",), 2), (("--keep-retracted",), 0)],
    ids=lambda f: f[0] if isinstance(f, tuple) else "",
)
def test_of_full_texts_only_retracted_ones_are_known(tmp_path, tokenizer, flag, status):
    article = "<article><front><article-meta><title-group><article-title>Gout</article-title></title-group>"
    article += (
        "</article-meta></front><body><p>Gout is a disease of the joints.</p></body></article>"
    )
    (tmp_path / "PMC1.nxml").write_text(article)
    where = ("--input", tmp_path / "PMC1.nxml", "--output-prefix", tmp_path / "p")
    done = run("preprocess_data", *where, *tokenizer[1], *flag)
    assert done.returncode == status, done.stderr
    assert (f"{flag[0]}: not for these texts" in done.stderr) == (status == 2)


def test_a_bad_file_of_questions_can_be_left_out(tmp_path, tokenizer):
    (tmp_path / "m.xml").write_text(MEDQUAD)
    (tmp_path / "n.xml").write_text(MEDQUAD.replace("F", "G")[:-9])
    (tmp_path / "o.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + MEDQUAD)
    (tmp_path / "p.xml").write_text(MEDQUAD.replace("F", "H"))
    (tmp_path / "p.xml.md5").write_text("0" * 32)
    command = [
        "preprocess_data",
        "--input",
        tmp_path,
        "--output-prefix",
        tmp_path / "m",
        *tokenizer[1],
    ]
    done = run(*command)
    assert done.returncode == 2 and "n.xml" in done.stderr and not list(tmp_path.glob("m_*"))
    done = run(*command, "--skip-bad-files")
    assert done.returncode == 0 and f"skipped   {tmp_path / 'n.xml'}" in done.stdout, done.stderr
    shard = IndexedDataset(tmp_path / "m_train_qa_document")
    assert [source["file"] for source in shard.meta["sources"]] == ["m.xml"]


def test_of_six_records_two_survive(tmp_path, tokenizer):
    """Row D10: empty, title only, retracted and withdrawn records are counted by reason."""
    records = [ARTICLE.format(n=n) for n in range(6)]
    records[1] = re.sub("<Abstract>.*</Abstract>", "", records[1])
    records[2] = re.sub("<AbstractText>.*</AbstractText>", "<AbstractText/>", records[2])
    records[3] = records[3].replace("Title 3.", "WITHDRAWN: Title 3.")
    kinds = "<PublicationTypeList><PublicationType>Retracted Publication</PublicationType>"
    records[4] = records[4].replace("</Article>", f"{kinds}</PublicationTypeList></Article>")
    (tmp_path / "a.xml").write_text(f"<PubmedArticleSet>{''.join(records)}</PubmedArticleSet>")
    flags = ("--output-prefix", tmp_path / "p", "--append-eod", *tokenizer[1])
    done = run("preprocess_data", "--input", tmp_path / "a.xml", *flags)
    assert done.returncode == 0, done.stderr
    shard = IndexedDataset(tmp_path / "p_text_document")
    assert shard.meta["report"]["dropped"] == {"no abstract": 2, "retracted": 2}
    assert (shard.tokens(0, shard.num_tokens) == tokenizer[0].eod).sum() == shard.num_documents == 2


def test_two_processes_do_not_write_the_same_outputs(tmp_path, tokenizer):
    (tmp_path / "a.xml").write_text(PUBMED)
    command = ["preprocess_data", "--input", tmp_path / "a.xml", "--output-prefix", tmp_path / "p"]
    task = ("--num-tasks", 2, "--task-index", 1)
    with hold(tmp_path / "p.partial", shared=True):
        assert run(*command, *task, *tokenizer[1]).returncode == 0
        done = run(*command, *tokenizer[1])
    assert done.returncode == 2 and "p.partial is in use by another process" in done.stderr
    with hold(tmp_path / "p.partial", shared=False):
        assert "is in use" in run(*command, *task, *tokenizer[1]).stderr
    assert run(*command, *tokenizer[1]).returncode == 0


def test_a_signal_to_stop_ends_with_the_status_for_starting_again(tmp_path, tokenizer):
    lines = "".join(json.dumps({"text": f"{n} " * 2000}) + "\n" for n in range(20_000))
    (tmp_path / "a.jsonl").write_text(lines)
    command = [sys.executable, TOOLS / "preprocess_data.py", "--input", tmp_path / "a.jsonl"]
    command += ["--output-prefix", tmp_path / "p", "--encoder", "reference", *tokenizer[1]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "p.partial" / "text").exists():
        assert process.poll() is None
    process.terminate()
    assert process.communicate()[1].startswith("error: stopped by SIGTERM\n  why: ")
    assert process.returncode == 75


def test_a_full_disk_is_said_in_one_message(tmp_path, tokenizer):
    """Row D07: a limit on the size of a file stands for a disk that is full."""
    lines = "".join(json.dumps({"text": f"{n} " * 400}) + "\n" for n in range(4000))
    (tmp_path / "a.jsonl").write_text(lines)
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    script = limit + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(TOOLS / "preprocess_data.py"), "--input"]
    command += [str(tmp_path / "a.jsonl"), "--output-prefix", str(tmp_path / "p"), *tokenizer[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cannot write" in done.stderr, done.stderr
    assert "File too large" in done.stderr.splitlines()[0] and len(done.stderr.splitlines()) == 3
    assert not list(tmp_path.glob("p_*"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_the_tokenizer_flags_are_those_of_the_configuration():
    shown = " ".join(run("preprocess_data", "--help").stdout.split())
    assert (
        "--tokenizer-type {GPT2BPETokenizer,HuggingFaceTokenizer,SentencePieceTokenizer}" in shown
    )
    assert (
        "--vocab-file STR GPT-2's vocab.json (also called encoder.json). (default: none)" in shown
    )
    assert "--merge-file STR" in shown and "--tokenizer-model STR" in shown


BAD = {
    "wrong path": (None, "cannot read"),
    "empty file": (b"", "is empty"),
    "truncated gzip": (
        gzip.compress(PUBMED.encode(), mtime=0)[:-100],
        "compressed stream ends early",
    ),
    "malformed XML": (PUBMED.replace("Gout number 1400.", "<b>").encode(), "PMID 1399"),
    "JSONL line without the key": (
        b'{"text": "a"}\n' * 1200 + b'{"txt": "a"}\n',
        "line 1201: no key 'text'",
    ),
    "JSONL line that is no JSON": (b'{"text": "a"}\n{"text": \n', "line 2"),
    "zero documents": (b'{"text": ""}\n', "no document in"),
    "entities": (b'<!DOCTYPE a [<!ENTITY b "c">]>' + PUBMED.encode(), "declares XML entities"),
    "a version below zero": (
        PUBMED.replace("<PMID>", '<PMID Version="-1">')
        .replace(">7<", f">{'7' * 30}<")
        .encode()[:-9],
        "not well-formed",
    ),
    "of no known kind": (b"PMID- 1\nTI - Gout\n", "neither PubMed, PMC or MedQuAD XML"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_is_three_lines_and_leaves_what_is_done_at_most(tmp_path, tokenizer, name):
    content, what = BAD[name]
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "input"
    if content is not None:
        file.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    done = run(
        "preprocess_data",
        "--input",
        file,
        "--output-prefix",
        tmp_path / "new/folder/p",
        *tokenizer[1],
    )
    assert done.returncode == 2
    first, second, third = done.stderr.splitlines()
    assert first.startswith("error: ") and what in first
    assert second.startswith("  why: ") and third.startswith("  try: ")
    left = {path.name for path in set(tmp_path.rglob("*")).difference(before)}
    nothing_yet = {"new", "folder", "p.partial", "text", "lock"}
    assert left <= nothing_yet or name == "zero documents"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--input", "{dir}"], "--output-prefix"),
        (
            ["--input", "{dir}", "--output-prefix", "{dir}/p"],
            "vocab_file and merge_file are not given",
        ),
        (["--input", "{dir}", "--output-prefix", "{dir}/p", "{flags}"], "holds texts"),
        (
            ["--input", "{dir}", "--output-prefix", "{dir}/p", "--split", "1,2"],
            "three whole shares",
        ),
        (["--input", "{dir}", "--output-prefix", "{dir}/p", "--worker", "2"], "argument --worker"),
        (["--input", "{dir}", "--output-prefix", "{dir}/p", "--workers", "-1"], "workers=-1"),
        (
            ["--input", "{dir}", "--output-prefix", "{dir}/p", "--log-interval", "-1"],
            "log_interval=-1",
        ),
        (
            [*"--input {dir}/a.jsonl --output-prefix {dir}/p --split 9,1,0".split(), "{flags}"],
            "--split is given, and",
        ),
    ],
)
def test_a_bad_command_line_is_named(tmp_path, tokenizer, args, what):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "b.xml").write_text(MEDQUAD)
    words = [word.replace("{dir}", str(tmp_path)) for word in args if word != "{flags}"]
    done = run("preprocess_data", *words, *(tokenizer[1] if "{flags}" in args else []))
    assert done.returncode == 2 and what in done.stderr.splitlines()[0]
    assert len(list(tmp_path.iterdir())) == 2


def test_train_tokenizer_writes_what_preprocess_data_reads(tmp_path):
    (tmp_path / "m.xml").write_text(MEDQUAD)
    folder = tmp_path / "tokenizer"
    done = run(
        "train_tokenizer",
        "--input",
        tmp_path / "m.xml",
        "--vocab-size",
        290,
        "--output-dir",
        folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "290 tokens from 200 documents" in done.stdout
    assert read_tokenizer(folder).vocab_size == 290
    done = run(
        "preprocess_data",
        "--input",
        tmp_path / "m.xml",
        "--output-prefix",
        tmp_path / "m",
        "--tokenizer-type",
        "HuggingFaceTokenizer",
        "--tokenizer-model",
        folder,
    )
    assert done.returncode == 0, done.stderr
    done = run(
        "train_tokenizer",
        "--input",
        tmp_path / "none",
        "--vocab-size",
        290,
        "--output-dir",
        tmp_path / "x",
    )
    assert done.returncode == 2 and "cannot read" in done.stderr and not (tmp_path / "x").exists()


def test_a_first_file_that_is_bad_does_not_undo_the_division(tmp_path, tokenizer):
    (tmp_path / "a.xml").write_bytes(b"")
    (tmp_path / "m.xml").write_text(MEDQUAD)
    done = run("preprocess_data", "--input", tmp_path, "--output-prefix", tmp_path / "m",
               "--skip-bad-files", *tokenizer[1])  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "m_train_qa_document.idx").exists(), done.stdout
    assert not (tmp_path / "m_qa_document.idx").exists()


def test_an_input_is_not_replaced_by_a_part_of_it(tmp_path, tokenizer):
    file = tmp_path / "m_train.jsonl"
    lines = (f'{{"question": "Q{n}?", "answer": "A."}}\n' for n in range(40))
    file.write_text("".join(lines))
    before = file.read_bytes()
    done = run("preprocess_data", "--input", file, "--output-prefix", tmp_path / "m",
               "--split", "1,1,1", *tokenizer[1])  # fmt: skip
    assert done.returncode == 2 and "is an input, and would be replaced" in done.stderr
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
