"""The collectives of tensor and sequence parallelism, as pairs of forward and backward.

| operator                | forward              | backward             | Megatron-LM's name       |
|-------------------------|----------------------|----------------------|--------------------------|
| copy_to_ranks           | identity             | all-reduce           | f, arXiv:1909.08053      |
| sum_over_ranks          | all-reduce           | identity             | g, arXiv:1909.08053      |
| all_gather_sequence     | all-gather of rows   | reduce-scatter       | g, arXiv:2205.05198      |
| reduce_scatter_sequence | reduce-scatter       | all-gather of rows   | g bar, arXiv:2205.05198  |
| all_gather_last         | all-gather on V      | (no gradient)        |                          |

A divided sequence is a run of the B T rows of (B, T, C): `part_of_rank`. No operator writes into a
tensor that autograd holds. The functions that start a collective are for those who compute while it
runs; they know no gradient.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 renames the two collectives on one tensor and warns about the old names, which are all that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Started:
    """A collective that runs beside what is computed meanwhile. Until `wait` nobody may write into
    the tensor it was given."""

    work: dist.Work
    result: Tensor
    """Not there before the work is done."""

    def wait(self) -> Tensor:
        """The result."""
        self.work.wait()
        return self.result


def start_all_reduce(x: Tensor, group: ProcessGroup, op=dist.ReduceOp.SUM) -> Started:
    """The sum (or another reduction) of x over the group, written over x, which must be contiguous
    and the caller's alone."""
    return Started(dist.all_reduce(x, op, group=group, async_op=True), x)


def part_of_rank(x: Tensor, rank: int, ranks: int) -> Tensor:
    """(B, T, ...) -> (B, T / ranks, ...): what a rank holds of a divided sequence. The B T rows are cut into
    equal runs, whichever samples they belong to; so they lie in memory as a collective wants them."""
    return x.flatten(0, 1).chunk(ranks)[rank].view(len(x), -1, *x.shape[2:])


def start_all_gather(x: Tensor, group: ProcessGroup) -> Started:
    """The parts of all ranks, (B, T / ranks, C) -> (B, T, C)."""
    samples, length, *rest = x.shape
    result = x.new_empty(samples, dist.get_world_size(group) * length, *rest)
    work = _all_gather(result.view(-1), x.contiguous().view(-1), group=group, async_op=True)
    return Started(work, result)


def start_reduce_scatter(x: Tensor, group: ProcessGroup) -> Started:
    """(B, T, C), to be summed over the group -> this rank's part, (B, T / ranks, C)."""
    samples, length, *rest = x.shape
    result = x.new_empty(samples, length // dist.get_world_size(group), *rest)
    work = _reduce_scatter(result.view(-1), x.contiguous().view(-1), group=group, async_op=True)
    return Started(work, result)


def all_reduced(x: Tensor, group: ProcessGroup, op=dist.ReduceOp.SUM) -> Tensor:
    """The sum (or another reduction) of x over the group, in a new tensor."""
    return start_all_reduce(x.clone(memory_format=torch.contiguous_format), group, op).wait()


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return all_reduced(gradient, ctx.group), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _AllGatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return start_all_gather(x, group).wait()

    @staticmethod
    def backward(ctx, gradient):
        return start_reduce_scatter(gradient, ctx.group).wait(), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return start_reduce_scatter(x, group).wait()

    @staticmethod
    def backward(ctx, gradient):
        return start_all_gather(gradient, ctx.group).wait(), None


def copy_to_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """x as it is; its gradient summed over the group."""
    return _CopyToRanks.apply(x, group) if dist.get_world_size(group) > 1 else x


def sum_over_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of x over the group; its gradient passed on as it is."""
    return _SumOverRanks.apply(x, group) if dist.get_world_size(group) > 1 else x


def all_gather_sequence(x: Tensor, group: ProcessGroup) -> Tensor:
    """(B, T / ranks, C) -> (B, T, C)."""
    return _AllGatherSequence.apply(x, group) if dist.get_world_size(group) > 1 else x


def reduce_scatter_sequence(x: Tensor, group: ProcessGroup) -> Tensor:
    """(B, T, C), to be summed over the group -> (B, T / ranks, C)."""
    return _ReduceScatterSequence.apply(x, group) if dist.get_world_size(group) > 1 else x


def all_gather_last(x: Tensor, group: ProcessGroup) -> Tensor:
    """(..., V / ranks) -> (..., V), without a gradient: for logits that are looked at."""
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return x
    pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks)]
    dist.all_gather(pieces, x.contiguous(), group=group)
    return torch.cat(pieces, dim=-1)
