"""Blends: exact proportions, every sample once, in an order that a seed names."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_yuyuan.data import blend as blend_module
from megatron_yuyuan.data.blend import BlendedDataset, blend, block_counts, parse_blend
from megatron_yuyuan.errors import ConfigError


class Numbers:
    """A data set whose sample n is (name, n)."""

    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        return self.name, number


def read(blended, count):
    return [blended[i] for i in range(count)]


SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=5)


@given(SIZES, st.integers() | st.none())
def test_without_weights_an_epoch_is_every_sample_once(sizes, seed):
    blended = BlendedDataset([Numbers(k, size) for k, size in enumerate(sizes)], None, seed)
    assert len(blended) == sum(sizes)
    for epoch in range(2):
        seen = sorted(blended[epoch * len(blended) + i] for i in range(len(blended)))
        expected = [(k, epoch * n + i) for k, n in enumerate(sizes) for i in range(n)]
        assert seen == sorted(expected)


@given(st.lists(st.tuples(st.integers(40, 300), st.floats(0.5, 2)), min_size=2, max_size=4))
def test_with_weights_no_sample_comes_twice_in_an_epoch(parts):
    sizes, weights = zip(*parts, strict=True)
    blended = BlendedDataset([Numbers(k, n) for k, n in enumerate(sizes)], weights, 3)
    seen = Counter(read(blended, len(blended)))
    assert set(seen.values()) == {1} and len(seen) >= blended.block > 1
    assert all(number < sizes[k] for k, number in seen)


def test_every_block_has_the_proportions_exactly_and_its_own_order(monkeypatch):
    monkeypatch.setattr(blend_module, "BLOCK", 100)
    parts = [Numbers("a", 1000), Numbers("b", 500), Numbers("c", 5000)]
    blended = BlendedDataset(parts, [71.3, 7.1, 21.6], seed=7)
    assert (blended.block, blended.counts) == (100, [71, 7, 22])
    assert len(blended) == 1400  # then "a" would begin anew
    orders = []
    for block in range(3):
        samples = [blended[100 * block + i] for i in range(100)]
        orders.append("".join(name for name, _ in samples))
        for name, count in zip("abc", blended.counts, strict=True):
            numbers = sorted(number for own, number in samples if own == name)
            assert numbers == list(range(block * count, (block + 1) * count))
    assert len(set(orders)) == 3
    other = BlendedDataset(parts, [71.3, 7.1, 21.6], seed=8)
    assert read(other, 100) != read(blended, 100)


def test_any_beginning_of_a_validation_blend_speaks_for_all_of_it():
    parts = [Numbers("a", 7000), Numbers("b", 3000)]
    count = Counter(name for name, _ in read(BlendedDataset(parts, None, None), 500))
    assert 300 < count["a"] < 400


def test_a_large_blend_needs_no_list():
    parts = [Numbers("a", 10**12), Numbers("b", 10**9)]
    for weights in (None, [0.5, 0.5]):
        blended = BlendedDataset(parts, weights, 1)
        assert blended[10**11] == blended[10**11] != blended[10**11 + 1]


PINNED = [("a", 34), ("b", 12), ("b", 6), ("a", 66), ("a", 8), ("b", 0)]


def test_the_order_is_pinned():
    """A run continued with another order would repeat and leave out samples: change
    permutation.VERSION too."""
    blended = BlendedDataset([Numbers("a", 70), Numbers("b", 30)], [0.7, 0.3], 1234)
    assert read(blended, 6) == PINNED


def test_one_data_set_is_no_blend_and_none_is_left_out():
    a, b = Numbers("a", 10), Numbers("b", 10)
    assert blend([a], [3.0], 1) is a
    assert blend([None, b], [1.0, 2.0], 1) is b
    assert blend([None], None, 1) is None
    assert blend([a, None, b], [1.0, 5.0, 1.0], 1).counts == [10, 10]


def test_a_weight_too_small_for_a_block_is_refused():
    assert block_counts([9999, 1], [10**6, 10**6]) == [9999, 1]
    with pytest.raises(ConfigError, match="weight 1 of 30001 gives none of the 10000 samples"):
        block_counts([30000, 1], [10**6, 10**6])


def test_weights_and_prefixes():
    assert parse_blend(["data/a", "b"], "--data-path") == (["data/a", "b"], None)
    assert parse_blend(["a"], "--data-path") == (["a"], None)
    assert parse_blend(["0.7", "a", "3e-1", "./2"], "--data-path") == (["a", "./2"], [0.7, 0.3])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("0.7 a b", "do not alternate"),
        ("a 0.3", "do not alternate"),
        ("0.7 a b 0.3", "do not alternate"),
        ("0.7", "do not alternate"),
        ("0.7 0.3", "do not alternate"),
        ("-0.7 a 0.3 b", "not above zero"),
        ("0 a 0 b", "not above zero"),
        ("nan a 1 b", "not above zero"),
        ("inf a 1 b", "not above zero"),
    ],
)
def test_weights_that_are_none_are_refused(words, what):
    with pytest.raises(ConfigError, match=what) as error:
        parse_blend(words.split(), "--data-path")
    assert f"--data-path {words}" in error.value.what


def test_a_small_validation_blend_reads_every_shard():
    parts = [Numbers("a", 8), Numbers("b", 1)]
    blended = BlendedDataset(parts, [0.95, 0.05], None)
    assert blended.counts == [8, 1]
    assert sorted(read(blended, 9)) == [*(("a", n) for n in range(8)), ("b", 0)]
    with pytest.raises(ConfigError, match="gives none"):
        BlendedDataset(parts, [0.95, 0.05], 1)
