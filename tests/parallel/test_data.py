"""What a data rank holds is a choice of memory, never of results."""

import pytest
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, all_layouts, build_trainer, largest_difference
from torch.distributed.fsdp import FSDPModule
from trajectory import five_steps

from megatron_yuyuan.checkpoint.dcp import load_tensors, save_checkpoint
from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.planner.traffic import Traffic
from megatron_yuyuan.validation import validate

DROPOUT = TINY.replace(hidden_dropout=0.1, attention_dropout=0.1)
STRATEGIES = ["no_shard", "optim", "optim_grads_params"]
HYBRID = {"num_distributed_optimizer_instances": 2}


def test_a_strategy_that_is_not_known_is_refused_and_megatrons_flag_is_not(capsys):
    flag = "--data-parallel-sharding-strategy"
    parallel = parse_config(
        "", ["--use-distributed-optimizer", flag, "optim_grads_params"]
    ).parallel
    assert parallel.data_parallel_sharding_strategy == "optim_grads_params"
    assert "--use-distributed-optimizer: accepted" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="optim_grads'"):
        parse_config("", [flag, "optim_grads"])


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks.run(1, five_steps, DROPOUT)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", [Layout(2, 2)], ids=str)
def test_any_strategy_takes_the_steps_of_one_process(ranks, alone, layout, strategy):
    compare(ranks, alone, layout, strategy)


HYBRID_LAYOUTS = [Layout(data=4), Layout(2, 4), Layout(1, 4, 2, True), Layout(data=8)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("layout", HYBRID_LAYOUTS, ids=str)
def test_hybrid_sharding_takes_the_steps_of_one_process(ranks, alone, layout, strategy):
    compare(ranks, alone, layout, strategy, **HYBRID)


def test_instances_that_do_not_divide_the_data_ranks_are_refused():
    config = Layout(data=8).of(TINY)
    with pytest.raises(ConfigErrors, match=r"8 data ranks cannot.*=3\n.*\n  try: 1, 2, 4 or 8$"):
        validate(config.replace(num_distributed_optimizer_instances=3), 8)
    with pytest.raises(ConfigErrors, match="every data rank holds all of it"):
        validate(config.replace(data_parallel_sharding_strategy="no_shard", **HYBRID), 8)
    validate(config.replace(**HYBRID), 8)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", all_layouts(1, 2, 4, 8), ids=str)
def test_any_strategy_at_any_layout_takes_the_steps_of_one_process(ranks, alone, layout, strategy):
    compare(ranks, alone, layout, strategy)


def compare(ranks, alone, layout, strategy, **changes) -> None:
    config = layout.of(DROPOUT).replace(data_parallel_sharding_strategy=strategy, **changes)
    gradients, figures = ranks.run(layout.ranks, five_steps, config)
    difference, name = largest_difference(gradients, alone[0])
    assert difference <= 1e-5, name
    assert figures == pytest.approx(alone[1], rel=1e-5)
    assert abs(figures[8] / figures[0] - 1) > 1e-2  # not vacuous: the loss moves


def bf16_losses(config) -> list[list[float]]:
    """Losses of three steps under each strategy."""
    losses = []
    for strategy in STRATEGIES:
        trainer = build_trainer(config.replace(data_parallel_sharding_strategy=strategy))
        losses.append([trainer.step(RandomText())["lm_loss"] for _ in range(3)])
    return losses


def test_every_strategy_rounds_alike_in_bf16(ranks, alone):
    config = Layout(data=2).of(DROPOUT).replace(bf16=True)
    first, *others = ranks.run(2, bf16_losses, config)
    assert first == pytest.approx(alone[1][:6:2], rel=1e-2)
    assert first != pytest.approx(alone[1][:6:2], rel=1e-6)
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-6)


