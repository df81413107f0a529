"""Data parallelism: FSDP2 divides what a tensor rank holds over the shard axis, repeats it over the
replica axis, and sums gradients over both once per step."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megatron_yuyuan.config import TrainingConfig
from megatron_yuyuan.model.gpt2 import Block
from megatron_yuyuan.parallel.mesh import Mesh


def compute_dtype(training: TrainingConfig) -> torch.dtype:
    """What gathered parameters, activations and their gradients are computed in."""
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32


def divide_over_data(module: nn.Module, mesh: Mesh, strategy: str, dtype: torch.dtype) -> None:
    """Make `module` one unit of FSDP2 on the data axis.

    | strategy           | parameters, gradients, moments at rest | gathered parameters                 |
    |--------------------|----------------------------------------|-------------------------------------|
    | no_shard           | whole on every data rank               | all, until the last backward        |
    | optim              | divided                                | all, until the last backward        |
    | optim_grads_params | divided                                | a block's, while it computes        |

    The names are Megatron-LM's. What is held at rest is float32; what is gathered has `dtype`. Gradients are
    accumulated and summed in float32, once per step: scattered over the shard axis, then all-reduced
    over the replica axis. They are summed, never averaged: the loss is already divided by the tokens of
    the global batch.

    How far things are divided is the mesh's choice: under no_shard its shard axis has one rank. The
    embeddings and ln_f, which both ends of a pass need, stay gathered from a forward to its backward.
    """
    briefly = strategy == "optim_grads_params"
    fully_shard(
        module,
        mesh=mesh.axes["replica", "shard"] if mesh.size("replica") > 1 else mesh.axes["shard"],
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        reshard_after_forward=briefly and isinstance(module, Block),
    )
    assert isinstance(module, FSDPModule)
    if mesh.data.size() > 1:  # one rank alone would divide by it, a pass over every gradient
        module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    if briefly:
        # our pipeline and torch's switch this off between micro batches, which is right for the others
        module.set_reshard_after_backward = lambda *_, **__: None  # type: ignore[method-assign]
