"""The learning rate and the batch size at every step."""

import math

import pytest

from megatron_yuyuan.config import OptimizerConfig, TrainingConfig
from megatron_yuyuan.train.schedule import (
    batch_size,
    highest_learning_rate,
    learning_rate,
    train_iterations,
    whole_batches,
)


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


def test_a_fraction_of_a_warm_up_is_not_rounded():
    assert rates(lr_decay_style="constant", lr_warmup_fraction=0.25)[:3] == [0.4, 0.8, 1.0]


@pytest.mark.parametrize("style", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("iters", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0, 1, 5, 7, 20])
def test_the_highest_rate_of_a_run_is_that_of_one_of_its_steps(style, iters, warmup):
    changes = {"lr_decay_style": style, "lr_warmup_iters": warmup}
    found = highest_learning_rate(
        TrainingConfig(train_iters=iters), OptimizerConfig(lr=1.0, **changes)
    )
    assert found == max(rates(iters, **changes))


def test_the_highest_rate_of_a_run_that_counts_samples():
    training = TrainingConfig(train_samples=64, global_batch_size=8)
    optimizer = OptimizerConfig(lr=1.0, lr_warmup_samples=20)
    positions = range(8, 65, 8)
    assert highest_learning_rate(training, optimizer) == max(
        learning_rate(position, 64, optimizer) for position in positions
    )


def test_after_the_decay_the_rate_stays():
    assert rates(lr_decay_iters=5, min_lr=0.25)[4:] == pytest.approx([0.25] * 6)
    root = rates(
        lr_decay_style="inverse-square-root", lr_warmup_iters=4, lr_decay_iters=9, min_lr=0.1
    )
    assert root[8:] == pytest.approx([2 / 3, 0.1])


def test_inverse_square_root_goes_on_from_the_warm_up():
    course = rates(16, lr_decay_style="inverse-square-root", lr_warmup_iters=4, min_lr=0.55)
    assert course[2:5] == pytest.approx([0.75, 1.0, math.sqrt(4 / 5)])
    assert course[-1] == 0.55  # never below min_lr, where 0.5 would come


@pytest.mark.parametrize(
    ("style", "halfway"),
    [
        ("linear", 0.5),
        ("cosine", 0.5),
        ("exponential", math.sqrt(2) - 1),
        ("minus_sqrt", 1 - math.sqrt(0.5)),
    ],
)
def test_wsd_keeps_the_rate_and_anneals_at_the_end(style, halfway):
    anneal = {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4, "lr_wsd_decay_style": style}
    course = rates(12, lr_warmup_iters=2, min_lr=0.1, **anneal)
    assert course[:8] == pytest.approx([0.5] + [1.0] * 7)
    assert course[8] < 1.0
    assert course[9] == pytest.approx(0.1 + 0.9 * halfway)
    assert course[-1] == pytest.approx(0.1)


def test_an_anneal_longer_than_the_run_begins_after_the_warm_up():
    anneal = {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 40, "lr_wsd_decay_style": "linear"}
    assert rates(6, lr_warmup_iters=2, **anneal) == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("style", ["cosine", "linear", "inverse-square-root", "WSD"])
def test_counted_in_samples_the_rate_is_the_same(style):
    anneal = style == "WSD"
    course = {"lr": 1.0, "lr_decay_style": style}
    by_steps = OptimizerConfig(lr_warmup_iters=3, lr_wsd_decay_iters=4 * anneal, **course)
    by_samples = OptimizerConfig(lr_warmup_samples=24, lr_wsd_decay_samples=32 * anneal, **course)
    for step in range(1, 13):
        assert learning_rate(8 * step, 96, by_samples) == learning_rate(step, 12, by_steps)


RAMP = TrainingConfig(global_batch_size=32, rampup_batch_size=(8, 8, 90))


def sizes(training, steps):
    taken, consumed = [], 0
    for _ in range(steps):
        taken.append(batch_size(consumed, training))
        consumed += taken[-1]
    return taken


def test_the_batch_grows_at_equal_distances_and_then_stays():
    assert sizes(RAMP, 10) == [8] * 4 + [16] * 2 + [24] * 2 + [32] * 2  # grows at 30, 60 and 90
    assert batch_size(90, RAMP) == batch_size(10**12, RAMP) == 32
    assert sizes(TrainingConfig(global_batch_size=4), 3) == [4, 4, 4]


@pytest.mark.parametrize("samples", [7, 8, 40, 63, 88, 119, 120, 151, 152, 10**6])
def test_train_samples_are_whole_batches(samples):
    """As one would count them, one batch after the other."""
    training = TrainingConfig(
        global_batch_size=32, rampup_batch_size=(8, 8, 90), train_samples=samples
    )
    consumed = steps = 0
    while consumed + batch_size(consumed, training) <= samples:
        consumed, steps = consumed + batch_size(consumed, training), steps + 1
    assert train_iterations(training) == steps
    beyond = consumed if consumed == samples else consumed + batch_size(consumed, training)
    assert whole_batches(samples, training) == beyond
