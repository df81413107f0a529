"""From shards that were named to the samples of a run."""

import shutil

import numpy as np
import pytest
from commands import run, train_flags

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.log import Log, read_metrics
from megatron_yuyuan.samples import borders, introduce_shards, question_datasets, text_datasets


class FakeTokenizer:
    fingerprint, vocab_size, eod = "aaaa", 1000, 999


def write(prefix, tokens, documents, **description) -> str:
    """A shard of documents of ten tokens each."""
    made = {"tokenizer_fingerprint": "aaaa", "append_eod": True} | description
    with IndexedDatasetWriter(prefix, np.uint16) as shard:
        for _ in range(documents):
            shard.add_document([[tokens] * 10])
        shard.finish(made)
    return str(prefix)


def write_pairs(prefix, tokens, documents) -> str:
    with IndexedDatasetWriter(prefix, np.uint16) as shard:
        for _ in range(documents):
            shard.add_document([[1, 2], [tokens, 999]])
        shard.finish({"tokenizer_fingerprint": "aaaa"})
    return str(prefix)


@pytest.fixture
def shards(tmp_path) -> tuple[str, str]:
    """900 tokens of 5 and 300 of 6, in documents of ten."""
    return write(tmp_path / "a", 5, 90), write(tmp_path / "b", 6, 30)


def of(**data) -> Config:
    return Config().replace(seq_length=8, seed=3, **data)


def first_tokens(dataset, count=None):
    return [int(dataset[i][0][0]) for i in range(count or len(dataset))]


def test_every_shard_of_a_blend_is_divided_by_its_documents(shards):
    train, valid = text_datasets(of(data_path=shards, split="80,20,0"), FakeTokenizer)
    assert [len(part) for part in train.datasets] == [89, 29]  # of 720 and of 240 tokens
    assert [len(part) for part in valid.datasets] == [22, 7]  # of 180 and of 60
    assert first_tokens(train).count(5) == 89 and first_tokens(valid).count(6) == 7


def test_weights_count_for_training_and_for_validation(shards):
    a, b = shards
    config = of(data_path=("0.25", a, "0.75", b), split="80,20,0")
    for dataset in text_datasets(config, FakeTokenizer):
        tokens = first_tokens(dataset)
        assert 0.7 < tokens.count(6) / len(tokens) < 0.8


def test_parts_are_blended_like_whole_shards(shards):
    a, b = shards
    config = of(train_data_path=(a, b), valid_data_path=("0.5", b, "0.5", a))
    train, valid = text_datasets(config, FakeTokenizer)
    assert len(train) == 111 + 36 and set(first_tokens(valid)) == {5, 6}
    assert text_datasets(of(train_data_path=(a,)), FakeTokenizer)[1] is None


def test_a_shard_without_validation_documents_is_left_out_of_validation(shards, tmp_path):
    tiny = write(tmp_path / "tiny", 7, 2)
    config = of(data_path=("0.5", shards[0], "0.5", tiny), split="90,10,0")
    train, valid = text_datasets(config, FakeTokenizer)
    assert len(train.datasets) == 2 and set(first_tokens(valid)) == {5}
    assert text_datasets(of(data_path=shards, split="1,0,0"), FakeTokenizer)[1] is None


def test_questions_are_blended_too(tmp_path):
    a, b = write_pairs(tmp_path / "a", 5, 30), write_pairs(tmp_path / "b", 6, 10)
    config = of(train_data_path=("0.5", a, "0.5", b), valid_data_path=(a, b))
    train, valid = question_datasets(config, FakeTokenizer)
    answers = [int(train[i][1][1]) for i in range(len(train))]
    assert len(train) == 20 and sorted(answers) == [5] * 10 + [6] * 10
    assert len(valid) == 40


def test_a_shard_of_another_tokenizer_is_refused_by_its_name(shards, tmp_path):
    other = write(tmp_path / "other", 5, 30, tokenizer_fingerprint="bbbb")
    with pytest.raises(
        DataError, match=rf"{other} was made with another tokenizer.*\(bbbb\).*\(aaaa\)"
    ):
        text_datasets(of(data_path=(*shards, other)), FakeTokenizer)


