"""What a run of a few steps shows of a layout, whichever way its parameters lie."""

from itertools import chain

import torch
import torch.distributed as dist
from tiny import RandomText, build_trainer

from megatron_yuyuan.parallel.collectives import all_reduced
from megatron_yuyuan.train.trainer import Trainer


def whole_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every gradient of the whole model, without the loss scale; of the embedding's two copies the
    first stage's.

    What every tensor rank holds whole must be the same on all of them.
    """
    mine = {}
    for stage in reversed(trainer.state.stages):
        for name, parameter in stage.named_parameters():
            if parameter.grad.placements[-1].is_replicate():
                local = parameter.grad.to_local()
                largest = all_reduced(local, trainer.mesh.group("tensor"), dist.ReduceOp.MAX)
                assert torch.equal(local, largest), f"{name} differs between tensor ranks"
            mine[name] = parameter.grad.full_tensor() / trainer.state.loss_scale.scale
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (trainer.mesh.rank("pipeline"), mine))
    whole = {}
    for _, part in sorted(parts, key=lambda part: part[0], reverse=True):
        whole |= part
    return whole


def five_steps(config) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Gradients of the first of five steps; losses and gradient norms of all, validation loss."""
    trainer, samples = build_trainer(config), RandomText()
    gradients, compute = {}, trainer.gradients

    def kept(dataset):
        figures = compute(dataset)
        gradients.update(gradients or whole_gradients(trainer))
        return figures

    trainer.gradients = kept
    figures = figures_of_five_steps(trainer, samples)
    return gradients, [*figures, trainer.evaluate(RandomText(length=13))["validation_loss"]]


def figures_of_five_steps(trainer: Trainer, samples: RandomText) -> list[float]:
    """Loss and gradient norm of each. A gradient that is wrong anywhere shows in the steps after it:
    AdamW makes whole steps of it, however small it is. All of it lies on the rank's device."""
    taken = [trainer.step(samples) for _ in range(5)]
    for parameter in chain.from_iterable(stage.parameters() for stage in trainer.state.stages):
        moments = trainer.state.moments(parameter)
        held = (parameter, parameter.grad, moments["exp_avg"], moments["exp_avg_sq"])
        assert {tensor.device for tensor in held} == {trainer.mesh.device}
    return [step[key] for step in taken for key in ("lm_loss", "grad_norm")]
