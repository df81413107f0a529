"""Steps that are taken, steps that are passed over, and batches that grow."""

import json

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.train.loss_scale import LossScale
from megatron_yuyuan.train.spikes import WINDOW, is_spike
from megatron_yuyuan.train.state import TrainState

RAMP = TINY.replace(
    rampup_batch_size=(4, 4, 8), train_iters=0, train_samples=28, lr_warmup_iters=0
).replace(lr_warmup_samples=8, hidden_dropout=0.1)


def parameters(trainer) -> list[torch.Tensor]:
    return [p.to_local().detach().clone() for p in trainer.state.stages[0].parameters()]


def unchanged(trainer, before: list[torch.Tensor]) -> bool:
    """On every rank: no parameter has moved, NaNs included."""
    pairs = zip(parameters(trainer), before, strict=True)
    same = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs)
    answer = torch.tensor(float(same))
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer)


def growing_steps(config):
    trainer, samples = build_trainer(config), RandomText()
    first = trainer.evaluate(RandomText(length=13))["validation_loss"]
    return first, [trainer.step(samples) for _ in range(4)]


def test_a_batch_that_grows_is_the_same_on_every_layout(ranks):
    validation, alone = ranks.run(1, growing_steps, RAMP)
    assert [s["global_batch_size"] for s in alone] == [4, 4, 8, 8]
    assert [s["consumed_samples"] for s in alone] == [4, 8, 16, 24]
    rates = [s["learning_rate"] for s in alone]
    assert rates[:2] == [0.005, 0.01]
    assert rates[2] > rates[3] > 0.0
    for layout in (Layout(pipeline=2, data=2), Layout(tensor=2)):
        config = RAMP.replace(micro_batch_size=2).replace(
            tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline
        )
        divided = ranks.run(layout.ranks, growing_steps, config)
        assert divided[0] == pytest.approx(validation, rel=1e-5)
        for step, expected in zip(divided[1], alone, strict=True):
            assert step["lm_loss"] == pytest.approx(expected["lm_loss"], rel=1e-5)
    whole = ranks.run(1, growing_steps, RAMP.replace(rampup_batch_size=()))
    assert whole[0] == validation
    assert abs(whole[1][0]["lm_loss"] / alone[0]["lm_loss"] - 1) > 1e-3


def poison(trainer, value: float) -> float:
    """Set one weight of the last rank; return what it was."""
    weight = next(iter(trainer.state.stages[0].parameters())).to_local().view(-1)
    before = weight[0].item()
    if dist.get_rank() == dist.get_world_size() - 1:
        with torch.no_grad():
            weight[0] = value
    return before


def skip_one(config):
    """(figures of a skipped step and of the one after it, updates held back, the next error)."""
    trainer, samples = build_trainer(config), RandomText()
    before_poison = poison(trainer, float("nan"))
    before = parameters(trainer)
    skipped = trainer.step(samples)
    held_back = unchanged(trainer, before)
    poison(trainer, before_poison)
    taken = trainer.step(samples)
    moments_have_seen = {s["step"].item() for s in trainer.state.optimizer.state.values()}
    poison(trainer, float("inf"))
    before = parameters(trainer)
    try:
        trainer.step(samples)
        message = ""
    except DataError as error:
        message = str(error)
    held_back = held_back and unchanged(trainer, before)
    state = trainer.state
    counts = (state.iteration, state.optimizer_steps, state.skipped_iterations, moments_have_seen)
    return skipped, taken, held_back, counts, message


def second_batch_alone(config):
    trainer = build_trainer(config)
    trainer.state.iteration, trainer.state.consumed_samples = 1, 8
    return trainer.step(RandomText())["lm_loss"]


@pytest.mark.parametrize("layout", [Layout(), Layout(pipeline=2), Layout(1, 2, 2)], ids=str)
def test_a_step_that_is_not_finite_updates_nothing_on_any_rank(ranks, layout):
    config = layout.of(TINY.replace(max_skipped_iterations=1))
    skipped, taken, held_back, counts, message = ranks.run(layout.ranks, skip_one, config)
    assert held_back
    assert (skipped["reason"], skipped["samples"], skipped["iteration"]) == (
        "not finite",
        [0, 7],
        1,
    )
    assert "reason" not in taken
    assert taken["lm_loss"] == ranks.run(layout.ranks, second_batch_alone, config)
    assert counts == (2, 1, 1, {1.0})
    assert message.startswith("iteration 3: loss")
    assert "on samples 16 to 23" in message
    assert "--max-skipped-iterations 2" in message


def test_a_spike_is_six_deviations_above_the_mean():
    recent = [1.0, 3.0] * 32  # mean 2, standard deviation 1.008
    assert not is_spike(8.0, recent)
    assert is_spike(8.1, recent)
    assert not is_spike(-100.0, recent)
    assert not is_spike(8.1, recent[1:])  # less than half a window


def spiky(config):
    """(a step taken as a spike, one that is not, updates held back, the window after them)."""
    trainer, samples = build_trainer(config), RandomText()
    trainer.state.recent_losses = [0.1, 0.2] * (WINDOW // 2)
    before = parameters(trainer)
    first = trainer.step(samples)
    held_back = unchanged(trainer, before)
    document = json.loads(json.dumps(trainer.state.history()))
    restored = TrainState([], None, None, LossScale(config.training))
    restored.recall(document)
    assert restored.recent_losses == trainer.state.recent_losses
    trainer.state.recent_losses = [100.0, 200.0] * (WINDOW // 2)
    return first, trainer.step(samples), held_back, restored.recent_losses


@pytest.mark.parametrize("layout", [Layout(), Layout(2, 1, 2)], ids=str)
def test_a_loss_spike_is_passed_over_and_remembered(ranks, layout):
    config = layout.of(TINY.replace(skip_loss_spikes=True))
    first, second, held_back, window = ranks.run(layout.ranks, spiky, config)
    assert held_back
    assert first["reason"] == "loss spike"
    assert "reason" not in second
    assert len(window) == WINDOW
    assert window[-1] == first["lm_loss"]


def test_a_state_of_before_has_no_history():
    state = TrainState([], None, None, LossScale(TINY.training))
    fresh = state.history()
    state.recall({"iteration": 3})
    assert state.history() == fresh
