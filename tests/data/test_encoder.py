"""The encoder: the tokenizer's ids, fast where it can be, and never other ids."""

import gzip
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_yuyuan.data.byte_level_bpe import ByteLevelBPE, train_bpe
from megatron_yuyuan.data.encoder import AUDIT_INTERVAL, FastEncoder, ReferenceEncoder, open_encoder
from megatron_yuyuan.data.indexed_dataset import dtype_for
from megatron_yuyuan.data.tokenizer_base import END_OF_TEXT
from megatron_yuyuan.errors import ConfigError, DataError

TEXTS = [
    "Gout is a disease of the joints.",
    "",
    "naïve β-cells, 37 °C\n\n  µg",
    f"a{END_OF_TEXT} b",
]
TRAINED = train_bpe(iter(TEXTS * 4), 300)
UINT16 = dtype_for(TRAINED.vocab_size)
SPLITTER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ABOVE_U_FFFF = "tooth \U0001f9b7 and \U00010efd"
needs_gigatoken = pytest.mark.skipif(
    importlib.util.find_spec("gigatoken") is None, reason="needs gigatoken, the fast encoder"
)


@pytest.fixture(params=["reference", pytest.param("fast", marks=needs_gigatoken)])
def encoder(request):
    return open_encoder(TRAINED, request.param, UINT16)


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Ids of each text."""
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])][: len(lengths)]


def test_a_batch_becomes_ids_and_lengths(encoder):
    ids, lengths = encoder.encode(TEXTS)
    assert (ids.dtype, lengths.dtype) == (UINT16, np.int64)
    assert split(ids, lengths) == [TRAINED.encode(text) for text in TEXTS]
    assert len(ids) == lengths.sum() > 30 and lengths[1] == 0


def test_no_text_gives_no_ids(encoder):
    ids, lengths = encoder.encode([])
    assert (ids.shape, lengths.shape) == ((0,), (0,))


def test_a_text_with_the_end_of_text_in_it_does_not_end(encoder):
    ids, _ = encoder.encode([END_OF_TEXT, f"a{END_OF_TEXT}{END_OF_TEXT} b", f" {END_OF_TEXT}\n"])
    assert len(ids) and TRAINED.eod not in ids


@pytest.mark.parametrize("half", ["\ud800", "abc\udfff", "é\ud83e"])
def test_half_a_surrogate_pair_is_refused(encoder, half):
    with pytest.raises(DataError, match="half of a surrogate pair"):
        encoder.encode(["whole", half])


@needs_gigatoken
@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_fast_ids_are_the_tokenizers(texts):
    fast = open_encoder(TRAINED, "fast", UINT16)
    ids, lengths = fast.encode(texts)
    expected = TRAINED.encode_batch(texts)
    assert split(ids, lengths) == expected


@needs_gigatoken
def test_fast_ids_of_real_texts_are_the_tokenizers(real_data):
    folder = real_data / "gpt2_vocab"
    gpt2 = ByteLevelBPE.from_gpt2(folder / "encoder.json", folder / "vocab.bpe")
    with gzip.open(real_data / "pubmed_text" / "abstracts.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["abstract"] for line, _ in zip(lines, range(2000), strict=False)]
    every_character = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))
    texts += [every_character, " x".join(every_character), "1".join(every_character)]
    dtype = dtype_for(gpt2.vocab_size)
    fast, reference = (open_encoder(gpt2, choice, dtype) for choice in ("fast", "reference"))
    for actual, expected in zip(fast.encode(texts), reference.encode(texts), strict=True):
        np.testing.assert_array_equal(actual, expected)


def planted(wrong_on: str, seen: list[str]) -> FastEncoder:
    """A fast encoder that gives another first id for one text."""

    def encode_text(text: str) -> np.ndarray:
        seen.append(text)
        ids = np.array(TRAINED.encode(text), np.uint32)
        if text == wrong_on:
            ids[0] += 1
        return ids

    return FastEncoder(TRAINED, encode_text, UINT16, "planted 1.0")


@pytest.mark.parametrize("position", [0, AUDIT_INTERVAL])
def test_a_difference_in_the_audited_sample_ends_the_run(position):
    texts = [f"text {number}" for number in range(AUDIT_INTERVAL + 2)]
    right = TRAINED.encode(texts[position])
    with pytest.raises(DataError) as error:
        planted(texts[position], []).encode(texts)
    assert f"'{texts[position]}'" in error.value.what
    assert f"gives {[right[0] + 1, *right[1:5]]} where the tokenizer gives {right[:5]}" in str(
        error.value
    )
    planted(texts[position + 1], []).encode(texts)  # between two samples: that is the price


def test_an_id_too_few_is_a_difference():
    cut = FastEncoder(TRAINED, lambda text: TRAINED.encode(text)[:-1], UINT16, "planted 1.0")
    with pytest.raises(DataError, match="from token 3 of the text 'abcd'"):
        cut.encode(["abcd"])


def test_characters_above_u_ffff_go_to_the_tokenizer():
    seen = []
    texts = ["plain", ABOVE_U_FFFF, "\uffff"]
    ids, lengths = planted(ABOVE_U_FFFF, seen).encode(texts)
    assert seen == ["plain", "\uffff"]
    assert split(ids, lengths) == TRAINED.encode_batch(texts)


FORK = """
import os, sys
from megatron_yuyuan.data.encoder import open_encoder
from megatron_yuyuan.data.indexed_dataset import dtype_for
from megatron_yuyuan.data.tokenizer import read_tokenizer

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
tokenizer = read_tokenizer(sys.argv[1])
encoder = open_encoder(tokenizer, sys.argv[2], dtype_for(tokenizer.vocab_size))
assert threads() == before
if os.fork() == 0:
    print(encoder.encode(sys.argv[3:])[0].tolist(), flush=True)
    os._exit(0)
