"""LoRA beside the tensor-parallel layers: which factor is divided, what travels, whose gradient is a part.

    layer            W          A (r, C_in)   B (C_out, r)   x A^T (B, T, r) over the tensor axis
    column-parallel  Shard(0)   whole         Shard(0)       enters: its gradient is summed
    row-parallel     Shard(1)   Shard(1)      whole          leaves: it is summed

So 4 B T r bytes travel beside the 4 B T C of the layer itself. The factor that is held whole stands on
the residual stream: under sequence parallelism each rank uses it on its own part of T, its gradient is a
part of the sum, and `TensorAxis.local` says so; without, every rank computes the same gradient. W is
frozen: nothing is kept of x for it, and no product is computed for its gradient.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.lora import is_factor
from megatron_yuyuan.parallel.tensor import (
    ColumnParallel,
    ColumnParallelLinear,
    ColumnParallelLinearBeforeBias,
    Linear,
    RowParallelLinear,
    TensorAxis,
)


class LoRAColumnParallel(ColumnParallel):
    """A product x W^T + s (x A^T) B^T, the output features divided over the tensor axis.

        x       (B, T, C_in)  (sequence parallel: (B, T / tensor, C_in))
        lora_A  (r, C_in)     DTensor Replicate
        lora_B  (C_out, r)    DTensor Shard(0); local (C_out / tensor, r)
        return  (B, T, C_out / tensor)

    The product with the frozen W is the base class's, which computes no gradient of it.
    """

    def __init__(self, linear: Linear, axis: TensorAxis, rank: int, scale: float):
        super().__init__(linear, axis)
        self.scale = scale
        a, b = factors_of(linear, rank)
        self.lora_A, self.lora_B = axis.divided(a, None), axis.divided(b, 0)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        base = super().product(x, bias)
        hidden = self.axis.enter(F.linear(x, self.axis.local(self.lora_A)))
        return base + self.scale * F.linear(hidden, self.lora_B.to_local())


class LoRAColumnParallelLinear(LoRAColumnParallel, ColumnParallelLinear):
    """That product, and the bias added, (..., C_out / tensor)."""


class LoRAColumnParallelLinearBeforeBias(LoRAColumnParallel, ColumnParallelLinearBeforeBias):
    """That product, (..., C_out / tensor), and the bias beside it."""


class LoRARowParallelLinear(RowParallelLinear):
    """y = sum over ranks of x W^T + s (sum over ranks of x A^T) B^T, and b beside it; the input features
    divided over the tensor axis.

        x       (B, T, C_in / tensor)
        lora_A  (r, C_in)     DTensor Shard(1); local (r, C_in / tensor)
        lora_B  (C_out, r)    DTensor Replicate
        return  (B, T, C_out)  (sequence parallel: (B, T / tensor, C_out)); and the bias
    """

    def __init__(self, linear: Linear, axis: TensorAxis, rank: int, scale: float):
        super().__init__(linear, axis)
        self.scale = scale
        a, b = factors_of(linear, rank)
        self.lora_A, self.lora_B = axis.divided(a, 1), axis.divided(b, None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        base, bias = super().forward(x)
        hidden = self.axis.leave(F.linear(x, self.lora_A.to_local()))
        return base + self.scale * F.linear(hidden, self.axis.local(self.lora_B)), bias


WITH_FACTORS = {
    ColumnParallelLinear: LoRAColumnParallelLinear,
    ColumnParallelLinearBeforeBias: LoRAColumnParallelLinearBeforeBias,
    RowParallelLinear: LoRARowParallelLinear,
}
"""Layer of the plan -> the same with factors."""


def factors_of(linear: Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (r, C_in) and B (C_out, r) beside a matrix: whole, uninitialized."""
    c_out, c_in = linear.weight.shape
    like = linear.weight
    return nn.Parameter(like.new_empty(rank, c_in)), nn.Parameter(like.new_empty(c_out, rank))


def plan_with_factors(plan: dict, model: ModelConfig) -> dict:
    """A block's plan in which the matrices of lora_target_modules have factors; without a rank as it
    was."""
    if not model.lora_rank:
        return plan
    exchanged = {
        name: partial(WITH_FACTORS[plan[name]], rank=model.lora_rank, scale=model.lora_scale)
        for name in model.lora_target_modules
    }
    return plan | exchanged


def freeze_all_but_factors(model: GPT2) -> None:
    """Have a stage learn its factors and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_factor(name))
