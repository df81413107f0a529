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
        fused=True,
    )


def sum_tied_gradients(stages: list[GPT2], mesh: Mesh) -> None:
    """Add up the gradients of the embedding's two copies, on the first and the last stage, so that
    they stay equal."""
    copies = [stage.wte.weight.grad.to_local() for stage in stages if stage.wte is not None]
    if len(copies) == 2:  # a schedule that comes back has both on one rank
        first, last = copies
        last.copy_(first.add_(last))
    elif copies and mesh.tied_group is not None:
        dist.all_reduce(copies[0], group=mesh.tied_group)


def gradient_norm(stages: list[GPT2], mesh: Mesh) -> Tensor:
    """The 2-norm of the gradient of the whole model, () float64, the same on every rank.

    Every element counts once: of a replicated gradient the first copy, of the tied embedding the
    first stage's. Within a row float32 is exact enough; a float64 copy of all elements would take
    longer than the optimizer's step.
    """
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if not (name == "wte.weight" and stage.wpe is None):
                rows = torch.linalg.vector_norm(_own_elements(parameter), dim=-1)
                total += rows.double().square().sum()
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


def clip_coefficient(norm: float, largest: float) -> float:
    """What a gradient of this norm is multiplied by so that its norm is `largest` at most. largest 0:
    it is never clipped."""
    return largest / norm if largest and norm > largest else 1.0


@torch.no_grad()
def scale_gradients(stages: list[GPT2], coefficient: float) -> None:
    """Multiply every gradient by a number."""
    if coefficient != 1.0:
        gradients = [p.grad.to_local() for stage in stages for p in stage.parameters()]
        torch._foreach_mul_(gradients, coefficient)
