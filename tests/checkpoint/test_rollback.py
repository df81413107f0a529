"""A loss spike takes the run back, the samples that led to it are left out, and a restart keeps to that."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist
from tiny import TINY, Layout, build_trainer

from megatron_yuyuan.checkpoint import rollback as rollback_module
from megatron_yuyuan.checkpoint.dcp import load_tensors, read_state
from megatron_yuyuan.checkpoint.rollback import Rollback
from megatron_yuyuan.checkpoint.saver import build_saver
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigErrors, DataError
from megatron_yuyuan.log import Log, read_events, read_metrics
from megatron_yuyuan.train.loop import train
from megatron_yuyuan.train.spikes import left_out_too, number_of, same_until
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import find_checkpoint

CONFIG = TINY.replace(
    num_layers=2,
    hidden_dropout=0.1,
    lr_decay_style="constant",
    lr_warmup_iters=0,
    train_iters=14,
    eval_iters=0,
    save_interval=4,
    rollback_iters=3,
    rollback_skip_batches=6,
)
POISON = range(72, 80)
"""The samples of iteration 10."""
TOKENIZER = SimpleNamespace(fingerprint="0", vocab_size=120)


class Text:
    """One of four tokens again and again; in the poisoned samples random ones. Notes what is read; after a
    while, reading the sample `broken` ends the run as a kill would."""

    def __init__(self, poison, broken: int):
        self.poison, self.broken, self.read = poison, broken, []

    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        self.read.append(number)
        if number == self.broken and len(self.read) > 20:
            raise KeyboardInterrupt
        chosen = np.random.default_rng(number % 200)
        usual, random = np.full(17, chosen.integers(0, 4)), chosen.integers(0, 120, 17)
        text = random if number in self.poison else usual
        return text[:-1], text[1:]


def trained(config: Config, directory, poison=POISON, broken: int = -1) -> tuple[list, str]:
    """Train, from what is saved there; (the samples that were read, of all data ranks; what ended it)."""
    config = config.replace(save=str(directory))
    trainer, samples, ended = build_trainer(config), Text(poison, broken), ""
    state = trainer.state
    if path := find_checkpoint(directory):
        saved = read_state(path)
        state.fill(partial(load_tensors, path))
        state.continue_after(
            saved["iteration"], saved["consumed_samples"], saved["optimizer_steps"]
        )
        state.recall(saved)
    else:
        for _ in range(16):  # what it has learned, a spike stands out of
            trainer.step(Text((), -1))
        state.continue_after(0, 0, state.optimizer_steps)
        state.recent_losses = [0.0, 0.5] * 32
    log = Log(directory, trainer.mesh.is_main)
    if state.iteration:
        log.event("restart", iteration=state.iteration)
    saver = build_saver(config, state, TOKENIZER, None, log)
    rollback = Rollback(config, state, saver, log)
    try:
        with log, saver:
            stopping = Stopping(config.training)
            train(trainer, samples, None, saver, stopping, log, take_back=rollback)
    except (DataError, KeyboardInterrupt) as error:
        ended = str(error) or "killed"
    shares: list = [None] * dist.get_world_size()
    dist.all_gather_object(shares, samples.read)
    return sorted(set().union(*map(set, shares))), ended


def steps(save: Path) -> dict[int, tuple]:
    found = read_metrics(save / "metrics.jsonl", "step")
    return {s["iteration"]: (s["lm_loss"], s["grad_norm"], s["consumed_samples"]) for s in found}


def rollbacks(save: Path) -> list[dict]:
    return [e for e in read_events(save / "metrics.jsonl") if e["event"] == "rollback"]


@pytest.fixture(scope="module")
def alone(ranks, tmp_path_factory) -> Path:
    """One process, undisturbed."""
    save = tmp_path_factory.mktemp("alone")
    read, ended = ranks.run(1, trained, CONFIG, save)
    assert ended == ""
    assert read == [*range(80), *range(80, 80 + 80)]
    return save


def test_the_samples_that_led_to_a_spike_are_left_out_and_no_other(alone):
    [event] = rollbacks(alone)
    assert (event["iteration"], event["left_out"], event["rollbacks"]) == (4, [32, 79], 1)
    spike = event["spike"]
    assert (spike["iteration"], spike["samples"]) == (10, [72, 79])
    taken = steps(alone)
    assert spike["lm_loss"] > 2.0
    assert sorted(taken) == list(range(1, 15))
    assert [figures[2] for figures in taken.values()] == [8 * i for i in taken]
    assert max(loss for loss, *_ in taken.values()) < 0.5  # the spike is nowhere in it
    state = read_state(find_checkpoint(alone))
    assert (state["left_out"], state["rollbacks"], state["consumed_samples"]) == (
        [[32, 79]],
        1,
        112,
    )


@pytest.mark.parametrize(
    "layout",
    [Layout(2, 1, 1), pytest.param(Layout(2, 2, 2, True), marks=pytest.mark.slow)],
    ids=str,
)
def test_every_layout_goes_back_alike(ranks, alone, tmp_path, layout):
    config = layout.of(CONFIG).replace(async_save=True)
    read, ended = ranks.run(layout.ranks, trained, config, tmp_path)
    assert (read, ended) == (list(range(160)), "")
    [event], [expected] = rollbacks(tmp_path), rollbacks(alone)
    for name in ("iteration", "left_out", "rollbacks"):
        assert event[name] == expected[name]
    for iteration, figures in steps(alone).items():
        assert steps(tmp_path)[iteration] == pytest.approx(figures, rel=1e-3)


@pytest.mark.parametrize(
    "broken",
    [96, pytest.param(120, marks=pytest.mark.slow)],
    ids=["before_the_next_save", "after_it"],
)
def test_a_restart_keeps_to_it_bit_for_bit(ranks, alone, tmp_path, broken):
    read, ended = ranks.run(1, trained, CONFIG, tmp_path, POISON, broken)
    assert ended == "killed"
    assert max(read) == broken
    read, ended = ranks.run(1, trained, CONFIG, tmp_path)
    assert ended == ""
    assert min(read) == (80 if broken == 96 else 112)  # none that is left out
    assert steps(tmp_path) == steps(alone)
    assert len(rollbacks(tmp_path)) == 1


@pytest.mark.slow
def test_a_spike_that_comes_again_is_left_out_too_and_the_oldest_passed_over(ranks, tmp_path):
    """Two batches at a time, from iteration 4 each time, until no checkpoint is old enough."""
    config = CONFIG.replace(rollback_skip_batches=2)
    read, ended = ranks.run(1, trained, config, tmp_path)
    assert ended == ""
    taken = rollbacks(tmp_path)
    assert [e["spike"]["iteration"] for e in taken] == [10, 8]
    assert [e["left_out"] for e in taken] == [[32, 47], [48, 63]]
    assert read_state(find_checkpoint(tmp_path))["left_out"] == [[32, 63]]
    [skip] = read_metrics(tmp_path / "metrics.jsonl", "skip")
    assert (skip["iteration"], skip["reason"], skip["samples"]) == (6, "loss spike", [72, 79])
    assert max(read) == 8 * 14 + 31
    again = tmp_path / "again"
    _, ended = ranks.run(1, trained, config.replace(max_rollbacks=1), again)
    assert ended.startswith("iteration 8: loss ")
    assert "the run was taken back 1 times (max_rollbacks)" in ended


@pytest.mark.slow
def test_a_second_spike_is_left_out_where_the_run_goes_back_before_the_first(ranks, tmp_path):
    """So many batches as it says, beside those that were left out before."""
    config = CONFIG.replace(save_interval=1)
    _, ended = ranks.run(1, trained, config, tmp_path, (*POISON, *range(104, 112)))
    assert ended == ""
    taken = [(e["spike"]["iteration"], e["left_out"]) for e in rollbacks(tmp_path)]
    assert taken == [(10, [56, 103]), (8, [40, 135])]


def damaged(config: Config, directory) -> list[dict]:
    """Train until the spike has been taken back; at that moment the newest checkpoint to go back to is
    damaged."""
    load = rollback_module.load_tensors

    def damage_and_load(path, tensors):
        if path.name == "iter_0000006":
            [file] = path.glob("*.distcp")
            whole = bytearray(file.read_bytes())
            whole[len(whole) // 2] ^= 1
            file.write_bytes(whole)
        load(path, tensors)

    rollback_module.load_tensors = damage_and_load
    trained(config, directory)
    return rollbacks(directory)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_gone_back_to(ranks, tmp_path):
    [event] = ranks.run(1, damaged, CONFIG.replace(save_interval=3), tmp_path)
    assert (event["spike"]["iteration"], event["iteration"]) == (10, 3)
    assert event["left_out"] == [24, 71]


def with_strangers(config: Config, directory) -> list[str]:
    """What a run may go back to whose folder has a checkpoint of a person's, one without its state.json, and
    one of an older version."""
    trained(config, directory, poison=())
    shutil.copytree(directory / "iter_0000004", directory / "iter_best")
    (directory / "iter_0000008" / "state.json").write_text("{")
    state, lines = SimpleNamespace(left_out=[]), list[str]()
    log = SimpleNamespace(line=lines.append)
    rollback = Rollback(config.replace(save=str(directory)), state, None, log)
    return [*(path.name for path, _ in rollback._candidates(8)), *lines]


def test_what_is_no_checkpoint_of_the_run_or_damaged_is_passed_over(ranks, tmp_path):
    first, said = ranks.run(1, with_strangers, CONFIG, tmp_path)
    assert first == "iter_0000004"
    assert said.startswith("warning: ") and "iter_0000008/state.json cannot be read" in said


def other_branch(config: Config, directory) -> list[str]:
    """Names of the checkpoints that a run which has left samples out may go back to."""
    trained(config, directory, poison=())
    state = SimpleNamespace(left_out=[[32, 79]])
    rollback = Rollback(config.replace(save=str(directory)), state, None, None)
    return [path.name for path, _ in rollback._candidates(12)]


@pytest.mark.slow
def test_checkpoints_that_have_read_what_is_left_out_are_of_another_run(ranks, tmp_path):
    assert ranks.run(1, other_branch, CONFIG, tmp_path) == ["iter_0000004"]


def test_positions_and_numbers():
    left_out = left_out_too(left_out_too([], 40, 49), 10, 19)
    assert left_out == [[10, 19], [40, 49]]
    numbers = [number_of(position, left_out) for position in range(60)]
    assert numbers == [n for n in range(80) if not (10 <= n < 20 or 40 <= n < 50)]
    assert left_out_too(left_out, 20, 39) == [[10, 49]]
    assert left_out_too(left_out, 15, 24) == [[10, 24], [40, 49]]
    assert same_until(40, left_out, [[10, 19]])
    assert not same_until(41, left_out, [[10, 19]])
    assert not same_until(20, left_out, [])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"skip_loss_spikes": True}, "rollback_iters=3 and skip_loss_spikes"),
        ({"max_rollbacks": 0}, "max_rollbacks=0 with rollback_iters=3"),
        ({"rollback_skip_batches": 0}, "rollback_skip_batches=0 with rollback_iters=3"),
        ({"rollback_iters": 100, "keep_last": 5}, "keep_last=5 with save_interval=4"),
        ({"keep_best": 1}, "keep_best=1 with save_interval=4"),
        ({"save": ""}, "rollback_iters without save"),
        ({"rollback_iters": 0}, "rollback_skip_batches without rollback_iters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(changes, what):
    config = CONFIG.replace(save="run")
    validate(config, 1)
    with pytest.raises(ConfigErrors, match=what):
        validate(config.replace(**changes), 1)
