"""What is drawn of a run's course: the spikes that a run with --skip-loss-spikes would have passed over."""

import random

from megatron_yuyuan.report.learning import spikes, spread
from megatron_yuyuan.train.spikes import WINDOW, is_spike


def steps(losses: list[float]) -> list[dict]:
    return [{"iteration": i, "lm_loss": loss} for i, loss in enumerate(losses, start=1)]


def test_spikes_are_those_that_training_would_see():
    rng = random.Random(3)
    losses = [8 / (1 + i / 50) + 2 + 0.1 * rng.random() for i in range(600)]
    for place, jump in ((30, 9.0), (100, 0.3), (101, 9.0), (250, 9.0), (400, 2.0), (599, 9.0)):
        losses[place] += jump
    expected = [
        i + 1 for i in range(len(losses)) if is_spike(losses[i], losses[max(0, i - WINDOW) : i])
    ]
    assert spikes(steps(losses)) == expected
    assert {251, 401, 600} <= set(expected) and 31 not in expected  # 31 is too early to tell
    assert spikes([]) == spikes(steps([3.0])) == []
    assert spikes(steps([2.0] * 80 + [2.1])) == [81]


def test_a_few_of_many_with_both_ends():
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert spread([1, 2], 4) == [1, 2]
