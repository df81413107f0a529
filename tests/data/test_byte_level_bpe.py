"""Byte-level BPE: GPT-2's ids, an end of text no text can forge, files that transformers load."""

import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_yuyuan.data.byte_level_bpe import ByteLevelBPE, train_bpe
from megatron_yuyuan.data.tokenizer_base import END_OF_TEXT
from megatron_yuyuan.errors import ConfigError, DataError

TEXTS = ["Gout is a disease of the joints. The joints ache.", "naïve β-cells, 37 °C\n\n  µg"] * 4
TRAINED = train_bpe(iter(TEXTS), 300)


@pytest.fixture(scope="session")
def gpt2(real_data) -> ByteLevelBPE:
    folder = real_data / "gpt2_vocab"
    return ByteLevelBPE.from_gpt2(folder / "encoder.json", folder / "vocab.bpe")


def test_gpt2_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eod) == (50257, 50256)
    assert gpt2.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.fingerprint == "a57a62dc1129bcacabd1fdaf6bba1ecdb18d0c62b8bf410d55f50ce76a9a278c"


def test_ids_of_real_abstracts_are_those_of_transformers(gpt2, real_data, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference")
    gpt2.save(tmp_path)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    with gzip.open(real_data / "pubmed_text" / "abstracts.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["abstract"] for line, _ in zip(lines, range(2000), strict=False)]
    ours = gpt2.encode_batch(texts)
    assert ours == theirs(texts)["input_ids"]
    assert [gpt2.decode(ids) for ids in ours] == texts
    assert sum(map(len, ours)) > 100_000  # not vacuous


@settings(deadline=None)
@given(st.text())
def test_decode_inverts_encode(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@settings(deadline=None)
@given(st.text(), st.text())
def test_no_text_yields_the_end_of_text(before, after):
    assert TRAINED.eod not in TRAINED.encode(before + END_OF_TEXT + after)


def test_a_batch_is_its_texts():
    texts = [*TEXTS, "", " ", END_OF_TEXT]
    assert TRAINED.encode_batch(texts) == [TRAINED.encode(text) for text in texts]


def test_training_puts_the_end_of_text_last_and_is_repeatable():
    assert TRAINED.eod == TRAINED.vocab_size - 1 == 299
    program = (
        "from megatron_yuyuan.data.byte_level_bpe import train_bpe; "
        f"print(train_bpe(iter({TEXTS!r}), 300).fingerprint)"
    )
    again = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert again.stdout.strip() == TRAINED.fingerprint
    assert train_bpe(iter(["another text"]), 300).fingerprint != TRAINED.fingerprint
    with pytest.raises(ConfigError, match="vocab_size=256"):
        train_bpe(iter(TEXTS), 256)


def test_saved_files_come_back_equal_here_and_in_transformers(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers to load the files"
    )
    TRAINED.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["merges.txt", "tokenizer.json", "vocab.json"]
    pairs = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    for same in (
        ByteLevelBPE.from_json(tmp_path / "tokenizer.json"),
        ByteLevelBPE.from_gpt2(*pairs),
    ):
        assert (same.fingerprint, same.eod) == (TRAINED.fingerprint, TRAINED.eod)
        assert same.encode_batch([*TEXTS, END_OF_TEXT]) == TRAINED.encode_batch(
            [*TEXTS, END_OF_TEXT]
        )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"):
        theirs = getattr(transformers, name).from_pretrained(tmp_path)
        assert theirs(TEXTS)["input_ids"] == TRAINED.encode_batch(TEXTS)


@pytest.mark.parametrize("call", [TRAINED.encode, lambda text: train_bpe(iter([text]), 300)])
def test_half_a_surrogate_pair_is_refused(call):
    with pytest.raises(DataError, match="surrogate pair at character 3"):
        call("abc\ud800")


@pytest.mark.parametrize(
    ("vocab", "merges", "what"),
    [
        (None, "", "cannot read"),
        ("{", "", "not JSON"),
        ("[1]", "", "not a vocabulary"),
        ('{"a": "b"}', "", "not a vocabulary"),
        ('{"a": 0, "b": 1}', "", "no token <|endoftext|>"),
        ('{"a": 0, "<|endoftext|>": 2}', "", "ids are not 0 to 1"),
        ('{"a": 0, "<|endoftext|>": 1}', "a b c", "not a list of merges"),
        ('{"a": 0, "<|endoftext|>": 1}', "a x", "do not fit together"),
        ('{"a": 0, "<|endoftext|>": 1}', None, "cannot read"),
    ],
)
def test_unusable_gpt2_files_are_refused(tmp_path, vocab, merges, what):
    for name, text in (("vocab.json", vocab), ("merges.txt", merges)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        ByteLevelBPE.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert what in error.value.what


def test_unusable_tokenizer_json_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="cannot read"):
        ByteLevelBPE.from_json(file)
    for text, what in (("{", "not JSON"), ('{"x": 1}', "not a tokenizer")):
        file.write_text(text)
        with pytest.raises(DataError, match=what):
            ByteLevelBPE.from_json(file)
    TRAINED.save(tmp_path)
    ordinary = json.loads(file.read_text())
    ordinary["added_tokens"][0]["special"] = False
    file.write_text(json.dumps(ordinary))
    with pytest.raises(DataError, match="would become the token"):
        ByteLevelBPE.from_json(file)


@pytest.mark.parametrize(
    "change", [{"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": None}], ids=str
)
def test_rules_that_change_the_ids_change_the_fingerprint(tmp_path, change):
    TRAINED.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(document | change))
    other = ByteLevelBPE.from_json(tmp_path / "other.json")
    text = "Gout is  A disease of the joints."
    assert other.encode(text) != TRAINED.encode(text)  # not vacuous
    assert other.fingerprint != TRAINED.fingerprint


def test_dropout_is_not_for_encoding(tmp_path):
    document = json.loads(TRAINED.files()["tokenizer.json"])
    document["model"]["dropout"] = 0.5
    (tmp_path / "t.json").write_text(json.dumps(document))
    opened = ByteLevelBPE.from_json(tmp_path / "t.json")
    assert all(opened.encode(TEXTS[0]) == TRAINED.encode(TEXTS[0]) for _ in range(30))
