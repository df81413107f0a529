"""tools/train_tokenizer.py: the same texts give the same files, and nobody's tokenizer is replaced."""

import pytest
from commands import ROOT, SAMPLE_DATA, run

from megatron_yuyuan.data.tokenizer import read_tokenizer, train_bpe

TOOL = ROOT / "tools" / "train_tokenizer.py"


def test_another_tokenizer_is_not_replaced(tmp_path):
    flags = ("--input", SAMPLE_DATA / "medquad_train.xml", "--output-dir", tmp_path)
    run(TOOL, *flags, "--vocab-size", 300)
    before = (tmp_path / "tokenizer.json").read_bytes()
    run(TOOL, *flags, "--vocab-size", 300)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    ended = run(TOOL, *flags, "--vocab-size", 310, status=2)
    assert "holds another tokenizer" in ended.stderr
    assert (tmp_path / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("model_type", ["sentencepiece-unigram", "sentencepiece-bpe"])
def test_sentencepiece_is_learned_written_and_not_replaced(command, refused, tmp_path, model_type):
    flags = ("--input", SAMPLE_DATA / "medquad_train.xml", "--output-dir", tmp_path / "tokenizer")
    command("train_tokenizer", *flags, "--model-type", model_type, "--vocab-size", 400)
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.model"]
    learned = read_tokenizer(tmp_path / "tokenizer")
    assert learned.vocab_size == 400
    text = "What are the symptoms of gout?\n\n  Pain."
    assert learned.decode(learned.encode(text)) == text
    assert "holds another tokenizer" in refused("train_tokenizer", *flags, "--vocab-size", 300)
    assert read_tokenizer(tmp_path / "tokenizer").fingerprint == learned.fingerprint


def test_too_few_pieces_are_refused_with_the_least_that_will_do(refused, tmp_path):
    said = refused("train_tokenizer", "--input", SAMPLE_DATA / "medquad_train.xml",
                   "--model-type", "sentencepiece-bpe", "--vocab-size", 260,
                   "--output-dir", tmp_path / "tokenizer")  # fmt: skip
    assert "vocab_size=260 is too small" in said and "try: --vocab-size 3" in said
    assert not (tmp_path / "tokenizer").exists()


def test_a_gpt2_pair_is_not_replaced_either(refused, tmp_path):
    train_bpe(iter(["gout water"] * 4), 270).save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    said = refused("train_tokenizer", "--input", SAMPLE_DATA / "medquad_train.xml",
                   "--vocab-size", 300, "--output-dir", tmp_path)  # fmt: skip
    assert "holds another tokenizer" in said
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
