"""float16: the rule of its loss scale, the steps that overflow, and where the others lead."""

import json
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from commands import run, train_flags
from hypothesis import given
from hypothesis import strategies as st
from portions import in_portions
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.config import TrainingConfig
from megatron_yuyuan.errors import ConfigErrors, DataError
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.parallel.pipeline import Pipeline
from megatron_yuyuan.train.loss_scale import LossScale
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import find_checkpoint

FP16 = TINY.replace(fp16=True)


def scales(training: TrainingConfig, overflows: str) -> list[float]:
    """The scale of each step of a sequence; x overflows."""
    rule, seen = LossScale(training), []
    for sign in overflows:
        seen.append(rule.scale)
        rule.update(sign == "x")
    return [*seen, rule.scale]


KNOWN = [
    ("xx", 2, [64, 64, 32]),
    ("x.x", 2, [64, 64, 64, 32]),  # steps between do not forgive an overflow
    ("xxxx", 2, [64, 64, 32, 16, 8]),  # borne once, then every one counts
    ("xxx", 1, [64, 32, 16, 8]),
    ("...", 2, [64, 64, 64, 128]),
    ("..x...", 2, [64, 64, 64, 64, 64, 64, 128]),  # in a row
    ("x...xx", 2, [64, 64, 64, 64, 128, 128, 64]),  # growth forgives
    ("xxxxxxx", 1, [64, 32, 16, 8, 4, 4, 4, 4]),  # the smallest
]


@pytest.mark.parametrize(("overflows", "hysteresis", "expected"), KNOWN)
def test_known_sequences(overflows, hysteresis, expected):
    training = TrainingConfig(fp16=True, initial_loss_scale=64, min_loss_scale=4)
    training = replace(training, loss_scale_window=3, hysteresis=hysteresis)
    assert scales(training, overflows) == expected


def megatrons(training: TrainingConfig, overflows: str) -> list[float]:
    """The same after megatron/core/optimizer/grad_scaler.py, line by line."""
    scale, growth, left = training.initial_loss_scale, 0, training.hysteresis
    seen = [scale]
    for sign in overflows:
        if sign == "x":
            growth = 0
            left -= 1
            if left <= 0:
                scale = max(scale * 0.5, training.min_loss_scale)
        else:
            growth += 1
            if growth == training.loss_scale_window:
                growth, left = 0, training.hysteresis
                scale = scale * 2.0
        seen.append(scale)
    return seen


@given(st.text(".x", max_size=60), st.integers(1, 4), st.integers(1, 5))
def test_the_rule_is_megatrons_and_survives_a_restart(overflows, hysteresis, window):
    training = TrainingConfig(fp16=True, loss_scale_window=window, hysteresis=hysteresis)
    expected = megatrons(training, overflows)
    assert scales(training, overflows) == expected
    rule = LossScale(training)
    for sign in overflows:
        restarted = LossScale(training)
        restarted.load_state_dict(json.loads(json.dumps(rule.state_dict())))
        rule = restarted
        rule.update(sign == "x")
    assert rule.scale == expected[-1]
    assert rule.overflows == overflows.count("x")


def test_a_scale_that_is_not_dynamic_never_moves():
    dynamic = LossScale(FP16.training)
    for training, scale in (
        (TrainingConfig(), 1.0),
        (TrainingConfig(bf16=True), 1.0),
        (TrainingConfig(fp16=True, loss_scale=128), 128),
    ):
        rule = LossScale(training)
        assert rule.state_dict() == {}
        rule.load_state_dict(dynamic.state_dict())
        rule.update(True)
        assert (rule.scale, rule.can_fall) == (scale, False)
        dynamic.load_state_dict(rule.state_dict())
    assert dynamic.scale == 2**16


def test_megatrons_flags_are_the_configuration():
    flags = "--fp16 --initial-loss-scale 4096 --min-loss-scale 2 --loss-scale-window 500"
    training = parse_config("", [*flags.split(), "--hysteresis", "3"]).training
    rule = LossScale(training)
    assert (rule.scale, rule.hysteresis_tracker) == (4096.0, 3)
    assert (training.loss_scale_window, training.min_loss_scale) == (500, 2.0)
    assert LossScale(parse_config("", ["--fp16", "--loss-scale", "64"]).training).scale == 64.0


