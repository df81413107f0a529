"""Packed pairs: every pair once an epoch, whatever stands beside it, and the loss of unpacked ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.loader import Borders, read_batch
from megatron_yuyuan.data.packing import PackedQADataset, best_fit_decreasing
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

EOD, LENGTH = 0, 16


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> IndexedDataset:
    """Sixty pairs of 4 tokens and more, some of which are cut; each begins with a token of its own."""
    prefix, random = tmp_path_factory.mktemp("packing") / "qa", np.random.default_rng(5)
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for number in range(60):
            prompt = [1 + number, *random.integers(1, 120, random.integers(1, 4))]
            longest = 30 if number % 15 == 0 else 6
            answer = [*random.integers(1, 120, random.integers(1, longest)), EOD]
            writer.add_document([prompt, answer])
        writer.finish()
    return IndexedDataset(prefix)


@given(st.lists(st.integers(1, 16), max_size=200))
def test_every_place_stands_in_one_sample_and_none_overflows(lengths):
    lengths = sorted(lengths, reverse=True)
    samples = best_fit_decreasing(lengths, 16)
    assert sorted(place for sample in samples for place in sample) == list(range(len(lengths)))
    loads = [sum(lengths[place] for place in sample) for sample in samples]
    assert all(load <= 16 for load in loads)
    least = -(-sum(lengths) // 16)
    assert len(samples) <= 11 / 9 * max(least, sum(length > 8 for length in lengths)) + 4


def test_it_packs_what_fits_exactly():
    assert best_fit_decreasing([9, 8, 8, 7, 5, 3, 2], 16) == [[0, 3], [1, 2], [4, 5, 6]]


def pairs_of(dataset, epoch: int) -> list[list[int]]:
    return [dataset.pairs(epoch * len(dataset) + i) for i in range(len(dataset))]


@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_reads_every_pair_once_and_the_next_one_in_another_order(shard, seed):
    dataset = PackedQADataset(shard, LENGTH, EOD, seed)
    first, second = (pairs_of(dataset, epoch) for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(pair for sample in epoch for pair in sample) == list(range(60))
        assert all(sum(dataset.lengths[sample]) <= LENGTH + 1 for sample in epoch)
    assert max(map(len, first)) > 1  # not vacuous
    assert (first == second) == (seed is None)
    together = [{frozenset(s) for s in epoch if len(s) > 1} for epoch in (first, second)]
    again_together = len(together[0] & together[1])
    assert seed is None or again_together < len(together[0]) / 4  # a pair has other neighbours too
    again = PackedQADataset(shard, LENGTH, EOD, seed)
    assert pairs_of(again, 1) == second  # a function of (seed, epoch), in whatever order it is read


@pytest.mark.parametrize("on_prompt", [False, True])
def test_packed_pairs_have_the_loss_and_the_gradient_of_unpacked_ones(shard, on_prompt):
    model = GPT2(TINY.replace(num_layers=2).model)
    init_weights(model, seed=1)
    whole = QADataset(shard, LENGTH, EOD, 3, on_prompt)
    packed = PackedQADataset(shard, LENGTH, EOD, 3, on_prompt)
    assert len(packed) < 0.8 * len(whole) and packed.truncated == whole.truncated > 0
    figures, gradients = [], []
    for dataset, borders in ((whole, None), (packed, Borders(EOD, True, True)), (packed, None)):
        model.zero_grad()
        batch = read_batch(dataset, 0, len(dataset), 0, 1, "cpu", borders=borders)
        loss, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
        (loss / count).sum().backward()
        figures.append(((loss / count).item(), count.item()))
        gradients.append(model.h["1"].attn.c_attn.weight.grad.clone())
    assert figures[0][1] == figures[1][1]
    assert figures[1][0] == pytest.approx(figures[0][0], rel=1e-5)
    assert (gradients[1] - gradients[0]).abs().max() <= 1e-5 * gradients[0].abs().max()
    assert abs(figures[2][0] / figures[0][0] - 1) > 1e-3  # without borders it would be another loss


def test_a_pair_that_is_cut_fills_a_sample_alone(shard):
    packed = PackedQADataset(shard, LENGTH, EOD, None)
    tokens, labels = packed[0]
    [pair] = packed.pairs(0)
    prompt, answer = shard.document(pair)
    assert len(prompt) + len(answer) > LENGTH + 1 and packed.truncated == sum(
        len(p) + len(a) > LENGTH + 1 for p, a in map(shard.document, range(60))
    )
    whole = [*prompt, *answer][: LENGTH + 1]
    assert tokens.tolist() == whole[:-1]
    assert labels.tolist() == [IGNORE] * (len(prompt) - 1) + whole[len(prompt) :]


def test_no_label_is_learned_across_a_border(shard):
    packed = PackedQADataset(shard, LENGTH, EOD, 1, loss_on_prompt=True)
    for number in range(len(packed)):
        tokens, labels = packed[number]
        ends = np.flatnonzero(tokens == EOD)
        assert (labels[ends] == IGNORE).all()
        learned = sum(min(packed.lengths[pair], LENGTH + 1) - 1 for pair in packed.pairs(number))
        assert (labels != IGNORE).sum() == learned


def test_what_is_said_of_packed_pairs_is_counted(shard):
    packed = PackedQADataset(shard, LENGTH, EOD, 1)
    said = packed.describe()
    tokens = sum(packed.lengths) / (len(packed) * (LENGTH + 1))
    assert said.startswith(
        f"60 pairs; {packed.truncated} lose the end of their answer at 16 tokens"
    )
    assert said.endswith(f"packed into {len(packed)} samples, {tokens:.1%} full")


def test_data_ranks_share_packed_samples(shard):
    packed, borders = PackedQADataset(shard, LENGTH, EOD, 1), Borders(EOD, True, True)
    whole = read_batch(packed, 4, 8, 0, 1, "cpu", borders=borders)
    parts = [read_batch(packed, 4, 8, rank, 2, "cpu", borders=borders) for rank in (0, 1)]
    for name in ("tokens", "labels", "positions", "document_ids"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
    assert int(whole.document_ids.max()) > 0
