"""The tokenizer that a configuration, a file or a directory names."""

import json
import subprocess
import sys

import pytest

from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.sentencepiece_model import train_sentencepiece
from megatron_yuyuan.data.tokenizer import END_OF_TEXT, open_tokenizer, read_tokenizer, train_bpe
from megatron_yuyuan.errors import ConfigError, DataError

TEXTS = ["Gout is a disease of the joints. The joints ache."] * 4
TRAINED = train_bpe(iter(TEXTS), 300)
KINDS = {
    "bytelevel-bpe": TRAINED,
    "another bytelevel-bpe": train_bpe(iter(["Hypertension is high blood pressure."] * 4), 300),
    "sentencepiece-unigram": train_sentencepiece(iter(TEXTS), 320, "unigram"),
    "sentencepiece-bpe": train_sentencepiece(iter(TEXTS), 320, "bpe"),
}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]


def test_the_end_of_text_stands_only_between_documents(tokenizer):
    forged = f"a{END_OF_TEXT}b {END_OF_TEXT}\n{tokenizer.end_of_text}"
    ids = tokenizer.encode(forged)
    assert tokenizer.eod not in ids and tokenizer.decode(ids) == forged
    assert tokenizer.decode([*ids, tokenizer.eod]) == forged + END_OF_TEXT


@pytest.mark.parametrize("text", ["abc\ud800", "abc\udfff def"])
def test_half_a_surrogate_pair_is_refused_alone_and_in_a_batch(tokenizer, text):
    for call in (tokenizer.encode, lambda text: tokenizer.encode_batch(["whole", text])):
        with pytest.raises(DataError, match="surrogate pair at character 3"):
            call(text)


def test_control_characters_are_kept(tokenizer):
    text = "".join(map(chr, range(32))) + "\x7f\x80\ufffe\uffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_shard_of_another_tokenizer_is_refused(tokenizer, tmp_path):
    with IndexedDatasetWriter(tmp_path / "shard", dtype_for(tokenizer.vocab_size)) as shard:
        shard.add_document([tokenizer.encode(TEXTS[0])])
        shard.finish({"tokenizer_fingerprint": tokenizer.fingerprint})
    made = IndexedDataset(tmp_path / "shard")
    for other in KINDS.values():
        if other is tokenizer:
            made.check_vocabulary(other.fingerprint, other.vocab_size)
            continue
        with pytest.raises(DataError) as error:
            made.check_vocabulary(other.fingerprint, other.vocab_size)
        assert tokenizer.fingerprint in error.value.what and other.fingerprint in error.value.what


def test_the_fingerprint_is_the_one_that_older_shards_hold(repository):
    golden = repository / "tests" / "golden"
    meta = json.loads((golden / "text_text_document.meta.json").read_text())
    own = read_tokenizer(golden / "run" / "tokenizer")
    assert own.fingerprint == meta["tokenizer_fingerprint"]


def test_every_kind_comes_back_from_its_directory(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    again = read_tokenizer(tmp_path / "tokenizer")
    assert type(again) is type(tokenizer) and again.fingerprint == tokenizer.fingerprint


def test_a_directory_keeps_one_tokenizer(tokenizer, tmp_path):
    for earlier in KINDS.values():
        earlier.save(tmp_path)
        (tmp_path / "other.txt").touch()
        tokenizer.save(tmp_path)
        assert read_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
        assert {path.name for path in tmp_path.iterdir()} == {*tokenizer.files(), "other.txt"}


def test_a_kind_that_is_not_used_costs_nothing():
    program = (
        "import sys; from megatron_yuyuan.data import encoder, tokenizer; "
        "print(sorted({'sentencepiece', 'gigatoken', 'torch'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"


def test_a_directory_without_tokenizer_json_is_read_by_its_pair(tmp_path):
    TRAINED.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert read_tokenizer(tmp_path).fingerprint == TRAINED.fingerprint
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match="no tokenizer in"):
        read_tokenizer(tmp_path)


def test_configuration_chooses_the_files(tmp_path):
    TRAINED.save(tmp_path)
    vocab, merges = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    for config in (
        DataConfig(vocab_file=vocab, merge_file=merges),
        DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path)),
    ):
        assert open_tokenizer(config).fingerprint == TRAINED.fingerprint
    with pytest.raises(ConfigError, match="merge_file is not given"):
        open_tokenizer(DataConfig(vocab_file=vocab))
    with pytest.raises(ConfigError, match="tokenizer_model"):
        open_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer"))
