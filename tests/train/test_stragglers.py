"""A rank that needs longer for the same work is named (row T27)."""

import json
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import train_flags
from pretraining import pretrained
from tiny import TINY

from megatron_yuyuan.log import Log, read_metrics
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.train.stragglers import ROUNDS, Stragglers, slow_ranks


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([1.0, 1.0, 1.0, 2.1], {3: 2.1}),
        ([1.0, 1.4], {}),
        ([2.0, 1.0], {0: 2.0}),
        ([1.0], {}),
        ([3.0, 1.0, 1.1, 1.5], {0: 3.0 / 1.1}),
    ],
)
def test_who_is_slow_is_slower_than_the_median(seconds, slow):
    assert slow_ranks(seconds) == slow


def named_with_a_slow_rank(save: Path, slow: int, asked: bool) -> int:
    """Rounds of products on this rank, if each takes 20 ms, and 30 ms more on one."""
    config = TINY.replace(log_straggler=asked)
    mesh, rounds = mesh_module.start(config.parallel), []
    stragglers = Stragglers(config, mesh, Log(str(save), mesh.is_main))

    def round_of_products(*_) -> float:
        rounds.append(0.02 + 0.03 * (dist.get_rank() == slow))
        time.sleep(rounds[-1])
        return rounds[-1]

    stragglers._round = round_of_products
    stragglers.name_them(iteration=7)
    return len(rounds)


def test_the_rank_that_is_slow_is_named_in_the_log_and_as_an_event(ranks, tmp_path):
    assert ranks.run(4, named_with_a_slow_rank, tmp_path, 1, True) == ROUNDS
    [event] = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (event["event"], event["iteration"], event["rank"]) == ("straggler", 7, 1)
    assert event["slower"] == pytest.approx(2.5)


def test_nothing_is_measured_unasked(ranks, tmp_path):
    assert ranks.run(2, named_with_a_slow_rank, tmp_path, 1, False) == 0


def test_a_run_that_looks_for_stragglers_takes_the_same_steps(ranks, prepared, tmp_path):
    """It draws nothing and leaves nothing behind in the state."""
    losses = []
    for name, flags in (("with", ("--log-straggler",)), ("without", ())):
        ranks.run(2, pretrained, train_flags(prepared, tmp_path / name, "--train-iters", 4, *flags))
        steps = read_metrics(tmp_path / name / "metrics.jsonl", "step")
        losses.append([(step["lm_loss"], step["grad_norm"]) for step in steps])
    assert losses[0] == losses[1] and len(losses[0]) == 4