WRONG = [
    ({"fp16": True, "bf16": True}, "fp16 and bf16"),
    ({"loss_scale": 2.0, "hysteresis": 3}, "loss_scale and hysteresis without fp16"),
    ({"fp16": True, "min_loss_scale": 2.0**17}, "is above initial_loss_scale=65536.0"),
    ({"fp16": True, "loss_scale_window": 0}, "loss_scale_window is not given"),
]


@pytest.mark.parametrize(("changes", "what"), WRONG, ids=[what for _, what in WRONG])
def test_what_cannot_work_is_refused(changes, what):
    with pytest.raises(ConfigErrors, match=what):
        validate(TINY.replace(**changes), 1)
    validate(FP16, 1)


def losses(config, steps: int = 5) -> list[float]:
    trainer, samples = build_trainer(config), RandomText()
    return [trainer.step(samples)["lm_loss"] for _ in range(steps)]


FP16_BOUND = 1e-3


@pytest.fixture(scope="module")
def float32(ranks):
    return ranks.run(1, losses, TINY)


@pytest.mark.parametrize("layout", [Layout(), Layout(2, 1, 2, True)], ids=str)
def test_fp16_follows_float32_within_the_spread_of_its_rounding(ranks, float32, layout):
    """Here bfloat16 is 8e-4 away from float32, float16, which has three bits more, 2e-4. The bound is a
    few times that, and far below what the steps change."""
    actual = ranks.run(layout.ranks, losses, layout.of(FP16))
    assert actual == pytest.approx(float32, rel=FP16_BOUND)
    assert actual != pytest.approx(float32, rel=1e-7)  # it was float16
    assert abs(float32[-1] / float32[0] - 1) > 30 * FP16_BOUND


def dtypes_and_gradients(config) -> tuple[set, list[float], float]:
    """Dtypes of what is at rest; norm of the gradient as it lies and as it is told."""
    trainer, samples = build_trainer(config), RandomText()
    told = trainer.gradients(samples)[1]
    parameters = [p for stage in trainer.state.stages for p in stage.parameters()]
    lies = sum(p.grad.to_local().double().square().sum().item() for p in parameters) ** 0.5
    trainer.step(samples)
    resting = [*parameters, *(p.grad for p in parameters)]
    resting += [trainer.state.moments(p)["exp_avg_sq"] for p in parameters]
    return {tensor.dtype for tensor in resting}, lies, told


def test_what_rests_is_float32_and_the_scale_is_in_the_gradient_alone(ranks):
    dtypes, lies, told = ranks.run(1, dtypes_and_gradients, FP16)
    assert dtypes == {torch.float32}
    assert lies == pytest.approx(told * 2**16, rel=1e-6)


def weights(trainer) -> torch.Tensor:
    parameters = [p for stage in trainer.state.stages for p in stage.parameters()]
    return torch.cat([p.to_local().detach().flatten() for p in parameters])


def overflowing(config, numbers: list[int]) -> tuple[list[dict], list[bool], dict]:
    """Figures of six steps of which those numbered overflow on the last rank alone; whether all ranks
    kept their weights and tell the same scale; the history."""
    trainer, samples, kept = build_trainer(config), RandomText(), []
    compute, taken = Pipeline.forward_backward, []

    def spoiled(pipeline, *arguments):
        loss = compute(pipeline, *arguments)
        if trainer.state.iteration in numbers and dist.get_rank() == dist.get_world_size() - 1:
            parameter = next(trainer.state.stages[-1].parameters())
            parameter.grad.to_local().view(-1)[0] = float("inf")
        return loss

    Pipeline.forward_backward = spoiled
    try:
        for _ in range(6):
            before = weights(trainer)
            taken.append(trainer.step(samples))
            same = torch.tensor([float(torch.equal(before, weights(trainer)))])
            told = torch.tensor([trainer.state.loss_scale.scale])
            dist.all_reduce(same, dist.ReduceOp.MIN)
            dist.all_reduce(told, dist.ReduceOp.MAX)
            kept.append(bool(same) and told.item() == trainer.state.loss_scale.scale)
    finally:
        Pipeline.forward_backward = compute
    state = trainer.state
    assert state.consumed_samples == 6 * config.training.global_batch_size
    assert state.optimizer_steps == 6 - len(numbers)
    return taken, kept, state.history()


