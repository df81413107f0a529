"""Data parallelism: FSDP2 divides what a tensor rank holds over the data axis and sums gradients
once per step."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megatron_yuyuan.parallel.mesh import Mesh


def divide_over_data(module: nn.Module, mesh: Mesh, bf16: bool) -> None:
    """Make `module` one unit of FSDP2 on the data axis.

    Parameters, gradients and optimizer state rest divided, in float32; they are gathered once per
    step (in bfloat16 if asked) and stay gathered until its last backward. Gradients are accumulated
    and summed in float32. They are summed, never averaged: the loss is already divided by the
    tokens of the global batch.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
    )
    fully_shard(module, mesh=mesh.axes["data"], mp_policy=policy, reshard_after_forward=False)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