def memory(config) -> dict[str, int]:
    """Bytes of parameters, of gradients and of moments on a rank between steps, and the largest number
    of bytes of gathered parameters in a step of two micro batches."""
    trainer, samples, most = build_trainer(config), RandomText(), [0]
    stages = trainer.state.stages

    def watch(*_):
        held = (p for stage in stages for p in stage.parameters() if p.device_mesh.ndim == 1)
        most[0] = max(most[0], sum(p.to_local().nbytes for p in held))

    for module in (module for stage in stages for module in stage.modules()):
        if isinstance(module, FSDPModule):
            module.register_forward_pre_hook(watch)
            module.register_full_backward_pre_hook(watch)
    trainer.step(samples)
    parameters = [parameter for stage in stages for parameter in stage.parameters()]
    moments = [trainer.state.moments(p)["exp_avg"] for p in parameters]
    return {
        "parameters": sum(p.to_local().nbytes for p in parameters),
        "gradients": sum(p.grad.to_local().nbytes for p in parameters),
        "moments": 2 * sum(m.to_local().nbytes for m in moments),
        "gathered": most[0],
    }


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(2, 2)], ids=str)
def test_a_rank_holds_what_its_strategy_says(ranks, layout):
    """Bytes at rest and in flight, of a stage in which every parameter divides evenly."""
    config = layout.of(TINY)
    measured = {
        strategy: ranks.run(
            layout.ranks, memory, config.replace(data_parallel_sharding_strategy=strategy)
        )
        for strategy in STRATEGIES
    }
    whole = measured["no_shard"]["parameters"]
    block = 4 * (TINY.replace(num_layers=1).model.num_parameters - 32 * (128 + 16 + 2))
    layers = TINY.model.num_layers // layout.pipeline
    ends = whole - layers * block
    for strategy, share in (("no_shard", 1), ("optim", 2), ("optim_grads_params", 2)):
        rest = {key: measured[strategy][key] for key in ("parameters", "gradients", "moments")}
        assert rest == {
            "parameters": whole // share,
            "gradients": whole // share,
            "moments": 2 * whole // share,
        }
    assert measured["no_shard"]["gathered"] == measured["optim"]["gathered"] == whole
    assert measured["optim_grads_params"]["gathered"] == ends + block


def test_several_stages_of_a_rank_are_gathered_block_by_block_too(ranks):
    """And not stage by stage, as torch's plan for such schedules would have it."""
    config = Layout(2, 2).of(TINY).replace(pipeline_schedule="Interleaved1F1B")
    whole, briefly = (
        ranks.run(4, memory, config.replace(data_parallel_sharding_strategy=strategy))
        for strategy in ("optim", "optim_grads_params")
    )
    block = 4 * (TINY.replace(num_layers=1).model.num_parameters - 32 * (128 + 16 + 2))
    layers = TINY.model.num_layers // 2
    assert briefly["parameters"] == whole["parameters"]
    assert briefly["gathered"] == whole["gathered"] - (layers - 1) * block


GATHERED = [("Interleaved1F1B", 4, 1), ("InterleavedZeroBubble", 4, 1), ("ZBVZeroBubble", 2, 2)]
"""Schedule, stages of a rank, and those of rank 0 that have the embedding."""


def all_gathers(config) -> int:
    """How often weights are gathered in the second step."""
    trainer, samples = build_trainer(config), RandomText()
    trainer.step(samples)
    with Traffic() as traffic:
        trainer.step(samples)
    return traffic.over(trainer.mesh)["shard", "all-gather"][0]


@pytest.mark.parametrize(
    ("schedule", "virtual", "ends"), GATHERED, ids=[schedule for schedule, _, _ in GATHERED]
)
def test_weights_that_stay_gathered_are_gathered_once_per_step(ranks, schedule, virtual, ends):
    """Those of each block, and of an end of the model."""
    config = (
        Layout(2, 2)
        .of(TINY)
        .replace(
            pipeline_schedule=schedule,
            num_virtual_stages_per_pipeline_rank=virtual,
            micro_batch_size=1,
            global_batch_size=16,
        )
    )
    assert ranks.run(4, all_gathers, config) == TINY.model.num_layers // 2 + ends


def test_a_rank_holds_its_share_of_its_instance(ranks):
    """Four data ranks in two instances: half of everything, not a quarter."""
    config = Layout(data=4).of(TINY)
    quarter, half = (ranks.run(4, memory, c) for c in (config, config.replace(**HYBRID)))
    assert half["gathered"] == quarter["gathered"] == 4 * TINY.model.num_parameters
    for key in ("parameters", "gradients", "moments"):
        assert half[key] == 2 * quarter[key]


