"""A step of a rank that does not exist counts what a real one does."""

import pytest
import torch
import torch.distributed as dist
from parallel.test_collectives import expected_over, set_chunk
from planner.executed import executed_flops
from planner.test_memory import BOUND, WIDE, configured, peaks
from tiny import TINY, Layout, RandomText, build_trainer
from torch.utils.flop_counter import FlopCounterMode

from megatron_yuyuan.config import Config
from megatron_yuyuan.model import loss as loss_module
from megatron_yuyuan.planner.dry_run import count_a_step, count_whole_step, dry_run, fake_rank
from megatron_yuyuan.planner.flops import Flops
from megatron_yuyuan.planner.memory import predict_memory
from megatron_yuyuan.train.state import named_parameters

SMALL = TINY.replace(num_layers=4)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}


@pytest.mark.parametrize(
    "layout", [Layout(2), pytest.param(Layout(1, 2, 2, True), marks=pytest.mark.slow)], ids=str
)
def test_a_fake_rank_holds_what_a_real_one_holds(ranks, layout):
    config = configured(layout, {})
    measured = ranks.run(layout.ranks, peaks, config)
    last = layout.ranks - 1
    assert dry_run(config, layout.ranks, last).peak == pytest.approx(measured[last], rel=1e-2)
    predicted = predict_memory(config, layout.ranks, layout.pipeline - 1)
    assert predicted.total == pytest.approx(measured[last], rel=BOUND)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="its first step probes the pipeline")
@pytest.mark.parametrize(
    "layout",
    [Layout(2, 2, 2, True), pytest.param(Layout(1, 2, 2), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_fake_rank_exchanges_what_the_formulas_say(layout, monkeypatch):
    config = layout.of(SMALL)
    for limit in ("LOGITS_AT_A_TIME", "LOGITS_ON_CUDA"):  # set_chunk sets both
        monkeypatch.setattr(loss_module, limit, 0)
    set_chunk(config)
    for number in {0, layout.ranks - 1}:
        with fake_rank(config, layout.ranks, number) as mesh:
            should, report = expected_over(mesh, config), count_whole_step(config, mesh)
        assert report.exchanged == should
        assert len(should) > 3


FLOPS = {
    "tensor": (Layout(tensor=2), {}),
    "pipeline, full": (Layout(2), FULL),
    "selective, dropout": (Layout(), {"recompute_granularity": "selective", "hidden_dropout": 0.1}),
    "unfused, selective": (
        Layout(tensor=2),
        {"recompute_granularity": "selective", "attention_dropout": 0.1},
    ),
}
LONGER = ("tensor", "selective, dropout", "unfused, selective")
"""Run by make test-all."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=pytest.mark.slow if name in LONGER else ())
        for name, case in FLOPS.items()
    ],
)
def test_executed_flops_are_those_of_the_formula(case):
    layout, changes = case
    config = layout.of(SMALL).replace(**changes)
    last = layout.ranks - 1
    pipeline_rank = layout.pipeline - 1
    assert dry_run(config, layout.ranks, last).flops == executed_flops(
        config, layout.ranks, pipeline_rank
    )


def counted_twice(config: Config) -> tuple[int, int]:
    """FLOPs of a real step by our mode and by torch's counter, which misses products in place: the
    configuration has none."""
    trainer, samples = build_trainer(config), RandomText(config)
    with Flops() as ours, FlopCounterMode(display=False) as torchs:
        trainer.step(samples)
    return ours.total, torchs.get_total_flops()


def test_flops_are_those_of_torchs_counter(ranks):
    """Unfused attention, which torch's counter knows on the CPU, and 16 bits, where no sum is in place."""
    config = SMALL.replace(attention_impl="fused_softmax", bf16=True)
    ours, torchs = ranks.run(1, counted_twice, config)
    assert ours == torchs == executed_flops(config, 1)


@pytest.mark.parametrize(
    ("layout", "schedule"),
    [
        (Layout(), "1F1B"),
        pytest.param(Layout(2), "1F1B", marks=pytest.mark.slow),
        pytest.param(Layout(2), "Interleaved1F1B", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_long_step_is_two_short_ones_and_their_difference(layout, schedule):
    config = layout.of(SMALL if layout.pipeline > 1 else SMALL.replace(num_layers=1)).replace(
        pipeline_schedule=schedule, micro_batch_size=1, global_batch_size=8
    )
    with fake_rank(config, layout.ranks, 0) as mesh:
        extended, whole = count_a_step(config, mesh), count_whole_step(config, mesh)
    assert (extended.flops, extended.exchanged) == (whole.flops, whole.exchanged)
    assert extended.peak == pytest.approx(whole.peak, rel=2e-2)  # a longer batch has more tokens
    short = dry_run(config.replace(global_batch_size=4), layout.ranks, 0)
    assert whole.flops == 2 * short.flops  # not vacuous: the steps differ


def resting(config: Config) -> list[dict[str, int]]:
    """What lies on each rank after a step."""
    trainer = build_trainer(config)
    trainer.step(RandomText(config))
    parameters = [parameter for _, parameter in named_parameters(trainer.state.stages)]
    mine = {
        "parameters": sum(p.to_local().numel() for p in parameters),
        "gradients": sum(p.grad.to_local().nbytes for p in parameters),
    }
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def test_a_fake_rank_rests_as_a_real_one(ranks):
    config = Layout(2, 2).of(SMALL)
    real = ranks.run(4, resting, config)
    for number in (0, 3):
        report = dry_run(config, 4, number)
        assert {name: getattr(report, name) for name in real[number]} == real[number]


def test_nothing_is_left_of_a_fake_job():
    dry_run(SMALL, 8, 5)
    assert not dist.is_initialized()


def test_a_gpus_kernels_keep_no_mask_of_dropout():
    """device auto and cuda are a GPU's; cpu is the reference's."""
    config = WIDE.replace(hidden_dropout=0.1, bf16=True, global_batch_size=2, num_layers=1)
    reference = dry_run(config.replace(device="cpu"), 1, 0).activations
    fused = dry_run(config.replace(device="auto"), 1, 0).activations
    tokens, dropouts = 2 * 128, 2 * 1 + 1
    mask, rows, exact_statistics = tokens * 192, tokens * 8, tokens * 2 * 2
    assert reference - fused == dropouts * (mask - rows - exact_statistics)