def test_borders_that_a_shard_does_not_mark_are_refused(shards, tmp_path):
    bare = write(tmp_path / "bare", 5, 30, append_eod=False)
    text_datasets(of(data_path=(bare,)), FakeTokenizer)
    for flag in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
        config = of(data_path=(shards[0], bare), **{flag: True})
        assert getattr(borders(config, FakeTokenizer), flag)
        with pytest.raises(ConfigError, match="bare has no end of text between its documents"):
            text_datasets(config, FakeTokenizer)
        text_datasets(of(data_path=shards, **{flag: True}), FakeTokenizer)
    assert borders(of(), FakeTokenizer) is None


def test_no_shard_and_two_ways_of_naming_shards(shards):
    with pytest.raises(ConfigError, match=r"data_path: no shard\n.*\n  try: --data-path PREFIX"):
        text_datasets(of(), FakeTokenizer)
    with pytest.raises(ConfigError, match="train_data_path: no shard"):
        question_datasets(of(), FakeTokenizer)
    with pytest.raises(ConfigError, match="data_path and train_data_path"):
        text_datasets(of(data_path=shards, train_data_path=shards), FakeTokenizer)


def test_questions_are_no_texts_to_pretrain_on(tmp_path):
    questions = write(tmp_path / "q", 5, 90, kind="qa")
    with pytest.raises(ConfigError, match="holds questions and answers") as refused:
        text_datasets(of(data_path=(questions,)), FakeTokenizer)
    assert refused.value.remedy == f"finetune_qa.py --train-data-path {questions}"


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_shard_may_be_named_by_either_of_its_files(shards, suffix):
    named, _ = text_datasets(of(data_path=(shards[0] + suffix,)), FakeTokenizer)
    assert named.shard.prefix == shards[0]


def test_questions_that_are_learned_do_not_validate(tmp_path, capsys):
    one, other = (write_pairs(tmp_path / name, 5, 20) for name in ("one", "other"))
    for valid, said in ((one, True), (other, False)):
        datasets = question_datasets(
            of(train_data_path=(one,), valid_data_path=(valid,)), FakeTokenizer
        )
        introduce_shards(*datasets, 20, Log(None, True))
        shown = capsys.readouterr().out
        assert (f"warning: {one} is learned, and its loss is no validation" in shown) is said
        assert f"questions for validation: {valid}: 20 pairs" in shown


def test_a_blend_is_introduced_and_an_unknown_shard_warned_of_once(shards, tmp_path, capsys):
    for suffix in ("bin", "idx"):
        shutil.copy(f"{shards[0]}.{suffix}", tmp_path / f"foreign.{suffix}")
    foreign = str(tmp_path / "foreign")
    config = of(data_path=("0.5", foreign, "0.5", shards[1]), split="80,20,0")
    sets = text_datasets(config, FakeTokenizer)
    introduce_shards(*sets, 290, Log(None, True))
    lines = capsys.readouterr().out.splitlines()
    assert "50.00% from" in lines[0] and "foreign, 1.63 epochs of it" in lines[0]
    assert "50.00% from" in lines[1] and "b, 5.00 epochs of it" in lines[1]
    assert len(lines) == 3 and f"warning: {foreign} has no .meta.json" in lines[2]
    introduce_shards(*sets, 290, Log(None, False))  # the other ranks
    assert not capsys.readouterr().out
    with pytest.raises(DataError, match="foreign: token id 5; valid ids are 0 to 3"):
        small = type("Small", (FakeTokenizer,), {"vocab_size": 4})
        text_datasets(of(data_path=(foreign,)), small)


@pytest.mark.slow
def test_a_job_over_a_blend_with_a_foreign_shard_and_divided_documents(prepared, tmp_path):
    """Two ranks: each reads its share of the foreign shard's ids, and one warning is printed."""
    for suffix in (".bin", ".idx"):
        shutil.copy(prepared / f"text_text_document{suffix}", tmp_path / f"foreign{suffix}")
    blend = ("--data-path", 0.7, prepared / "text_text_document", 0.3, tmp_path / "foreign")
    borders = ("--reset-position-ids", "--reset-attention-mask", "--eod-mask-loss")
    short, losses = ("--train-iters", 1, "--seq-length", 256, *blend), []
    for flags, ranks in (((), 0), (borders, 2)):
        save = tmp_path / f"run{ranks}"
        ended = run(*train_flags(prepared, save, *short, *flags), ranks=ranks)
        assert ended.stdout.count("blend: 70.") == ended.stdout.count("blend: 29.") == 1
        assert ended.stdout.count("foreign has no .meta.json") == 1
        losses += [step["lm_loss"] for step in read_metrics(save / "metrics.jsonl", "step")]
    assert abs(losses[1] / losses[0] - 1) > 1e-5
