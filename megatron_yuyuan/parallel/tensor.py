"""Tensor- and sequence-parallel layers, Megatron-style: local matrices, every collective in plain
sight.

A divided parameter is at rest a DTensor on the tensor axis, so that data parallelism, the gradient
norm and a checkpoint know its global shape; a layer computes with its plain local tensor. A
parameter that every tensor rank holds whole but uses on its own part of the sequence has a gradient
that is only a part of the sum: `local` says so. Forgetting it raises nothing and trains wrongly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from megatron_yuyuan.model.gpt2 import (
    BlockInputs,
    Dropout,
    LayerNorm,
    LinearBeforeBias,
    numbers_of_rows,
)
from megatron_yuyuan.parallel.collectives import (
    all_gather_sequence,
    copy_to_ranks,
    part_of_rank,
    reduce_scatter_sequence,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
    sum_over_ranks,
)


@dataclass(frozen=True)
class TensorAxis:
    """The tensor ranks of one pipeline stage and data rank: how activations travel between them, and
    how the linear layers of the blocks multiply."""

    mesh: DeviceMesh
    sequence_parallel: bool
    splits_backward: bool
    """Whether the pipeline schedule runs the backward in two halves, for the inputs and, later, for
    the weights (zero bubble)."""

    @property
    def rank(self) -> int:
        return self.mesh.get_local_rank()

    @property
    def size(self) -> int:
        return self.mesh.size()

    @property
    def group(self):
        return self.mesh.get_group()

    @property
    def divides_sequence(self) -> bool:
        return self.sequence_parallel and self.size > 1

    @property
    def overlaps(self) -> bool:
        """Whether a column-parallel layer exchanges beside its products, in one autograd node.

        Each half of a split backward would run that node whole, exchanges and products twice: in
        torch 2.13 `needs_input_grad` tells what the forward's inputs need, not which gradients are
        asked for. There separate operators stay, of which each half runs its own.
        """
        return self.size > 1 and not self.splits_backward

    def enter(self, x: Tensor) -> Tensor:
        """Residual stream -> divided layer: (B, T or T / tensor, C) -> (B, T, C)."""
        return (
            all_gather_sequence(x, self.group)
            if self.divides_sequence
            else copy_to_ranks(x, self.group)
        )

    def leave(self, x: Tensor) -> Tensor:
        """Partial sums of a divided layer -> residual stream: (B, T, C) -> (B, T or T / tensor,
        C)."""
        return (
            reduce_scatter_sequence(x, self.group)
            if self.divides_sequence
            else sum_over_ranks(x, self.group)
        )

    def column_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b, or without b, of this rank's rows of W and b: x enters, and its gradient leaves."""
        if not self.overlaps:
            return F.linear(self.enter(x), weight, bias)
        linear = _LinearOfGathered if self.sequence_parallel else _LinearOfCopy
        return linear.apply(x, weight, bias, self.group)

    def row_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x W^T of this rank's columns of W, summed over the ranks as it leaves."""
        return self.leave(F.linear(x, weight))

    def local(self, whole: DTensor) -> Tensor:
        """The plain tensor of a parameter that every rank holds whole and uses on the residual
        stream."""
        return (
            whole.to_local(grad_placements=[Partial()])
            if self.divides_sequence
            else whole.to_local()
        )

    def divided(self, parameter: Tensor, dim: int | None) -> DTensor:
        """An uninitialized DTensor parameter of the same full shape, cut along `dim` (None: held
        whole)."""
        shape = list(parameter.shape)
        if dim is not None:
            shape[dim] //= self.size
        local = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        placement = Replicate() if dim is None else Shard(dim)
        own = nn.Parameter(DTensor.from_local(local, self.mesh, [placement], run_check=False))
        assert isinstance(own, DTensor)  # nn.Parameter marks a tensor and keeps its class
        return own


class _LinearOfCopy(torch.autograd.Function):
    """`copy_to_ranks`, then x W^T + b, or without b; dx is summed over the group while dW and db are
    computed. Of a frozen W there is no dW, and x is not kept."""

    @staticmethod
    def forward(ctx, x, weight, bias, group):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.group = group
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        summing = start_all_reduce(gradient @ weight, ctx.group)
        parameters = _gradients_of_parameters(gradient, x, ctx.needs_input_grad[2])
        return summing.wait(), *parameters, None


class _LinearOfGathered(torch.autograd.Function):
    """`all_gather_sequence`, then x W^T + b, or without b. Keeps this rank's part of x, not the gathered one.

    The backward gathers x again while it computes the gradient of the gathered x, and scatters that
    while it computes dW and db. Of a frozen W there is no dW, and x is neither kept nor gathered again.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, group):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.group = group
        return F.linear(start_all_gather(x, group).wait(), weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gathering = None if x is None else start_all_gather(x, ctx.group)
        gradient_of_gathered = gradient @ weight
        gathered = None if gathering is None else gathering.wait()
        scattering = start_reduce_scatter(gradient_of_gathered, ctx.group)
        parameters = _gradients_of_parameters(gradient, gathered, ctx.needs_input_grad[2])
        return scattering.wait(), *parameters, None


def _gradients_of_parameters(
    gradient: Tensor, x: Tensor | None, with_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dW (C_out, C_in) and db (C_out,) of y = x W^T + b, from dy (B, T, C_out) and x (B, T, C_in); without
    x no dW."""
    rows = gradient.flatten(0, 1)
    of_weight = None if x is None else rows.t() @ x.flatten(0, 1)
    return of_weight, rows.sum(0) if with_bias else None


