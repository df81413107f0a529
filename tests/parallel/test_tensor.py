"""The column-parallel layer: what it computes, keeps and exchanges, and when."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, Layout
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.collectives import (
    Started,
    all_gather_last,
    part_of_rank,
    start_all_gather,
)
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.parallel.tensor import ColumnParallelLinear, TensorAxis

B, T, C, C_OUT = 3, 8, 6, 12
RANKS = 2
NAMES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "mm": "product",
    "addmm": "product",
    "sum": "sum",
}
"""Operator of torch -> event."""


class Events(TorchDispatchMode):
    """The collectives, products and sums inside, in the order in which they begin, and the waits."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __enter__(self):
        wait = Started.wait
        Started.wait = lambda started: self.names.append("wait") or wait(started)
        return super().__enter__()  # the process ends with the call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if name in NAMES:
            self.names.append(NAMES[name])
        return function(*args, **(kwargs or {}))


def whole_tensors() -> list[torch.Tensor]:
    """x, W, b, and a dy whose memory is not in the order of its dims."""
    torch.manual_seed(0)
    shapes = (B, T, C), (C_OUT, C), (C_OUT,), (T, B, C_OUT)
    x, weight, bias, dy = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy.transpose(0, 1)]


def layer_of_rank(sequence_parallel: bool, splits_backward: bool):
    """The layer on two tensor ranks, with this rank's x and dy."""
    x, weight, bias, dy = whole_tensors()
    axis = TensorAxis(init_device_mesh("cpu", (RANKS,)), sequence_parallel, splits_backward)
    layer = ColumnParallelLinear(nn.Linear(C, C_OUT, dtype=torch.float64), axis)
    with torch.no_grad():
        for parameter, whole in ((layer.weight, weight), (layer.bias, bias)):
            parameter.to_local().copy_(whole.chunk(RANKS)[axis.rank])
    x = part_of_rank(x.detach(), axis.rank, RANKS) if sequence_parallel else x.detach()
    return layer, x.requires_grad_(), dy.chunk(RANKS, dim=2)[axis.rank]


def whole_results(sequence_parallel: bool, splits_backward: bool) -> list[torch.Tensor]:
    """y, dx, dW, db, put together from the ranks."""
    layer, x, dy = layer_of_rank(sequence_parallel, splits_backward)
    y, group = layer(x), layer.axis.group
    y.backward(dy)
    dx = start_all_gather(x.grad, group).wait() if sequence_parallel else x.grad
    parameters = [parameter.grad.full_tensor() for parameter in (layer.weight, layer.bias)]
    return [all_gather_last(y.detach(), group), dx, *parameters]


def backward_events(sequence_parallel: bool, splits_backward: bool) -> list[str]:
    layer, x, dy = layer_of_rank(sequence_parallel, splits_backward)
    y = layer(x)
    with Events() as events:
        y.backward(dy)
    return events.names


def kept(sequence_parallel: bool, splits_backward: bool) -> list[tuple[int, ...]]:
    """The shapes that a forward keeps for its backward."""
    shapes: list[tuple[int, ...]] = []
    layer, x, _ = layer_of_rank(sequence_parallel, splits_backward)
    with saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    return sorted(shapes)


def events_of_halves(splits_backward: bool) -> list[list[str]]:
    """What a backward for x alone does, then one for the weight alone."""
    layer, x, dy = layer_of_rank(True, splits_backward)
    y, halves = layer(x), []
    for wanted in (x, layer.weight):
        with Events() as events:
            torch.autograd.grad(y, wanted, dy, retain_graph=True)
        halves.append([name for name in events.names if name != "wait"])
    return halves


def splits_backward(config) -> bool:
    mesh = mesh_module.start(config.parallel)
    [layer] = {
        m.axis for s in build_stages(config, mesh) for m in s.modules() if hasattr(m, "axis")
    }
    return layer.splits_backward


@pytest.mark.parametrize("splits", [False, True], ids=["overlapped", "apart"])
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tp", "sp"])
def test_the_ranks_compute_the_linear_layer(ranks, sequence_parallel, splits):
    x, weight, bias, dy = whole_tensors()
    y = F.linear(x, weight, bias)
    y.backward(dy)
    expected = [y.detach(), x.grad, weight.grad, bias.grad]
    found = ranks.run(RANKS, whole_results, sequence_parallel, splits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_is_exchanged_runs_beside_the_products(ranks):
    dw_and_db = ["product", "sum"]
    assert ranks.run(RANKS, backward_events, False, False) == (
        ["product", "all-reduce", *dw_and_db, "wait"]
    )
    assert ranks.run(RANKS, backward_events, True, False) == (
        ["all-gather", "product", "wait", "reduce-scatter", *dw_and_db, "wait"]
    )
    assert ranks.run(RANKS, backward_events, True, True)[-2:] == ["reduce-scatter", "wait"]


def test_sequence_parallel_keeps_the_part_of_x_not_the_gathered_one(ranks):
    weight = (C_OUT // RANKS, C)
    assert ranks.run(RANKS, kept, True, False) == [(B, T // RANKS, C), weight]
    assert B * T * C in [torch.Size(shape).numel() for shape in ranks.run(RANKS, kept, True, True)]


def test_a_half_of_a_split_backward_does_nothing_of_the_other(ranks):
    assert ranks.run(RANKS, events_of_halves, True) == [["product", "reduce-scatter"], ["product"]]
    whole = ["all-gather", "product", "reduce-scatter", "product", "sum"]
    assert ranks.run(RANKS, events_of_halves, False) == [whole, whole]  # why it is split


@pytest.mark.parametrize(
    ("schedule", "pipeline", "expected"),
    [("ZBVZeroBubble", 2, True), ("Interleaved1F1B", 2, False), ("ZBVZeroBubble", 1, False)],
)
def test_only_a_zero_bubble_pipeline_splits_the_backward(ranks, schedule, pipeline, expected):
    config = Layout(pipeline).of(TINY).replace(pipeline_schedule=schedule)
    assert ranks.run(pipeline, splits_backward, config) == expected
