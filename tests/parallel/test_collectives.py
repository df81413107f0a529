"""Every collective of a training step, counted with its bytes on every rank: the formulas of
docs/parallelism.md, "Collectives of a step"."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.config import Config
from megatron_yuyuan.model import loss as loss_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.planner.traffic import Exchanged, Traffic, axes_of

CONFIG = TINY.replace(num_layers=4)
FLOAT32, FLOAT64 = 4, 8
CHUNK = 5
"""Tokens of a chunk of the loss; divides no micro batch."""


def set_chunk(config: Config) -> None:
    """Have the loss go through CHUNK tokens at a time, in a process that ends soon."""
    rows = config.model.padded_vocab_size // config.parallel.tensor_model_parallel_size
    loss_module.LOGITS_AT_A_TIME = loss_module.LOGITS_ON_CUDA = CHUNK * rows


def traffic_of_a_step(config: Config) -> list[tuple[dict[str, int], Exchanged, Exchanged]]:
    """For every rank: its place, what the second step exchanges, and what it should."""
    set_chunk(config)
    trainer, samples = build_trainer(config), RandomText(config)
    trainer.step(samples)
    with Traffic() as traffic:
        trainer.step(samples)
    mesh = trainer.mesh
    place = {axis: mesh.rank(axis) for axis in ("pipeline", "data", "tensor")}
    should = expected_over(mesh, config)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (place, traffic.over(mesh), should))
    return everyone


def expected_over(mesh: Mesh, config: Config) -> Exchanged:
    """What the formulas say of groups of more than one rank, by the first of the axes that share one."""
    axes, names = axes_of(mesh), {"tied": mesh.tied_group, "world": dist.group.WORLD}
    calls, sizes = Counter(), Counter()
    for (axis, kind), (count, size) in expected(config, mesh.rank("pipeline")).items():
        group = names[axis] if axis in names else mesh.group(axis)
        if count and axes[group.group_name]:
            calls[axes[group.group_name], kind] += count
            sizes[axes[group.group_name], kind] += size
    return {what: (calls[what], sizes[what]) for what in calls}


class Letters:
    """The letters of the formulas, for a stage of a configuration on the ranks that are there."""

    def __init__(self, config: Config, stage: int):
        parallel, model, training = config.parallel, config.model, config.training
        self.p, self.t = (
            parallel.pipeline_model_parallel_size,
            parallel.tensor_model_parallel_size,
        )
        self.d = dist.get_world_size() // (self.p * self.t)
        self.sp = parallel.sequence_parallel
        self.L, self.C = model.num_layers // self.p, model.hidden_size
        self.V, self.S = model.padded_vocab_size, model.max_position_embeddings
        self.m = training.global_batch_size // self.d // training.micro_batch_size
        self.tokens = training.micro_batch_size * config.data.seq_length
        self.H = self.tokens * self.C * FLOAT32
        self.first, self.last = stage == 0, stage == self.p - 1
        self.strategy = parallel.data_parallel_sharding_strategy
        self.N = (
            self.d if self.strategy == "no_shard" else parallel.num_distributed_optimizer_instances
        )

    @property
    def block(self) -> int:
        """Elements of a layer that a tensor rank holds: matrices and bias rows divided, the rest
        whole."""
        return (12 * self.C**2 + 7 * self.C) // self.t + 6 * self.C

    @property
    def ends(self) -> int:
        """Elements that a tensor rank holds of embeddings and ln_f, on this stage."""
        embedding = self.V * self.C // self.t * (self.first or self.last)
        return embedding + self.S * self.C * self.first + 2 * self.C * self.last


def expected(config: Config, stage: int) -> Exchanged:
    """All formulas of docs/parallelism.md for a rank of a stage."""
    x = Letters(config, stage)
    return {
        **(sequence_parallel(x) if x.sp else tensor_parallel(x)),
        **data_parallel(x),
        **pipeline_parallel(x),
        ("world", "all-reduce"): (1, FLOAT64),
    }


def chunks_of_the_loss(x: Letters) -> tuple[int, int]:
    calls = 2 * -(-x.tokens // CHUNK)
    return x.last * x.m * calls, x.last * x.m * 3 * x.tokens * FLOAT32


def tensor_parallel(x: Letters) -> Exchanged:
    calls, size = chunks_of_the_loss(x)
    hidden = x.m * (4 * x.L + x.first + x.last)
    return {
        ("tensor", "all-reduce"): (hidden + calls, hidden * x.H + size),
        ("tensor", "broadcast"): (1, FLOAT64),
    }


def sequence_parallel(x: Letters) -> Exchanged:
    calls, size = chunks_of_the_loss(x)
    hidden = x.m * (4 * x.L + x.first + x.last)
    gathered = hidden + x.m * 2 * x.L  # the inputs of c_attn and c_fc once more, in the backward
    calls += 6 * x.L + x.first + 2 * x.last
    size += (6 * x.L * x.C + x.first * x.S * x.C + x.last * 2 * x.C) * FLOAT32
    return {
        ("tensor", "all-gather"): (gathered, gathered * x.H),
        ("tensor", "reduce-scatter"): (hidden, hidden * x.H),
        ("tensor", "all-reduce"): (calls, size),
        ("tensor", "broadcast"): (1, FLOAT64),
    }


def data_parallel(x: Letters) -> Exchanged:
    units, size = x.L + (x.ends > 0), (x.L * x.block + x.ends) * FLOAT32
    numbers = {("data", "all-reduce"): (2, 2 * FLOAT64)}
    if x.N > 1:
        numbers["replica", "all-reduce"] = (units, size * x.N // x.d)
    if x.strategy == "no_shard":
        return numbers
    gathers = (units, size)
    if x.strategy == "optim_grads_params":
        gathers = (x.m * (2 * x.L + (x.ends > 0)), x.m * (2 * x.L * x.block + x.ends) * FLOAT32)
    return numbers | {("shard", "all-gather"): gathers, ("shard", "reduce-scatter"): (units, size)}


def pipeline_parallel(x: Letters) -> Exchanged:
    boundaries = (not x.first) + (not x.last)
    travels = boundaries * x.m, boundaries * x.m * x.H // (x.t if x.sp else 1)
    numbers = {
        ("pipeline", "send"): travels,
        ("pipeline", "receive"): travels,
        ("pipeline", "broadcast"): (1, FLOAT64),
    }
    if x.p > 1 and (x.first or x.last):
        numbers["tied", "all-reduce"] = (1, x.V * x.C // x.t * x.N // x.d * FLOAT32)
    return numbers


CASES = [
    (Layout(tensor=2), "optim"),
    (Layout(tensor=2, sequence_parallel=True), "optim"),
    (Layout(pipeline=2), "optim"),
    (Layout(data=2), "optim"),
    (Layout(data=2), "optim_grads_params"),
    (Layout(2, 2, 2, True), "no_shard"),
]
MORE = [
    (layout, strategy)
    for layout in (
        Layout(2, 2),
        Layout(2, 1, 2, True),
        Layout(1, 2, 2),
        Layout(4, 2),
        Layout(2, 2, 2),
        Layout(2, 2, 2, True),
        Layout(1, 2, 4, True),
    )
    for strategy in ("optim", "no_shard", "optim_grads_params")
]


def compare(ranks, layout: Layout, strategy: str, instances: int = 1) -> None:
    config = layout.of(CONFIG).replace(
        data_parallel_sharding_strategy=strategy, num_distributed_optimizer_instances=instances
    )
    everyone = ranks.run(layout.ranks, traffic_of_a_step, config)
    assert len(everyone) == layout.ranks
    for place, found, should in everyone:
        assert found == should, place
        assert sum(calls for calls, _ in found.values()) > 4  # not vacuous


@pytest.mark.parametrize(("layout", "strategy"), CASES, ids=str)
def test_a_step_exchanges_what_the_formulas_say(ranks, layout, strategy):
    compare(ranks, layout, strategy)


@pytest.mark.parametrize("layout", [Layout(data=4), Layout(2, 4)], ids=str)
@pytest.mark.parametrize("strategy", ["optim", "optim_grads_params"])
def test_hybrid_sharding_exchanges_what_the_formulas_say(ranks, layout, strategy):
    compare(ranks, layout, strategy, instances=2)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "strategy"), MORE, ids=str)
def test_a_step_of_any_layout_exchanges_what_the_formulas_say(ranks, layout, strategy):
    compare(ranks, layout, strategy)


def one_all_reduce() -> tuple[dict, str]:
    with Traffic() as traffic:
        dist.all_reduce(torch.ones(3))
    return dict(traffic.bytes), dist.group.WORLD.group_name


def test_a_collective_that_no_formula_has_would_be_seen(ranks):
    seen, world = ranks.run(2, one_all_reduce)
    assert seen == {(world, "all-reduce"): 3 * FLOAT32}