Linear = nn.Linear | LinearBeforeBias
"""Of the model: weight (C_out, C_in) and bias (C_out,)."""


class ColumnParallel(nn.Module):
    """A matrix and its bias, the output features divided over the tensor axis."""

    def __init__(self, linear: Linear, axis: TensorAxis):
        super().__init__()
        self.axis = axis
        self.weight, self.bias = axis.divided(linear.weight, 0), axis.divided(linear.bias, 0)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias, or without it."""
        return self.axis.column_linear(x, self.weight.to_local(), bias)


class ColumnParallelLinear(ColumnParallel):
    """y = x W^T + b, the output features divided over the tensor axis.

    Every rank multiplies the same x by its own rows of W, so the forward needs no communication (sequence
    parallel: the parts of x are gathered); the backward sums the gradient of x over the axis (sequence
    parallel: and scatters it) while it computes the gradients of W and b. Source: Shoeybi et al.
    2019, arXiv:1909.08053, section 3 (f); Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2
    (g, and gathering x a second time rather than keeping it).

        x       (B, T, C_in)    the same on every tensor rank (sequence parallel: (B, T / tensor, C_in), its own part)
        weight  (C_out, C_in)   DTensor Shard(0); local (C_out / tensor, C_in)
        bias    (C_out,)        DTensor Shard(0)
        return  (B, T, C_out / tensor)

    RowParallelLinear takes exactly this slice back in.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias.to_local())


class ColumnParallelLinearBeforeBias(ColumnParallel):
    """(x W^T, b) of the same slices, each (..., C_out / tensor): the model's `LinearBeforeBias`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.product(x, None), self.bias.to_local()


class RowParallelLinear(nn.Module):
    """y = sum over ranks of x W^T, and b beside it; the input features divided over the tensor axis.

    Each rank holds the columns of W that meet its slice of x; the forward sums the products over
    the axis (sequence parallel: and scatters the sum); the backward is silent (sequence
    parallel: gathers). The bias is added after the sum, by the kernel that comes next. Source:
    arXiv:1909.08053, section 3 (g);
    arXiv:2205.05198 (g bar).

        x       (B, T, C_in / tensor)
        weight  (C_out, C_in)   DTensor Shard(1); local (C_out, C_in / tensor)
        bias    (C_out,)        DTensor Replicate
        return  (B, T, C_out)   the same on every rank (sequence parallel: (B, T / tensor, C_out)); and the bias
    """

    def __init__(self, linear: Linear, axis: TensorAxis):
        super().__init__()
        self.axis = axis
        self.weight, self.bias = axis.divided(linear.weight, 1), axis.divided(linear.bias, None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.axis.row_linear(x, self.weight.to_local()), self.axis.local(self.bias)


class VocabParallelEmbedding(nn.Module):
    """Row lookup in a table whose rows are divided over the tensor axis.

    A rank looks up the tokens of its own rows, answers zero for the others, and the axis sums the
    answers: one term of the sum is not zero, so it is exact. Source: arXiv:1909.08053, section 3.

        tokens  (B, T) int64
        weight  (V, C)     DTensor Shard(0); local (V / tensor, C)
        return  (B, T, C)  (sequence parallel: (B, T / tensor, C))
    """

    def __init__(self, embedding: nn.Embedding, axis: TensorAxis):
        super().__init__()
        self.axis = axis
        self.weight = axis.divided(embedding.weight, 0)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.weight.to_local()
        local = tokens - self.axis.rank * weight.shape[0]
        elsewhere = (local < 0) | (local >= weight.shape[0])
        rows = F.embedding(local.masked_fill(elsewhere, 0), weight).masked_fill(
            elsewhere[..., None], 0
        )
        return self.axis.leave(rows)


class PositionEmbedding(nn.Module):
    """The position table, held whole by every tensor rank and read for its part of the sequence.

    positions (B, T) int64; weight (max_position_embeddings, C) DTensor Replicate
    return    (B, T, C)  (sequence parallel: (B, T / tensor, C))
    """

    def __init__(self, embedding: nn.Embedding, axis: TensorAxis):
        super().__init__()
        self.axis = axis
        self.weight = axis.divided(embedding.weight, None)

    def forward(self, positions: Tensor) -> Tensor:
        if self.axis.divides_sequence:
            positions = part_of_rank(positions, self.axis.rank, self.axis.size)
        return F.embedding(positions, self.axis.local(self.weight))


class ResidualLayerNorm(LayerNorm):
    """The model's LayerNorm over (B, T or T / tensor, C); weight and bias (C,) held whole by every
    tensor rank."""

    weight: DTensor
    bias: DTensor

    def __init__(self, norm: LayerNorm, axis: TensorAxis):
        super().__init__(len(norm.weight), norm.epsilon, norm.kernels)
        self.axis = axis
        self.weight, self.bias = axis.divided(norm.weight, None), axis.divided(norm.bias, None)

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.axis.local(self.weight), self.axis.local(self.bias)


class ResidualDropout(Dropout):
    """The model's dropout, aware of which part of the sequence this tensor rank holds."""

    def __init__(self, dropout: Dropout, axis: TensorAxis):
        super().__init__(dropout.p, dropout.seed, dropout.site, dropout.kernels)
        self.axis = axis

    def rows(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        if not self.axis.divides_sequence:
            return super().rows(x, inputs)
        rows = numbers_of_rows(inputs.sample_ids, self.axis.size * x.shape[1])
        return part_of_rank(rows, self.axis.rank, self.axis.size)
