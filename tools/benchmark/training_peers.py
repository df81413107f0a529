"""What others take for a training step, for tools/benchmark/training_cpu.py: transformers' GPT-2, and
torch's own tensor parallelism."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from megatron_yuyuan.config import Config, OptimizerConfig
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

BatchOf = Callable[[int], Batch]
"""The batch of a step."""
Candidate = Callable[[int], float]
"""Takes the step of that number and returns its loss."""


def adamw(parameters: list, o: OptimizerConfig, fused: bool | None) -> torch.optim.AdamW:
    """torch's AdamW with our groups and settings. Tensors and DTensors go into groups of their own, for
    fused AdamW takes no mixture."""
    groups: dict[tuple, list] = {}
    for parameter in parameters:
        groups.setdefault((type(parameter.data), parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": o.weight_decay * matrices}
            for (_, matrices), group in groups.items()
        ],
        lr=o.lr,
        betas=(o.adam_beta1, o.adam_beta2),
        eps=o.adam_eps,
        fused=fused,
    )


def transformers_step(config: Config, batch_of: BatchOf, fused: bool | None) -> Candidate:
    """A step with transformers' GPT-2 and SDPA."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {
        "n_layer": config.model.num_layers,
        "n_embd": config.model.hidden_size,
        "n_head": config.model.num_attention_heads,
        "n_positions": config.model.max_position_embeddings,
        "vocab_size": config.model.vocab_size,
    }
    dropped = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **dropped, attn_implementation="sdpa")).train()
    optimizer = adamw(list(model.parameters()), config.optimizer, fused)

    def step(number: int) -> float:
        batch = batch_of(number)
        optimizer.zero_grad()
        logits = model(batch.tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        optimizer.step()
        return loss.item()

    return step


def dtensor_step(config: Config, batch_of: BatchOf, fused: bool | None) -> Candidate:
    """A step with our undivided model under torch's plan and its vocabulary-parallel loss."""
    model = under_torchs_plan(config, init_device_mesh("cpu", (2,)))
    optimizer = adamw(list(model.parameters()), config.optimizer, fused)

    def step(number: int) -> float:
        batch = batch_of(number)
        optimizer.zero_grad()
        with loss_parallel():
            loss = model(batch.tokens, **batch.sides(), step=number, labels=batch.labels)
            loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Head(nn.Module):
    """Mean cross entropy; logits are a DTensor, divided over the vocabulary as the weight is."""

    def forward(self, x: torch.Tensor, weight: DTensor, labels: torch.Tensor) -> torch.Tensor:
        x = DTensor.from_local(x, weight.device_mesh, [Replicate()], run_check=False)
        return F.cross_entropy(F.linear(x, weight).flatten(0, 1), labels.flatten())


def under_torchs_plan(config: Config, mesh: DeviceMesh) -> GPT2:
    """Our model, its matrices divided by `parallelize_module`."""
    model = GPT2(config.model)
    init_weights(model, config.training.seed)
    model.head = Head()
    plan = {
        "wte": RowwiseParallel(input_layouts=Replicate()),
        "h.*.attn.c_attn": ColwiseParallel(),
        "h.*.attn.c_proj": RowwiseParallel(),
        "h.*.mlp.c_fc": ColwiseParallel(),
        "h.*.mlp.c_proj": RowwiseParallel(),
    }
    return parallelize_module(model, mesh, plan).train()
