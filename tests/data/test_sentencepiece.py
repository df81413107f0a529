"""SentencePiece: learned without loss, an end of text no text can forge, damaged models refused."""

import gzip
import io
import json
import random
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data import sentencepiece_model
from megatron_yuyuan.data.sentencepiece_model import (
    END_OF_TEXT_PIECES,
    LEARNERS,
    SentencePieceTokenizer,
    train_sentencepiece,
)
from megatron_yuyuan.data.tokenizer import open_tokenizer, read_tokenizer
from megatron_yuyuan.data.tokenizer_base import END_OF_TEXT
from megatron_yuyuan.errors import ConfigError, DataError

TEXTS = ["Gout is a disease of the joints. The joints ache.", "naïve β-cells, 37 °C\n\n  µg"] * 4
ODD = [
    "",
    " ",
    "  two  spaces \n\n\tand a tab ",
    "a\x00b\r\n",
    "\ufeffﬁ Å 🦷\U00010efd",
    END_OF_TEXT,
]
TRAINED = {learner: train_sentencepiece(iter(TEXTS), 320, learner) for learner in LEARNERS}
SPACE = "\u2581"


@pytest.fixture(params=LEARNERS)
def trained(request) -> SentencePieceTokenizer:
    return TRAINED[request.param]


def foreign(**options) -> bytes:
    """A model learned by SentencePiece's own defaults, `options` aside."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        **({"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2} | options),
    )
    return written.getvalue()


@settings(deadline=None)
@given(st.sampled_from(LEARNERS), st.text(st.characters(codec="utf-8", exclude_characters=SPACE)))
def test_decode_inverts_encode(learner, text):
    trained = TRAINED[learner]
    assert trained.decode(trained.encode(text)) == text


@settings(deadline=None)
@given(st.sampled_from(LEARNERS), st.text(), st.text())
def test_no_text_yields_the_end_of_text(learner, before, after):
    trained = TRAINED[learner]
    assert trained.eod not in trained.encode(before + END_OF_TEXT + after)


def test_the_one_character_that_comes_back_as_another(trained):
    assert trained.decode(trained.encode(f"a{SPACE}b")) == "a b"


def test_decode_shows_the_end_of_text_and_passes_over_what_is_no_token(trained):
    ids = [*trained.encode("ache"), trained.eod, trained.vocab_size + 5, *trained.encode(" ache")]
    assert trained.decode(ids) == f"ache{END_OF_TEXT} ache"


def test_a_batch_is_its_texts(trained):
    texts = [*TEXTS, *ODD]
    assert trained.encode_batch(texts) == [trained.encode(text) for text in texts]


def test_training_is_repeatable_also_where_it_samples(trained, monkeypatch):
    learner = next(name for name, same in TRAINED.items() if same is trained)
    program = (
        "from megatron_yuyuan.data import sentencepiece_model as module\n"
        "module.SAMPLE = 110\n"
        f"texts = [f'{{i}} {{text}}' for i in range(20) for text in {TEXTS!r}]\n"
        f"print(module.train_sentencepiece(iter(texts), 320, {learner!r}).fingerprint)"
    )
    again = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    monkeypatch.setattr(sentencepiece_model, "SAMPLE", 110)
    texts = [f"{i} {text}" for i in range(20) for text in TEXTS]
    here = train_sentencepiece(iter(texts), 320, learner)
    assert again.stdout.split() == [here.fingerprint]
    assert again.stderr == ""
    monkeypatch.undo()
    assert train_sentencepiece(iter(texts), 320, learner).fingerprint != here.fingerprint


def test_long_texts_are_learned_from_in_stretches():
    text = "hyperuricaemia " * 1000 + "\n" + "x" * 2500
    stretches = sentencepiece_model.STRETCH.findall(text)
    assert "\n".join(["".join(stretches[:-3]), "".join(stretches[-3:])]) == text
    assert max(map(len, stretches)) <= 1000
    assert all(stretch.split()[0] == "hyperuricaemia" for stretch in stretches[:-4])
    assert any("uricaemia" in piece for piece in train_sentencepiece(iter([text]), 400)._pieces)


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=100 is too small") as error:
        train_sentencepiece(iter(TEXTS), 100)
    for size in (-1, 1, 2**31 - 1):
        with pytest.raises(ConfigError, match=f"vocab_size={size} is out of range"):
            train_sentencepiece(iter(TEXTS), size)
    least = int(error.value.remedy.split()[1])
    assert train_sentencepiece(iter(TEXTS), least).vocab_size == least > 258
    with pytest.raises(DataError, match="no text to learn from"):
        train_sentencepiece(iter([""]), 320)
    with pytest.raises(DataError, match="surrogate pair at character 3"):
        train_sentencepiece(iter(["abc\ud800"]), 320)


def test_half_a_surrogate_pair_is_refused(trained):
    with pytest.raises(DataError, match="surrogate pair at character 3"):
        trained.encode("abc\ud800")


def test_saved_files_come_back_equal(trained, tmp_path):
    trained.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    file = str(tmp_path / "tokenizer.model")
    for same in (
        read_tokenizer(tmp_path),
        read_tokenizer(file),
        *(
            open_tokenizer(DataConfig(tokenizer_type=kind, tokenizer_model=path))
            for kind in ("SentencePieceTokenizer", "HuggingFaceTokenizer")
            for path in (file, str(tmp_path))
        ),
    ):
        assert (same.fingerprint, same.eod) == (trained.fingerprint, trained.eod)
        assert (same.vocab_size, same.end_of_text) == (trained.vocab_size, END_OF_TEXT)
        assert same.encode_batch([*TEXTS, *ODD]) == trained.encode_batch([*TEXTS, *ODD])
    assert len({tokenizer.fingerprint for tokenizer in TRAINED.values()}) == len(LEARNERS)


def test_a_model_without_a_suffix_is_read_by_its_type(trained, tmp_path):
    (tmp_path / "pieces").write_bytes(trained.files()["tokenizer.model"])
    named = DataConfig(
        tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(tmp_path / "pieces")
    )
    assert open_tokenizer(named).fingerprint == trained.fingerprint
    with pytest.raises(ConfigError, match="tokenizer_model is not given"):
        open_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "</s>"),
        ({"control_symbols": ["<eod>"]}, "<eod>"),
        ({"control_symbols": ["<eod>", END_OF_TEXT]}, END_OF_TEXT),
        ({"user_defined_symbols": ["<eod>"], "control_symbols": [END_OF_TEXT]}, END_OF_TEXT),
    ],
    ids=str,
)
def test_the_end_of_text_of_a_foreign_model(options, name):
    opened = SentencePieceTokenizer(foreign(**options), "foreign.model")
    assert opened.end_of_text == name
    assert opened.decode([opened.eod]) == name
    for piece in (*END_OF_TEXT_PIECES, "</s>"):
        assert opened.eod not in opened.encode(f"a{piece} {piece}")
    assert opened.decode(opened.encode("The joints  ache. ")) == "The joints ache."  # its own way


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"eos_id": -1}, "has no end of text"),
        ({"user_defined_symbols": [END_OF_TEXT]}, f"the text {END_OF_TEXT} would become the token"),
    ],
)
def test_a_model_without_a_safe_end_of_text_is_refused(options, what):
    with pytest.raises(DataError) as error:
        SentencePieceTokenizer(foreign(**options), "foreign.model")
    assert what in error.value.what


def test_a_damaged_model_is_one_error_and_no_crash(tmp_path):
    """In a process of its own: a crash would be its end."""
    model = foreign()
    generator = random.Random(0)
    damaged = [model[:length] for length in (0, 1, 9, 1000, len(model) // 2, len(model) - 1)]
    damaged += [generator.randbytes(length) for length in (1, 10, 1000)]
    damaged += [b"{}", b"<html>", bytes(100)]
    for position in generator.sample(range(len(model)), 60):
        damaged.append(model[:position] + generator.randbytes(3) + model[position + 3 :])
    for number, content in enumerate(damaged):
        (tmp_path / f"{number}.model").write_bytes(content)
    program = (
        "import sys\n"
        "from megatron_yuyuan.data.tokenizer import read_tokenizer\n"
        "from megatron_yuyuan.errors import DataError\n"
        "for number in range(int(sys.argv[2])):\n"
        "    try:\n"
        "        tokenizer = read_tokenizer(f'{sys.argv[1]}/{number}.model')\n"
        "        tokenizer.decode(tokenizer.encode('The joints ache.'))\n"
        "        print('opened')\n"
        "    except DataError as error:\n"
        "        assert 'is damaged, or no SentencePiece model' in error.what, error\n"
        "        print('refused')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path, str(len(damaged))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = ended.stdout.split()
    assert len(results) == len(damaged)
    assert set(results[:13]) == {"refused"} and results.count("refused") > 30


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_tokenizer(tmp_path / "absent.model")


def test_transformers_gives_the_same_ids(trained, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference")
    for name, content in trained.huggingface_files().items():
        (tmp_path / name).write_bytes(content)
    config = {"tokenizer_class": trained.huggingface_class, "eos_token": trained.end_of_text}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, *ODD[1:-1]]
    assert theirs(texts)["input_ids"] == trained.encode_batch(texts)
    assert theirs.batch_decode(trained.encode_batch(texts)) == texts
    assert theirs.eos_token_id == trained.eod
    assert read_tokenizer(tmp_path).fingerprint == trained.fingerprint  # ours, beside theirs


@pytest.mark.parametrize("learner", LEARNERS)
def test_ids_of_real_abstracts_are_the_same_in_its_tokenizer_json(real_data, learner):
    with gzip.open(real_data / "pubmed_text" / "abstracts.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["abstract"] for line, _ in zip(lines, range(600), strict=False)]
    trained = train_sentencepiece(iter(texts[:300]), 1000, learner)
    theirs = tokenizers.Tokenizer.from_str(trained.huggingface_files()["tokenizer.json"].decode())
    ours = trained.encode_batch(texts)
    assert ours == [encoding.ids for encoding in theirs.encode_batch_fast(texts)]
    assert [trained.decode(ids) for ids in ours] == texts
    assert sum(map(len, ours)) > 100_000  # not vacuous


@pytest.mark.parametrize(
    "option",
    [{}, {"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": True},
     {"remove_extra_whitespaces": True}, {"byte_fallback": False}, {"model_type": "char"}],
    ids=str,
)  # fmt: skip
def test_a_model_that_changes_texts_has_no_equal_in_transformers(option):
    lossless = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 320,
    }
    tokenizer = SentencePieceTokenizer(foreign(**lossless | option), "foreign.model")
    if not option:
        assert "tokenizer.json" in tokenizer.huggingface_files()
        return
    with pytest.raises(ConfigError, match=r"no tokenizer\.json with the same ids"):
        tokenizer.huggingface_files()
