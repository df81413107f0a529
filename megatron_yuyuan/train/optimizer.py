"""AdamW over divided parameters, and the gradient norm over the whole mesh."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_yuyuan.config import OptimizerConfig
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.mesh import Mesh


def build_optimizer(stages: list[GPT2], optimizer: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101); matrices are decayed, biases and LayerNorm (one dim) are not."""
    parameters = [p for stage in stages for p in stage.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=optimizer.lr,
        betas=(optimizer.adam_beta1, optimizer.adam_beta2),
        eps=optimizer.adam_eps,
        foreach=True,
    )


def sum_tied_gradients(stages: list[GPT2], mesh: Mesh) -> None:
    """Add up the gradients of the embedding's two copies, on the first and the last stage, so that
    they stay equal."""
    for stage in stages:
        if mesh.tied_group is not None and stage.wte is not None:
            dist.all_reduce(stage.wte.weight.grad.to_local(), group=mesh.tied_group)


def gradient_norm(stages: list[GPT2], mesh: Mesh) -> Tensor:
    """The 2-norm of the gradient of the whole model, () float64, the same on every rank.

    Every element counts once: of a replicated gradient the first copy, of the tied embedding the
    first stage's.
    """
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if not (name == "wte.weight" and stage.wpe is None):
                total += _own_elements(parameter).double().square().sum()
    dist.all_reduce(total)
    return total.sqrt()


def _own_elements(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a gradient, or nothing where another rank's copy is the one that
    counts."""
    gradient = parameter.grad
    place = gradient.device_mesh.get_coordinate()
    copies = [
        place[i] for i, placement in enumerate(gradient.placements) if placement.is_replicate()
    ]
    return gradient.to_local() if not any(copies) else gradient.to_local()[:0]


@torch.no_grad()
def clip_gradients(stages: list[GPT2], norm: float, largest: float) -> None:
    """Scale every gradient by largest / norm if norm is above largest. 0 means never."""
    if largest and norm > largest:
        for stage in stages:
            for parameter in stage.parameters():
                parameter.grad.to_local().mul_(largest / norm)
