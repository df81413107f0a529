"""Float8 products in the linear layers of the blocks: whose scales, what travels, what is kept.

    y = x W^T      e4m3, e4m3
    dx = dy W      the gradients' format (hybrid: e5m2), e4m3
    dW = dy^T x    the gradients' format, e4m3

The forward's sums may be taken with the fewer digits of the tensor cores' own registers, as Transformer
Engine and torchao take them: it is faster. A scale is always that of the whole tensor of a micro batch.
Where each rank holds a part of it, its largest element is found over the tensor axis, by an all-reduce
of one or two numbers: so no layout changes a scale, and results differ between layouts by the rounding
of sums alone. Everything else stays as it was: float32 weights at rest, bfloat16 outputs and gradients,
head, attention and LoRA's factors in bfloat16. Evaluation and generation, which want no gradient,
multiply in bfloat16 too.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.float8 import E4M3, scale_of
from megatron_yuyuan.parallel.collectives import (
    Started,
    all_reduced,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)
from megatron_yuyuan.parallel.tensor import TensorAxis


@dataclass(frozen=True)
class Float8Axis(TensorAxis):
    """A tensor axis whose linear layers multiply float8 numbers where a gradient is wanted."""

    kernels: Kernels
    gradient_format: torch.dtype
    """Of the gradients of activations."""

    def column_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().column_linear(x, weight, bias)
        return _Float8Linear.apply(x, weight, bias, self, True)

    def row_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().row_linear(x, weight)
        return self.leave(_Float8Linear.apply(x, weight, None, self, False))

    def scales(self, dtype: torch.dtype, *tensors: Tensor, are_parts: bool) -> tuple[Tensor, ...]:
        """Those of whole tensors, () float32 each, from what this rank holds of them."""
        largest = torch.stack([self.kernels.largest(tensor) for tensor in tensors])
        if are_parts and self.size > 1:
            largest = all_reduced(largest, self.group, dist.ReduceOp.MAX)
        return scale_of(largest, dtype).unbind()

    def start_back(self, dx: Tensor) -> Started | None:
        """The gradient of what entered a divided layer, on its way back; None where it is there."""
        if self.divides_sequence:
            return start_reduce_scatter(dx, self.group)
        return start_all_reduce(dx, self.group) if self.size > 1 else None


class _Float8Linear(torch.autograd.Function):
    """x W^T + b, or without b. `enters`: a column-parallel layer, whose x is the residual stream's and whose
    dx is exchanged while dW and db are computed; else a row-parallel one, whose x is a slice of features.

    Keeps x in 8 bits, under sequence parallelism this rank's part, which travels in 8 bits both times.
    Of W the scale is kept; it is rounded again.

        x       (B, T, C_in), (B, T / tensor, C_in) or (B, T, C_in / tensor)
        weight  (C_out / tensor, C_in) or (C_out, C_in / tensor)
        return  (B, T, C_out / tensor), or this rank's term of (B, T, C_out)
    """

    @staticmethod
    def forward(ctx, x, weight, bias, axis, enters):
        kernels = axis.kernels
        scales = axis.scales(E4M3, x, weight, are_parts=True)
        x8, w8 = (
            kernels.to_float8(tensor, scale, E4M3)
            for tensor, scale in zip((x, weight), scales, strict=True)
        )
        ctx.save_for_backward(x8 if ctx.needs_input_grad[1] else None, weight, *scales)
        ctx.axis, ctx.enters, ctx.gathers = axis, enters, enters and axis.divides_sequence
        if ctx.gathers:
            x8 = _gathered(_start_gather(x8, axis.group))
        y = kernels.float8_product(x8.flatten(0, 1), w8, scales, x.dtype, bias, fast=True)
        return y.view(*x8.shape[:2], -1)

    @staticmethod
    def backward(ctx, dy):
        x8, weight, x_scale, w_scale = ctx.saved_tensors
        axis, kernels, product = ctx.axis, ctx.axis.kernels, ctx.axis.kernels.float8_product
        gathering = _start_gather(x8, axis.group) if ctx.gathers and x8 is not None else None
        rows = dy.flatten(0, 1).contiguous()
        [scale] = axis.scales(axis.gradient_format, rows, are_parts=ctx.enters)
        dy8 = kernels.to_float8(rows, scale, axis.gradient_format)
        dx, arriving, dw = None, None, None
        if ctx.needs_input_grad[0]:
            w8 = kernels.transposed(kernels.to_float8(weight, w_scale, E4M3))
            dx = product(dy8, w8, (scale, w_scale), dy.dtype).view(*dy.shape[:2], -1)
            arriving = axis.start_back(dx) if ctx.enters else None
        if x8 is not None:
            x8 = _gathered(gathering) if gathering else x8
            columns = kernels.transposed(dy8), kernels.transposed(x8.flatten(0, 1))
            dw = product(*columns, (scale, x_scale), weight.dtype)
        db = rows.sum(0) if ctx.needs_input_grad[2] else None
        return arriving.wait() if arriving else dx, dw, db, None, None


def _start_gather(x: Tensor, group: ProcessGroup) -> Started:
    """`start_all_gather` of float8 numbers as bytes: not every backend knows them."""
    return start_all_gather(x.view(torch.uint8), group)


def _gathered(gathering: Started) -> Tensor:
    return gathering.wait().view(E4M3)
