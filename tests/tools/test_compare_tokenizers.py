"""tools/compare_tokenizers.py: a table a person reads, a report a program reads."""

import json

import pytest
from commands import SAMPLE_DATA

from megatron_yuyuan.data.sentencepiece_model import train_sentencepiece
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.data.tokenizer_comparison import MEDICAL_TERMS

TEXTS = ["Gout is a disease of the joints. The joints ache."] * 4
INPUT = ("--input", SAMPLE_DATA / "pubmed_sample.xml")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with two tokenizers, bytes/ and pieces.model."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_bpe(iter(TEXTS), 257).save(folder / "bytes")
    model = train_sentencepiece(iter(TEXTS), 320).files()["tokenizer.model"]
    (folder / "pieces.model").write_bytes(model)
    return folder


def test_the_table_and_the_report_say_the_same(command, kept, tmp_path, capsys):
    (tmp_path / "terms.txt").write_text("joints\ngout\n")
    command("compare_tokenizers", *INPUT, "--tokenizer", f"bytes={kept / 'bytes'}",
            "--tokenizer", f"pieces={kept / 'pieces.model'}", "--documents", 50,
            "--terms", tmp_path / "terms.txt", "--output", tmp_path / "report.json")  # fmt: skip
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["format"] == "megatron_yuyuan tokenizer comparison 1"
    assert (report["documents"], report["sources"]) == (50, ["pubmed_sample.xml"])
    by_bytes, pieces = report["tokenizers"]["bytes"], report["tokenizers"]["pieces"]
    assert by_bytes["bytes_per_token"] == 1
    assert by_bytes["changed_texts"] == pieces["changed_texts"] == 0
    assert pieces["tokens_per_word"] < by_bytes["tokens_per_word"]
    assert by_bytes["terms"] == len(MEDICAL_TERMS) + 2
    assert pieces["terms_of_one_token"] >= 1 > by_bytes["terms_of_one_token"]
    for measured in (by_bytes, pieces):
        assert f"{measured['tokens_per_word']:.3f}" in shown
        assert f"{measured['tokens_per_term']:.2f}" in shown
    assert "bytes" in shown and "pieces" in shown
    assert f"50 documents, {report['words']:,} words" in shown


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--tokenizer", "bytes"), "--tokenizer bytes is not a new NAME=PATH"),
        (("--tokenizer", "=x"), "--tokenizer =x is not a new NAME=PATH"),
        (("--tokenizer", "x=absent"), "cannot read absent"),
        (("--tokenizer", "{0}", "--tokenizer", "{0}"), "is not a new NAME=PATH"),
        (("--tokenizer", "{0}", "--documents", "0"), "documents=0 leaves nothing to compare"),
        (("--tokenizer", "{0}", "--terms", "absent.txt"), "cannot read absent.txt"),
        ((), "--tokenizer"),
    ],
)
def test_what_cannot_be_compared_is_refused(refused, kept, flags, what):
    flags = [flag.format(f"bytes={kept / 'bytes'}") for flag in flags]
    assert what in refused("compare_tokenizers", *INPUT, *flags)
