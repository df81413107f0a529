"""What a run of a few steps shows of a layout, whichever way its parameters lie."""

import torch
import torch.distributed as dist
from tiny import RandomText, build_trainer

from megatron_yuyuan.train.loop import Trainer


def whole_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every gradient of the whole model; of the embedding's two copies the first stage's."""
    mine = {
        name: parameter.grad.full_tensor()
        for name, parameter in trainer.state.stages[0].named_parameters()
    }
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (trainer.mesh.rank("pipeline"), mine))
    whole = {}
    for _, part in sorted(parts, key=lambda part: part[0], reverse=True):
        whole |= part
    return whole


def five_steps(config) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Gradients of the first of five steps; losses and gradient norms of all, validation loss."""
    trainer, samples = build_trainer(config), RandomText()
    trainer.gradients(samples)
    gradients = whole_gradients(trainer)
    taken = [trainer.step(samples) for _ in range(5)]
    figures = [step[key] for step in taken for key in ("lm_loss", "grad_norm")]
    return gradients, [*figures, trainer.evaluate(RandomText(length=13))["validation_loss"]]
