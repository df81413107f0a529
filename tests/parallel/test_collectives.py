"""Every collective of a training step, counted with its bytes on every rank: the formulas of
docs/parallelism.md, "Collectives of a step"."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_yuyuan.config import Config
from megatron_yuyuan.model import loss as loss_module

CONFIG = TINY.replace(num_layers=4)
FLOAT32, FLOAT64 = 4, 8
CHUNK = 5
"""Tokens of a chunk of the loss; divides no micro batch."""
KINDS = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}
"""Operator of c10d, or of the functional collectives of DTensor -> what it is."""
WAITS = {"wait_tensor", "_wrap_tensor_autograd"}
Traffic = dict[tuple[str, str], tuple[int, int]]
"""(axis, kind) -> (how often, bytes of the whole tensors: gathered, not yet scattered)."""


class Recorder(TorchDispatchMode):
    """Counts what is exchanged inside, by process group."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if function.namespace in ("c10d", "_c10d_functional") and name not in WAITS:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            what = (_group_of(args), KINDS[name])
            self.calls[what] += 1
            self.bytes[what] += max(tensor.nbytes for tensor in tensors)
        return function(*args, **(kwargs or {}))


def _group_of(args) -> str:
    """The name of the process group of an operator: c10d's first argument that is no tensor,
    the last of a functional collective."""
    if isinstance(args[-1], str):
        return args[-1]
    return dist.ProcessGroup.unbox(
        next(a for a in args if isinstance(a, torch.ScriptObject))
    ).group_name


def traffic_of_a_step(config: Config) -> list[tuple[dict[str, int], Traffic, Traffic]]:
    """For every rank: its place, what the second step exchanges, and what it should."""
    loss_module.LOGITS_AT_A_TIME = (  # the process ends with this call
        CHUNK * config.model.padded_vocab_size // config.parallel.tensor_model_parallel_size
    )
    trainer, samples = build_trainer(config), RandomText(config)
    trainer.step(samples)  # the first one exchanges shapes too
    with Recorder() as recorder:
        trainer.step(samples)
    mesh = trainer.mesh
    groups = {axis: mesh.group(axis) for axis in ("tensor", "shard", "replica", "data", "pipeline")}
    groups |= {"world": dist.group.WORLD, "tied": mesh.tied_group}
    names = {axis: group.group_name for axis, group in groups.items() if group is not None}
    alone = {group.group_name for group in groups.values() if group and group.size() == 1}
    found = {
        what: (recorder.calls[what], recorder.bytes[what])
        for what in recorder.calls
        if what[0] not in alone
    }
    place = {axis: mesh.rank(axis) for axis in ("pipeline", "data", "tensor")}
    should = Counter(), Counter()
    for (axis, kind), numbers in expected(config, place["pipeline"]).items():
        if names[axis] not in alone and numbers[0]:
            for counter, number in zip(should, numbers, strict=True):
                counter[names[axis], kind] += number
    by_group = {what: (should[0][what], should[1][what]) for what in should[0]}
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (place, found, by_group))
    return everyone


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


def expected(config: Config, stage: int) -> Traffic:
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


def tensor_parallel(x: Letters) -> Traffic:
    calls, size = chunks_of_the_loss(x)
    hidden = x.m * (4 * x.L + x.first + x.last)
    return {
        ("tensor", "all-reduce"): (hidden + calls, hidden * x.H + size),
        ("tensor", "broadcast"): (1, FLOAT64),
    }


def sequence_parallel(x: Letters) -> Traffic:
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


def data_parallel(x: Letters) -> Traffic:
    units, size = x.L + (x.ends > 0), (x.L * x.block + x.ends) * FLOAT32
    numbers = {("data", "all-reduce"): (2, 2 * FLOAT64)}
    if x.strategy == "no_shard":
        return numbers | {("replica", "all-reduce"): (units, size)}
    gathers = (units, size)
    if x.strategy == "optim_grads_params":
        gathers = (x.m * (2 * x.L + (x.ends > 0)), x.m * (2 * x.L * x.block + x.ends) * FLOAT32)
    return numbers | {("shard", "all-gather"): gathers, ("shard", "reduce-scatter"): (units, size)}


def pipeline_parallel(x: Letters) -> Traffic:
    boundaries = (not x.first) + (not x.last)
    travels = boundaries * x.m, boundaries * x.m * x.H // (x.t if x.sp else 1)
    shards = 1 if x.strategy == "no_shard" else x.d
    numbers = {
        ("pipeline", "send"): travels,
        ("pipeline", "receive"): travels,
        ("pipeline", "broadcast"): (1, FLOAT64),
    }
    if x.p > 1 and (x.first or x.last):
        numbers["tied", "all-reduce"] = (1, x.V * x.C // x.t // shards * FLOAT32)
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


def compare(ranks, layout: Layout, strategy: str) -> None:
    config = layout.of(CONFIG).replace(data_parallel_sharding_strategy=strategy)
    everyone = ranks.run(layout.ranks, traffic_of_a_step, config)
    assert len(everyone) == layout.ranks
    for place, found, should in everyone:
        assert found == should, place
        assert sum(calls for calls, _ in found.values()) > 4  # not vacuous


@pytest.mark.parametrize(("layout", "strategy"), CASES, ids=str)
def test_a_step_exchanges_what_the_formulas_say(ranks, layout, strategy):
    compare(ranks, layout, strategy)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "strategy"), MORE, ids=str)
def test_a_step_of_any_layout_exchanges_what_the_formulas_say(ranks, layout, strategy):
    compare(ranks, layout, strategy)


def one_all_reduce() -> tuple[dict, str]:
    with Recorder() as recorder:
        dist.all_reduce(torch.ones(3))
    return dict(recorder.bytes), dist.group.WORLD.group_name


def test_a_collective_that_no_formula_has_would_be_seen(ranks):
    seen, world = ranks.run(2, one_all_reduce)
    assert seen == {(world, "all-reduce"): 3 * FLOAT32}
