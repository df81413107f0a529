"""Pipeline parallelism: one training step and one evaluation pass through the stages of a model.

Training runs torch's schedules, evaluation the pass of `forward.py`.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.forward import StagedForward
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import runs_as


class Pipeline:
    """Forward and backward over this rank's stages and, through them, over the whole model.

    What one data rank contributes to a step is cut into micro batches of micro_batch_size. Every
    stage reads the whole batch; only hidden states travel.
    """

    def __init__(self, models: list[GPT2], mesh: Mesh, config: Config):
        self.mesh, training = mesh, config.training
        self.forward = StagedForward(models, mesh, config)
        self.models, plan = self.forward.models, self.forward.plan
        self.holds_first, self.holds_last = 0 in self.models, len(plan) - 1 in self.models
        self.loss_rank = plan.ranks[-1]
        """The pipeline rank of the last stage, which knows the loss."""
        share = training.global_batch_size // mesh.size("data")
        self.micro_batches = share // training.micro_batch_size
        self._tokens = 1.0
        self._schedule = self._scheduled(config) if mesh.size("pipeline") > 1 else None

    def _scheduled(self, config: Config):
        """torch's schedule over this rank's stages."""
        schedule = get_schedule_class(runs_as(config.parallel, self.micro_batches))
        group, device = self.mesh.group("pipeline"), self.mesh.device
        stages = [
            PipelineStage(model, number, len(self.forward.plan), device, group=group)
            for number, model in self.models.items()
        ]
        return schedule(
            stages if issubclass(schedule, PipelineScheduleMulti) else stages[0],
            n_microbatches=self.micro_batches,
            loss_fn=self._scaled,
            scale_grads=False,
        )

    def forward_backward(self, batch: Batch, step: int, tokens_in_global_batch: float) -> Tensor:
        """Add the gradient of (sum of the losses of this batch) / tokens_in_global_batch to the
        parameters.

        batch: this data rank's share of the global batch, micro_batches * micro_batch_size samples.
        Returns that quotient, () float32, on `loss_rank` and 0 on the others. Gradients are summed
        over the data axis when the last micro batch is done.
        """
        for model in self.models.values():
            model.train()
        self._tokens = tokens_in_global_batch
        compute = self._alone if self._schedule is None else self._through_schedule
        losses = compute(batch, step)
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.mesh.device)

    def _scaled(self, output: tuple[Tensor, Tensor], _target=None) -> Tensor:
        return output[0].sum() / self._tokens

    def _through_schedule(self, batch: Batch, step: int) -> list[Tensor]:
        inputs = (batch.tokens,) if self.holds_first else ()
        losses: list[Tensor] = []
        ending = (
            {"target": batch.labels, "losses": losses, "return_outputs": False}
            if self.holds_last
            else {}
        )
        self._schedule.step(*inputs, **batch.sides(), step=step, labels=batch.labels, **ending)
        return [loss.detach() for loss in losses]

    def _alone(self, batch: Batch, step: int) -> list[Tensor]:
        [model], losses = self.models.values(), []
        for i, micro in enumerate(batch.split(self.micro_batches)):
            last = i == self.micro_batches - 1
            model.set_requires_gradient_sync(last)  # reduce over the data axis once per step
            model.set_reshard_after_backward(last)  # and gather parameters once per step
            loss = self._scaled(
                model(micro.tokens, **micro.sides(), step=step, labels=micro.labels)
            )
            loss.backward()
            losses.append(loss.detach())
        return losses

    def evaluate(self, batch: Batch) -> Tensor:
        """(2,) float64 on every rank of the pipeline: summed loss and number of learned labels of
        this batch, one micro batch at a time."""
        result = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for micro in batch.split(self.micro_batches):
            output = self.forward(micro.tokens, **micro.sides(), step=0, labels=micro.labels)
            if self.holds_last:
                result += torch.cat(output)
        dist.broadcast(result, group=self.mesh.group("pipeline"), group_src=self.loss_rank)
        return result
