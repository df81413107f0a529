"""--profile: a Chrome trace of the steps that were asked for, by the ranks that were asked."""

import gzip
import json
from pathlib import Path

import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.train.profile import ProfiledTrainer, choose_trainer, profiled_iterations
from megatron_yuyuan.train.trainer import Trainer

PROFILED = TINY.replace(profile=True, profile_step_start=2, profile_step_end=4, num_layers=2)


def traced_run(config, taken: int = 0) -> tuple[str, list[float]]:
    """(kind of the last rank's trainer, losses) of a run of 4 steps that begins after `taken`."""
    state = build_trainer(config).state
    state.iteration, state.consumed_samples = taken, 8 * taken
    trainer = choose_trainer(config, state, None)
    losses = [trainer.step(RandomText())["lm_loss"] for _ in range(4 - taken)]
    kinds: list = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, type(trainer).__name__)
    return kinds[-1], losses


def traces(save: Path) -> dict[str, int]:
    """{file: optimizer steps in it}."""
    found = {}
    for path in sorted(save.rglob("*.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        steps = [e for e in events if e.get("name", "").startswith("Optimizer.step")]
        found[str(path.relative_to(save))] = len(steps)
    return found


def test_every_rank_writes_a_trace_of_the_steps_asked_for(ranks, tmp_path):
    config = Layout(data=2).of(PROFILED.replace(save=str(tmp_path)))
    kind, losses = ranks.run(2, traced_run, config)
    assert kind == ProfiledTrainer.__name__
    assert traces(tmp_path) == {"profile/rank_00.json.gz": 2, "profile/rank_01.json.gz": 2}
    off = config.replace(profile=False, profile_ranks=(0,))
    assert ranks.run(2, traced_run, off) == (Trainer.__name__, losses)


def test_only_the_ranks_asked_for_write_one_and_a_run_that_goes_on_what_is_left(ranks, tmp_path):
    config = Layout(tensor=2).of(PROFILED.replace(save=str(tmp_path), profile_ranks=(0,)))
    kind, _ = ranks.run(2, traced_run, config, 2)
    assert kind == Trainer.__name__
    assert traces(tmp_path) == {"profile/rank_00.json.gz": 1}


def left_early(config) -> None:
    trainer = choose_trainer(config, build_trainer(config).state, None)
    for _ in range(2):
        trainer.step(RandomText())
    trainer.close()
    trainer.close()  # there is nothing left to write


def test_a_run_that_ends_inside_its_recorded_steps_keeps_those_it_has_taken(ranks, tmp_path):
    """torch's profiler, left running, would end the process with a segmentation fault."""
    ranks.run(1, left_early, PROFILED.replace(save=str(tmp_path)))
    assert traces(tmp_path) == {"profile/rank_00.json.gz": 1}


def test_which_iterations_are_recorded():
    assert profiled_iterations(PROFILED, taken=0) == range(2, 4)
    assert profiled_iterations(PROFILED, taken=2) == range(3, 4)
    assert not profiled_iterations(PROFILED, taken=3)
    assert profiled_iterations(PROFILED.replace(profile_step_end=9), taken=0) == range(2, 6)
    assert not profiled_iterations(PROFILED.replace(train_iters=1), taken=0)
