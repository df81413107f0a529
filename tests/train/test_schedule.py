"""The learning rate at every step."""

import math

import pytest

from megatron_yuyuan.config import OptimizerConfig
from megatron_yuyuan.train.schedule import learning_rate


def rates(iters=10, **changes):
    optimizer = OptimizerConfig(lr=1.0, **changes)
    return [learning_rate(step, iters, optimizer) for step in range(1, iters + 1)]


def test_warm_up_is_linear_and_cosine_ends_at_min_lr():
    course = rates(iters=12, lr_warmup_iters=4, min_lr=0.1, lr_warmup_init=0.2)
    assert course[:4] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert course[7] == pytest.approx(0.1 + 0.9 * 0.5)  # halfway down
    assert course[4] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 8)))
    assert course[-1] == pytest.approx(0.1)


def test_linear_and_constant():
    assert rates(lr_decay_style="linear")[4] == pytest.approx(0.5)
    assert rates(lr_decay_style="constant", lr_warmup_fraction=0.2) == [0.5] + [1.0] * 9


def test_after_the_decay_the_rate_stays():
    assert rates(lr_decay_iters=5, min_lr=0.25)[4:] == pytest.approx([0.25] * 6)