def saved_and_continued(config, directory: str) -> dict[str, list[float]]:
    """Losses of three steps after the checkpoint of two: uninterrupted, and from it under each strategy."""
    trainer, samples = build_trainer(config), RandomText()
    for _ in range(2):
        trainer.step(samples)
    path = save_checkpoint(directory, 2, trainer.state.tensors(), {})
    losses = {"uninterrupted": [trainer.step(samples)["lm_loss"] for _ in range(3)]}
    for strategy in STRATEGIES:
        trainer = build_trainer(config.replace(data_parallel_sharding_strategy=strategy))
        load_tensors(path, trainer.state.tensors())
        trainer.state.continue_after(2, 16, 2)
        losses[strategy] = [trainer.step(samples)["lm_loss"] for _ in range(3)]
    return losses


@pytest.mark.parametrize(
    "saved",
    ["no_shard", *(pytest.param(strategy, marks=pytest.mark.slow) for strategy in STRATEGIES[1:])],
)
def test_a_checkpoint_of_one_strategy_continues_under_another(ranks, tmp_path, saved):
    config = Layout(data=2).of(DROPOUT).replace(data_parallel_sharding_strategy=saved)
    losses = ranks.run(2, saved_and_continued, config, str(tmp_path))
    expected = losses.pop("uninterrupted")
    assert losses[saved] == expected  # the same layout: the same bits
    for strategy in STRATEGIES:
        assert losses[strategy] == pytest.approx(expected, rel=1e-6)


def across_instances(config, directory: str) -> dict[str, list[float]]:
    """Losses of two steps after a step of each of two layouts and a checkpoint: uninterrupted, and under
    the other layout."""
    layouts = {"hybrid": config.replace(**HYBRID), "divided": config}
    losses, samples = {}, RandomText()
    for name, other in (("hybrid", "divided"), ("divided", "hybrid")):
        trainer = build_trainer(layouts[name])
        trainer.step(samples)
        path = save_checkpoint(f"{directory}/{name}", 1, trainer.state.tensors(), {})
        losses[name] = [trainer.step(samples)["lm_loss"] for _ in range(2)]
        trainer = build_trainer(layouts[other])
        load_tensors(path, trainer.state.tensors())
        trainer.state.continue_after(1, 8, 1)
        losses[f"{name} to {other}"] = [trainer.step(samples)["lm_loss"] for _ in range(2)]
    return losses


def test_a_checkpoint_crosses_from_and_to_hybrid_sharding(ranks, tmp_path):
    """And on the way: hybrid sharding takes the steps that plain sharding takes."""
    losses = ranks.run(4, across_instances, Layout(data=4).of(DROPOUT), str(tmp_path))
    for continued in losses.values():
        assert continued == pytest.approx(losses["divided"], rel=1e-6)


def reductions(config) -> dict[str, int]:
    """How often gradients are reduced over more than one rank in the second step."""
    trainer, samples = build_trainer(config), RandomText()
    trainer.step(samples)
    axes = (trainer.mesh.axes["replica"], trainer.mesh.axes["shard"])
    groups = [axis.get_group() for axis in axes if axis.size() > 1]
    counts = dict.fromkeys(("reduce_scatter", "all_reduce"), 0)
    names = {"reduce_scatter_single", "reduce_scatter_tensor", "all_reduce"}
    kept = {name: getattr(dist, name) for name in names if hasattr(dist, name)}

    def counted(name):
        def call(*tensors, **options):
            result = tensors[0] if tensors else options["output"]
            if options.get("group") in groups and result.dim():  # not the scalars of the loop
                counts[name.removesuffix("_single").removesuffix("_tensor")] += 1
            return kept[name](*tensors, **options)

        return call

    try:
        for name in kept:
            setattr(dist, name, counted(name))
        trainer.step(samples)
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
    return counts


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(2, 2)], ids=str)
@pytest.mark.parametrize("strategy", ["no_shard", "optim_grads_params"])
def test_gradients_are_reduced_once_per_step(ranks, layout, strategy):
    config = layout.of(TINY).replace(data_parallel_sharding_strategy=strategy)
    units = TINY.model.num_layers // layout.pipeline + 1
    how = "all_reduce" if strategy == "no_shard" else "reduce_scatter"
    expected = {"reduce_scatter": 0, "all_reduce": 0} | {how: units}
    assert ranks.run(layout.ranks, reductions, config) == expected


def test_hybrid_sharding_reduces_once_inside_and_once_between(ranks):
    config = Layout(data=4).of(TINY).replace(**HYBRID)
    units = TINY.model.num_layers + 1
    expected = {"reduce_scatter": units, "all_reduce": units}
    assert ranks.run(4, reductions, config) == expected
