"""The vocabulary-parallel head in chunks, on every kind of layout."""

import pytest
from tiny import TINY, Layout, largest_difference
from trajectory import five_steps

from megatron_yuyuan.model import loss as loss_module


def in_chunks(config, tokens: int):
    """Five steps with chunks of so many tokens."""
    rows = config.model.padded_vocab_size // config.parallel.tensor_model_parallel_size
    # the process ends with this call
    loss_module.LOGITS_AT_A_TIME = loss_module.LOGITS_ON_CUDA = tokens * rows
    return five_steps(config)


LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(tensor=2, sequence_parallel=True),
    Layout(pipeline=2, data=2),
    Layout(data=2, tensor=2, sequence_parallel=True),
]


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks.run(1, five_steps, TINY)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_chunks_change_no_loss_and_no_gradient(ranks, alone, layout):
    expected_gradients, expected = alone
    gradients, figures = ranks.run(layout.ranks, in_chunks, layout.of(TINY), 5)
    difference, name = largest_difference(gradients, expected_gradients)
    assert difference <= 1e-5, name
    assert figures[0] == pytest.approx(expected[0], rel=1e-6)
    assert figures == pytest.approx(expected, rel=1e-5)


def test_a_rank_that_holds_only_padding_takes_no_part(ranks):
    config = TINY.replace(vocab_size=60, make_vocab_size_divisible_by=128)
    expected_gradients, expected = ranks.run(1, five_steps, config)
    gradients, figures = ranks.run(2, in_chunks, Layout(tensor=2).of(config), 5)
    assert largest_difference(gradients, expected_gradients)[0] <= 1e-5
    assert figures == pytest.approx(expected, rel=1e-5)
