"""Samples and their order: a pure function of the seed and a number."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.gpt_dataset import GPTDataset, split_documents
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.data.permutation import epoch_key, permuted
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.errors import ConfigError, DataError


def write_shard(prefix, documents) -> IndexedDataset:
    with IndexedDatasetWriter(prefix, np.uint16) as shard:
        for document in documents:
            shard.add_document(document)
        shard.finish()
    return IndexedDataset(prefix)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> IndexedDataset:
    """1,000 tokens 0, 1, 2, ... in documents of 1 to 40 tokens."""
    generator, documents, first = np.random.default_rng(0), [], 0
    while first < 1000:
        last = min(1000, first + int(generator.integers(1, 41)))
        documents.append([np.arange(first, last)])
        first = last
    return write_shard(tmp_path_factory.mktemp("text") / "text", documents)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000])
@pytest.mark.parametrize("key", [0, 1, epoch_key(1234, 3)])
def test_the_keyed_order_visits_everything_once(n, key):
    assert sorted(permuted(place, n, key) for place in range(n)) == list(range(n))


def test_the_keyed_order_is_shuffled_and_depends_on_its_key():
    orders = [[permuted(i, 1000, epoch_key(7, epoch)) for i in range(1000)] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    for order in orders:
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.1
        assert np.mean(np.diff(order) == 1) < 0.01


PINNED = [64, 384, 435, 96, 644, 119]


def test_the_order_is_pinned():
    """A run continued with another order would repeat and leave out samples: change VERSION too."""
    assert [permuted(i, 1000, epoch_key(1234, 0)) for i in range(6)] == PINNED


def test_windows_tile_the_stream_once_an_epoch(text):
    dataset = GPTDataset(text, 16, seed=3)
    for epoch in range(3):
        windows = [dataset[epoch * len(dataset) + i] for i in range(len(dataset))]
        firsts = sorted(int(tokens[0]) for tokens, _ in windows)
        assert all(b - a == 16 for a, b in itertools.pairwise(firsts))
        assert 0 <= firsts[0] < 16
        for tokens, labels in windows:
            assert (np.diff(tokens) == 1).all()
            assert (labels == tokens + 1).all()
    starts = {int(dataset[epoch * len(dataset)][0][0]) % 16 for epoch in range(8)}
    assert len(starts) > 2  # the cuts move from epoch to epoch


def test_validation_comes_in_order(text):
    dataset = GPTDataset(text, 16, seed=None)
    assert len(dataset) == 999 // 16
    assert [int(dataset[i][0][0]) for i in range(len(dataset))] == list(range(0, 16 * 62, 16))


def test_parts_of_a_split_share_no_token(text):
    train, valid, test = split_documents(text.num_documents, "80,15,5")
    assert [*train, *valid, *test] == list(range(text.num_documents))
    seen = []
    for part in (train, valid, test):
        dataset = GPTDataset(text, 8, seed=None, documents=part)
        tokens = {int(t) for i in range(len(dataset)) for t in dataset[i][0]}
        assert min(tokens) >= text.document_start(part.start)
        assert max(tokens) < text.document_start(part.stop)
        seen.append(tokens)
    assert not (seen[0] & seen[1] or seen[1] & seen[2])


SHARES = st.lists(
    st.integers(0, 1000) | st.floats(0, 1000, allow_subnormal=False), min_size=1, max_size=3
).filter(sum)


@given(st.integers(0, 10**9), SHARES)
def test_a_split_gives_every_document_to_one_part_by_its_share(documents, shares):
    parts = split_documents(documents, ",".join(map(str, shares)))
    assert parts[0].start == 0 and parts[2].stop == documents
    assert parts[0].stop == parts[1].start and parts[1].stop == parts[2].start
    for part, share in itertools.zip_longest(parts, shares, fillvalue=0):
        assert part.start <= part.stop
        assert abs(len(part) - documents * (share / sum(shares))) <= 1 + 1e-6


def test_the_last_document_is_not_lost_to_rounding():
    assert split_documents(10, "25,25,50") == (range(2), range(2, 5), range(5, 10))


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "nan,1", "1,inf"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(ConfigError, match="split="):
        split_documents(10, split)


def test_a_shard_shorter_than_one_sample_is_refused(text):
    with pytest.raises(DataError, match="seq_length"):
        GPTDataset(text, 1000, seed=1)
    assert len(GPTDataset(text, 999, seed=1)) == 1


def test_only_the_answer_is_learned(tmp_path):
    pairs = [[[10, 11, 12], [20, 21, 99]], [[10] * 7, [20, 99]], [[10] * 12, [20, 99]]]
    dataset = QADataset(write_shard(tmp_path / "qa", pairs), 8, eod=99, seed=None)
    tokens, labels = dataset[0]
    assert tokens.tolist() == [10, 11, 12, 20, 21, 99, 99, 99]  # then padding
    assert labels.tolist() == [IGNORE, IGNORE, 20, 21, 99, IGNORE, IGNORE, IGNORE]
    assert dataset[1][1].tolist() == [IGNORE] * 6 + [20, 99]  # the end of text is learned
    assert dataset[2][1].tolist() == [IGNORE] * 8  # no room for the answer


def test_pairs_that_teach_nothing_are_refused(tmp_path):
    empty = write_shard(tmp_path / "empty", [])
    with pytest.raises(DataError, match="holds 0 pairs"):
        QADataset(empty, 8, eod=99, seed=None)
    long = write_shard(tmp_path / "long", [[[10] * 9, [20, 99]], [[10] * 12, [21, 99]]])
    with pytest.raises(DataError, match="none of its 2 pairs") as raised:
        QADataset(long, 8, eod=99, seed=None)
    assert "9 tokens" in raised.value.why and "= 9" in raised.value.why
    assert "--seq-length: 9 or more" in raised.value.remedy
    assert (QADataset(long, 9, eod=99, seed=None)[0][1] == 20).sum() == 1  # the remedy works


def test_a_text_shard_is_no_question_shard(text, tmp_path):
    uneven = write_shard(tmp_path / "uneven", [[[1]], [[2], [3], [4]]])  # two sequences on average
    for shard in (text, uneven):
        with pytest.raises(DataError, match="not a question answering shard"):
            QADataset(shard, 8, eod=0, seed=1)


def test_every_layout_reads_the_same_samples(text):
    dataset = GPTDataset(text, 16, seed=3)
    whole = read_batch(dataset, 24, 8, 0, 1, "cpu")
    for ranks in (1, 2, 4, 8):
        parts = [read_batch(dataset, 24, 8, rank, ranks, "cpu") for rank in range(ranks)]
        for name in ("tokens", "labels", "positions", "sample_ids"):
            joined = np.concatenate([getattr(part, name).numpy() for part in parts])
            assert (joined == getattr(whole, name).numpy()).all(), name
    micro = whole.split(4)
    assert [part.sample_ids.tolist() for part in micro] == [[0, 1], [2, 3], [4, 5], [6, 7]]