@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1, 2)], ids=str)
def test_an_overflow_is_passed_over_alike_on_every_rank(ranks, layout):
    config = layout.of(FP16).replace(loss_scale_window=2, initial_loss_scale=64.0, train_iters=9)
    taken, kept, history = ranks.run(layout.ranks, overflowing, config, [0, 1, 2])
    assert [step.get("reason") for step in taken] == ["overflow"] * 3 + [None] * 3
    assert [step["loss_scale"] for step in taken] == [64, 64, 32, 16, 16, 32]
    assert [step.get("next_loss_scale") for step in taken] == [64, 32, 16, None, None, None]
    assert kept == [True] * 3 + [False] * 3
    assert taken[2]["samples"] == [16, 23]
    assert (history["skipped_iterations"], history["loss_scale"]["overflows"]) == (0, 3)


def at_the_smallest_scale(config) -> str:
    try:
        overflowing(config, [0, 1, 2])
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "scale", [{"initial_loss_scale": 2.0, "hysteresis": 1}, {"loss_scale": 2.0}], ids=str
)
def test_an_overflow_that_no_smaller_scale_can_mend_is_an_error(ranks, scale):
    message = ranks.run(1, at_the_smallest_scale, FP16.replace(**scale))
    first = 1 if "loss_scale" in scale else 2  # the static scale cannot fall at all
    assert message.startswith(f"iteration {first}: loss ")
    assert f"gradient norm inf at loss scale {3 - first}" in message or "loss scale 2," in message
    assert "--bf16 in place of --fp16" in message


def test_a_resumed_run_keeps_scale_and_hysteresis_to_the_bit(ranks):
    """The first scales overflow by themselves; the cut is between the overflow that is borne and the
    first that halves."""
    config = FP16.replace(initial_loss_scale=2.0**20, loss_scale_window=2, train_iters=9)
    expected, actual = ranks.run(2, in_portions, Layout(pipeline=2).of(config), 1)
    assert repr(actual) == repr(expected)  # a norm that is not a number equals nothing
    assert [reason for *_, reason in expected] == ["overflow"] * 3 + [None] * 3
    assert [scale / 2**18 for *_, scale, _ in expected] == [4, 4, 2, 1, 1, 2]


def figures(save) -> list[tuple]:
    """What a run says of its steps, those passed over too."""
    events = [e for name in ("step", "skip") for e in read_metrics(save / "metrics.jsonl", name)]
    names = ("iteration", "lm_loss", "grad_norm", "loss_scale", "reason")
    return sorted(tuple(map(event.get, names)) for event in events)


@pytest.mark.slow
def test_a_run_stopped_after_an_overflow_goes_on_with_its_scale(prepared, tmp_path):
    whole, portions = tmp_path / "whole", tmp_path / "portions"
    fp16 = ("--fp16", "--initial-loss-scale", 2**30, "--loss-scale-window", 3)
    run(*train_flags(prepared, whole, *fp16))
    command = train_flags(prepared, portions, *fp16, "--exit-interval", 1)
    for _ in range(2):  # after the first overflow; after the second
        run(*command, status=75)
    run(*train_flags(prepared, portions, *fp16))
    assert figures(portions) == figures(whole)
    assert [f[3:] for f in figures(whole)[:3]] == [(2.0**e, "overflow") for e in (30, 30, 29)]
    kept = json.loads((find_checkpoint(portions) / "state.json").read_text())["loss_scale"]
    assert kept["overflows"] == sum(f[4] == "overflow" for f in figures(whole))