_, status = os.wait()
sys.exit(status)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_fork_encodes_with_the_encoder_it_inherited(encoder, tmp_path):
    TRAINED.save(tmp_path)
    choice = "reference" if isinstance(encoder, ReferenceEncoder) else "fast"
    ended = subprocess.run(
        [sys.executable, "-c", FORK, tmp_path, choice, *TEXTS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(ended.stdout) == encoder.encode(TEXTS)[0].tolist()


@needs_gigatoken
def test_auto_is_fast_where_it_can_be():
    assert open_encoder(TRAINED, "auto", UINT16).name.startswith("gigatoken 0.")
    assert open_encoder(TRAINED, "reference", UINT16).name == "reference"


def test_without_gigatoken_auto_is_the_reference_and_fast_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_encoder(TRAINED, "auto", UINT16).name == "reference"
    with pytest.raises(ConfigError, match="not installed") as error:
        open_encoder(TRAINED, "fast", UINT16)
    assert "pip install 'megatron_yuyuan[fast]'" in error.value.remedy


@needs_gigatoken
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "not GPT-2's"),
        ({"pre_tokenizer": SPLITTER | {"add_prefix_space": True}}, "not GPT-2's"),
        ({"pre_tokenizer": SPLITTER | {"use_regex": False}}, "not GPT-2's"),
        ({"pre_tokenizer": None}, "not GPT-2's"),
        ({"added_tokens": "gout"}, "not GPT-2's"),
        ({"vocab": 255}, "no single-byte vocab entry"),
    ],
    ids=str,
)
def test_a_tokenizer_gigatoken_is_not_known_to_match_is_not_given_to_it(tmp_path, change, cause):
    TRAINED.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    if "added_tokens" in change:  # a token that a text yields whatever the merges say
        end = document["added_tokens"][0]
        change = {"added_tokens": [end, end | {"id": 299, "content": "gout", "special": False}]}
    if "vocab" in change:  # without merges, and without one of the bytes
        kept = {token: i for token, i in document["model"]["vocab"].items() if i < change["vocab"]}
        change = {"model": document["model"] | {"vocab": kept, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | change))
    tokenizer = ByteLevelBPE.from_json(tmp_path / "tokenizer.json")
    assert open_encoder(tokenizer, "auto", UINT16).name == "reference"
    with pytest.raises(ConfigError, match=cause):
        open_encoder(tokenizer, "fast", UINT16)
