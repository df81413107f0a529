"""tools/train_tokenizer.py: the same texts give the same files, and nobody's tokenizer is replaced."""

from commands import ROOT, SAMPLE_DATA, run

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
