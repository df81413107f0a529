"""What is advised to a job that does not fit: flags that can be given to it, and that change something."""

import pytest

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.planner.fitting import fitting
from megatron_yuyuan.planner.memory import fullest_rank
from megatron_yuyuan.validation import validate

SHAPE = (
    *("--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4"),
    *("--seq-length", "128", "--max-position-embeddings", "128", "--vocab-size", "300"),
    *("--micro-batch-size", "8", "--global-batch-size", "64", "--train-iters", "3"),
    *("--attention-dropout", "0.1"),
)
WHOLE_BLOCKS = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@pytest.mark.parametrize("given", ["--recompute-activations", "--recompute-granularity selective"])
def test_flags_that_are_advised_work_behind_the_command(given):
    words = [*SHAPE, *given.split()]
    config = parse_config("", words)
    capacity = 0.95 * fullest_rank(config, 2).total
    advised = fitting(config, 2, capacity)
    assert any(flags.endswith(WHOLE_BLOCKS) for flags in advised) and len(advised) > 2
    for flags in advised:
        changed = parse_config("", [*words, *flags.split()])
        validate(changed, 2)
        assert fullest_rank(changed, 2).total <= capacity


def test_what_changes_nothing_is_not_advised_where_more_was_measured_than_is_predicted():
    divided = ("--data-parallel-sharding-strategy", "optim_grads_params")
    config = parse_config("", [*SHAPE, *divided, *WHOLE_BLOCKS.split()])
    advised = fitting(config, 2, 1.05 * fullest_rank(config, 2).total)
    halves = {"--micro-batch-size", "--tensor-model-parallel-size"}
    assert {flags.split()[0] for flags in advised} == halves
