"""Data parallelism: FSDP2 divides what a tensor rank holds over the data axis and sums gradients
once per step."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megatron_yuyuan.model.gpt2 import Block
from megatron_yuyuan.parallel.mesh import Mesh


def divide_over_data(module: nn.Module, mesh: Mesh, strategy: str, bf16: bool) -> None:
    """Make `module` one unit of FSDP2 on the data axis.

    | strategy           | parameters, gradients, moments at rest | gathered parameters                 |
    |--------------------|----------------------------------------|-------------------------------------|
    | no_shard           | whole on every data rank               | all, until the last backward        |
    | optim              | divided                                | all, until the last backward        |
    | optim_grads_params | divided                                | a block's, while it computes        |

    The names are Megatron-LM's. Whatever rests is float32; what is gathered is bfloat16 if asked.
    Gradients are accumulated and summed in float32, once per step. They are summed, never averaged:
    the loss is already divided by the tokens of the global batch.

    no_shard divides over an axis of size 1 and repeats that over the data axis. The embeddings and
    ln_f, which both ends of a pass need, stay gathered from a forward to its backward.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
    )
    briefly = strategy == "optim_grads_params"
    fully_shard(
        module,
        mesh=mesh.axes["data", "whole"] if strategy == "no_shard" else mesh.axes["data"],
        mp_policy=policy,
        reshard_after_forward=briefly and isinstance(module, Block),
    )
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    if briefly:
        # our pipeline and torch's switch this off between micro batches, which is right for the others
        module.set_reshard_after_backward = lambda *_, **__: None
