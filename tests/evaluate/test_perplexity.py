"""Perplexity: what transformers computes, by tokens and not by samples, every token once."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import TINY, RandomText

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.perplexity import Windows, perplexity
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

pytestmark = pytest.mark.usefixtures("one_thread")
POSITIONS = TINY.model.max_position_embeddings


@pytest.fixture(scope="module")
def model() -> GPT2:
    model = GPT2(TINY.model)
    init_weights(model, seed=3)
    return model.eval()


@pytest.fixture(scope="module")
def theirs(model):
    """The same weights in transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(model.config, 0, "float32"))).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)
    return theirs


def write_shard(prefix, documents) -> IndexedDataset:
    """documents: a list of lists of sequences' lengths; the tokens are random."""
    random = np.random.default_rng(5)
    with IndexedDatasetWriter(prefix, np.uint16) as shard:
        for lengths in documents:
            shard.add_document([random.integers(0, 120, length) for length in lengths])
        shard.finish()
    return IndexedDataset(prefix)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> IndexedDataset:
    """One hundred and one tokens in five documents."""
    return write_shard(tmp_path_factory.mktemp("texts") / "t", [[n] for n in (30, 1, 20, 5, 45)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> IndexedDataset:
    """Prompts and answers; two answers end beyond the positions, one prompt too, one is all there
    is."""
    lengths = [(5, 6), (4, 50), (3, 1), (POSITIONS + 5, 9), (7, POSITIONS - 6), (0, 4)]
    return write_shard(tmp_path_factory.mktemp("pairs") / "p", lengths)


@torch.no_grad()
def loss_of_token(theirs, tokens: np.ndarray, place: int, seq_length: int, stride: int) -> float:
    """The loss of tokens[place] by transformers, after what the first window that reaches it holds
    of the tokens before it, and nothing else."""
    window = max(0, -(-(place - seq_length) // stride))
    context = torch.from_numpy(tokens[window * stride : place].astype(np.int64))
    logits = theirs(context[None]).logits[0, -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(int(tokens[place]))).item()


@pytest.mark.parametrize("seq_length, stride", [(16, 16), (16, 5), (7, 7), (7, 3), (1, 1)])
def test_texts_cost_what_transformers_says(model, theirs, texts, seq_length, stride):
    """Token by token: all but the first, each once, with the context its window gives it."""
    tokens = texts.tokens(0, texts.num_tokens)
    each = [
        loss_of_token(theirs, tokens, place, seq_length, stride)
        for place in range(1, texts.num_tokens)
    ]
    windows = Windows(texts, seq_length, stride)
    found = perplexity(model, windows, batch_size=4)
    assert found["tokens"] == windows.tokens == texts.num_tokens - 1 == 100
    assert found["loss"] == pytest.approx(np.mean(each), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(each)), rel=1e-5)


@pytest.mark.parametrize("stride", [16, 5])
def test_answers_cost_what_transformers_says(model, theirs, pairs, stride):
    each = []
    for number in range(pairs.num_documents):
        prompt, answer = pairs.document(number)
        tokens = np.concatenate([prompt, answer])
        for place in range(max(1, len(prompt)), len(tokens)):
            each.append(loss_of_token(theirs, tokens, place, 16, stride))
    found = perplexity(model, Windows(pairs, 16, stride), batch_size=3)
    answers = pairs.sequence_lengths[1::2].sum() - 1  # the first token after no prompt is given
    assert found["tokens"] == len(each) == answers
    assert found["loss"] == pytest.approx(np.mean(each), rel=1e-5)


def test_windows_differ_in_what_they_see(model, texts):
    """Else the tests above could not tell one window from another."""
    losses = [perplexity(model, Windows(texts, 16, stride))["loss"] for stride in (16, 5, 1)]
    assert min(abs(a - b) for a, b in pairwise(losses)) > 1e-3


@torch.no_grad()
def test_sliding_windows_are_those_of_transformers_documentation(model, theirs, texts):
    """Its loop: windows of max_length tokens predict all but their first."""
    max_length, stride, tokens = 13, 4, torch.from_numpy(texts.tokens(0, 101).astype(np.int64))
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        ids = tokens[begin:end][None]
        target = ids.clone()
        target[:, : -(end - before)] = -100
        valid = (target[:, 1:] != -100).sum().item()
        total, count, before = (
            total + theirs(ids, labels=target).loss.item() * valid,
            count + valid,
            end,
        )
        if end == len(tokens):
            break
    found = perplexity(model, Windows(texts, max_length - 1, stride))
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("documents", [range(1, 4), range(2, 5), range(1)], ids=str)
def test_a_part_is_what_a_shard_of_it_would_be(tmp_path, texts, pairs, documents):
    for shard in (texts, pairs):
        with IndexedDatasetWriter(tmp_path / "part", np.uint16) as part:
            for number in documents:
                part.add_document(shard.document(number))
            part.finish()
        expected = Windows(IndexedDataset(tmp_path / "part"), 16, 6)
        found = Windows(shard, 16, 6, documents)
        assert len(found) == len(expected) and found.tokens == expected.tokens > 0
        for number in range(len(found)):
            for ours, theirs in zip(found[number], expected[number], strict=True):
                assert ours.tolist() == theirs.tolist()


def test_short_pairs_are_the_samples_of_training(model, tmp_path):
    """Where nothing is cut off, validation while training says the same."""
    shard = write_shard(tmp_path / "short", [(5, 6), (3, 14), (9, 2)])
    ours = perplexity(model, Windows(shard, 16, 16))
    theirs = perplexity(model, QADataset(shard, 16, 0, None))
    assert ours["tokens"] == theirs["tokens"] == 22
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_the_batch_size_changes_no_figure(model, pairs):
    windows = Windows(pairs, 16, 5)
    found = [perplexity(model, windows, batch_size) for batch_size in (1, 4, 99)]
    assert {figures["tokens"] for figures in found} == {windows.tokens}
    assert [f["loss"] for f in found] == pytest.approx([found[0]["loss"]] * 3, rel=1e-6)
    lengths = {len(windows[number][0]) for number in range(len(windows))}
    assert len(lengths) > 4  # so that short samples were filled


def test_tokens_weigh_alike_whatever_sample_they_stand_in(model):
    each = [perplexity(model, [RandomText()[number]]) for number in range(11)]
    tokens = sum(of["tokens"] for of in each)
    found = perplexity(model, RandomText(length=11))
    assert found["tokens"] == tokens
    mean = sum(of["loss"] * of["tokens"] for of in each) / tokens
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    mean_of_means = np.mean([of["loss"] for of in each])
    assert abs(mean_of_means - mean) > 1e-3 * mean  # the other reading would fail this test


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_windows_that_would_pass_over_tokens_are_refused(texts, stride):
    with pytest.raises(ConfigError, match=f"stride={stride} with seq_length=16"):
        Windows(texts, 16, stride)


def test_nothing_to_predict_is_refused(model, tmp_path, texts):
    for documents in (range(1, 2), range(3, 3)):  # one token, none
        with pytest.raises(DataError, match="no token to predict in documents"):
            Windows(texts, 16, 16, documents)
    with pytest.raises(DataError, match="no token to predict in documents 0 to 0"):
        Windows(write_shard(tmp_path / "empty", []), 16, 16)
    tokens, labels = RandomText()[0]
    with pytest.raises(DataError, match="no label to predict in 1 samples"):
        perplexity(model, [(tokens, np.full_like(labels, IGNORE))])
