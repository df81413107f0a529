"""AdamW over divided parameters, and the gradient norm over the whole mesh."""

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megatron_yuyuan.config import OptimizerConfig
from megatron_yuyuan.kernels.adamw import AdamW, local_gradient
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.mesh import Mesh


def build_optimizer(stages: list[GPT2], optimizer: OptimizerConfig) -> AdamW:
    """The AdamW of the stages' kernels over what is not frozen; matrices are decayed, biases and
    LayerNorm (one dim) are not."""
    parameters = [p for stage in stages for p in stage.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return stages[0].kernels.adamw(
        [group for group in groups if group["params"]],
        lr=optimizer.lr,
        betas=(optimizer.adam_beta1, optimizer.adam_beta2),
        eps=optimizer.adam_eps,
    )


def sum_tied_gradients(stages: list[GPT2], mesh: Mesh) -> None:
    """Add up the gradients of the embedding's two copies, on the first and the last stage, so that
    they stay equal. Frozen copies have no gradient and stay equal anyway."""
    tied = [stage.wte.weight for stage in stages if stage.wte is not None]
    copies = [local_gradient(weight) for weight in tied if weight.requires_grad]
    if len(copies) == 2:  # a schedule that comes back has both on one rank
        first, last = copies
        last.copy_(first.add_(last))
    elif copies and mesh.tied_group is not None:
        dist.all_reduce(copies[0], group=mesh.tied_group)


def gradient_norm(stages: list[GPT2], optimizer: AdamW, mesh: Mesh) -> Tensor:
    """The 2-norm of the gradient of the whole model, () float64, the same on every rank.

    Every element counts once: of a replicated gradient the first copy, of the tied embedding the
    first stage's.
    """
    counted = [
        parameter
        for stage in stages
        for name, parameter in stage.named_parameters()
        if parameter.requires_grad
        and is_first_copy(parameter)
        and not (name == "wte.weight" and stage.wpe is None)
    ]
    total = optimizer.squared_norm(counted).to(mesh.device)
    dist.all_reduce(total)
    return total.sqrt()


def is_first_copy(parameter: nn.Parameter) -> bool:
    """Whether no rank before this one holds the same part of a gradient."""
    gradient = parameter.grad
    assert isinstance(gradient, DTensor)  # as its parameter is
    mesh, placements = gradient.device_mesh, gradient.placements
    return not any(mesh.get_local_rank(i) for i, p in enumerate(placements) if p.is_replicate())


def clip_coefficient(norm: float, largest: float) -> float:
    """What a gradient of this norm is multiplied by so that its norm is `largest` at most. largest 0:
    it is never clipped."""
    return largest / norm if largest and norm > largest else 1.0
