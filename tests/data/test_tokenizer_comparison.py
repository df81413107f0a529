"""The comparison of tokenizers: numbers that can be counted by hand."""

import pytest

from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.data.tokenizer_comparison import MEDICAL_TERMS, TokenizerComparison, read_terms
from megatron_yuyuan.errors import DataError

BYTES = train_bpe(iter(["a"]), 257)  # one token a byte
GOUT = train_bpe(iter([" gout gout gout"] * 4), 262)


class Lossy:
    """BYTES, but for small letters only."""

    vocab_size = 257

    def encode_batch(self, texts):
        return BYTES.encode_batch([text.lower() for text in texts])

    def decode(self, ids):
        return BYTES.decode(ids)


def test_measures_are_those_counted_by_hand():
    comparison = TokenizerComparison({"bytes": BYTES, "gout": GOUT}, ["gout", "β"])
    comparison.read(["Gout is gout.", " gout β", "7"])
    assert (comparison.documents, comparison.words) == (3, 6)
    assert (comparison.characters, comparison.num_bytes) == (21, 22)
    measures = comparison.measures()
    by_bytes, by_gout = measures["bytes"], measures["gout"]
    assert by_bytes.vocabulary == 257 and by_bytes.tokens_per_word == 22 / 6
    assert (by_bytes.bytes_per_token, by_bytes.characters_per_token) == (1, 21 / 22)
    assert (by_bytes.whole_word_share, by_bytes.changed_texts) == (0, 0)
    assert (by_bytes.terms, by_bytes.terms_of_one_token, by_bytes.tokens_per_term) == (2, 0, 4)
    assert [len(GOUT.encode(text)) for text in (" gout", "gout", " β")] == [1, 2, 3]
    assert by_gout.whole_word_share == 2 / 5  # gout twice, of Gout is gout gout β
    assert (by_gout.terms_of_one_token, by_gout.tokens_per_term) == (1, 2)
    assert by_gout.tokens_per_word < by_bytes.tokens_per_word


def test_what_does_not_come_back_is_seen():
    comparison = TokenizerComparison({"bytes": BYTES, "lossy": Lossy()})
    comparison.read(["gout", "Gout", "lupus", "Lupus is not gout"])
    assert [m.changed_texts for m in comparison.measures().values()] == [0, 2]


def test_batches_do_not_change_the_measures(monkeypatch):
    texts = ["gout", "Gout is gout", "lupus"]
    whole = TokenizerComparison({"gout": GOUT})
    whole.read(texts)
    monkeypatch.setattr(TokenizerComparison, "BATCH", 2)
    parts = TokenizerComparison({"gout": GOUT})
    parts.read(texts)
    assert parts.measures() == whole.measures()


def test_the_built_in_terms_are_words_each_once():
    assert 100 <= len(MEDICAL_TERMS) == len(set(MEDICAL_TERMS))
    assert all(term.isalpha() and term.islower() for term in MEDICAL_TERMS)


def test_texts_that_cannot_be_measured_are_refused():
    comparison = TokenizerComparison({"bytes": BYTES})
    with pytest.raises(DataError, match="surrogate pair"):
        comparison.read(["abc\ud800"])
    comparison = TokenizerComparison({"bytes": BYTES})
    comparison.read(["", " \n"])
    with pytest.raises(DataError, match="no word in the input"):
        comparison.measures()


def test_terms_are_read_by_the_line(tmp_path):
    (tmp_path / "terms.txt").write_text("gout\n\n  systemic lupus \n")
    assert read_terms(tmp_path / "terms.txt") == ["gout", "systemic lupus"]
    (tmp_path / "terms.txt").write_bytes(b"\xef\xbb\xbfgout\n")
    assert read_terms(tmp_path / "terms.txt") == ["gout"]
    (tmp_path / "terms.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_terms(tmp_path / "terms.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_terms(tmp_path / "absent.txt")
