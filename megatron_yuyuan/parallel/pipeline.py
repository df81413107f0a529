"""Pipeline parallelism: one training step and one evaluation pass through the stages of a model.

Training runs torch's schedules. Evaluation does not: `schedule.eval` is silently wrong for batches
that do not divide evenly, so it sends hidden states from stage to stage itself.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.mesh import Mesh


def stage_layers(num_layers: int, stages: int) -> list[range]:
    """Which layers each stage holds: consecutive runs, as equal as can be."""
    return [range(s * num_layers // stages, (s + 1) * num_layers // stages) for s in range(stages)]


class Pipeline:
    """Forward and backward over this rank's stage and, through it, over the whole model.

    What one data rank contributes to a step is cut into micro batches of micro_batch_size. Every
    stage reads the whole batch; only hidden states travel.
    """

    def __init__(self, stages: list[GPT2], mesh: Mesh, config: Config):
        [self.model] = stages  # 1F1B runs one stage a rank
        self.mesh, training = mesh, config.training
        share = training.global_batch_size // mesh.size("data")
        self.micro_batches = micro_batches = share // training.micro_batch_size
        self._dtype = torch.bfloat16 if training.bf16 else torch.float32
        self._cuts_of_t = mesh.size("tensor") if config.parallel.sequence_parallel else 1
        self.stage, self.stages = mesh.rank("pipeline"), mesh.size("pipeline")
        self.is_first, self.is_last = self.stage == 0, self.stage == self.stages - 1
        self._tokens = 1.0
        if self.stages > 1:
            # 1F1B needs a micro batch for every stage; with fewer, GPipe's order gives the same result
            schedule = Schedule1F1B if micro_batches >= self.stages else ScheduleGPipe
            stage = PipelineStage(
                self.model, self.stage, self.stages, mesh.device, group=mesh.group("pipeline")
            )
            self._schedule = schedule(
                stage, n_microbatches=micro_batches, loss_fn=self._scaled, scale_grads=False
            )

    def forward_backward(self, batch: Batch, step: int, tokens_in_global_batch: float) -> Tensor:
        """Add the gradient of (sum of the losses of this batch) / tokens_in_global_batch to the
        parameters.

        batch: this data rank's share of the global batch, micro_batches * micro_batch_size samples.
        Returns that quotient, () float32, on the last stage and 0 on the others. Gradients are
        summed over the data axis when the last micro batch is done.
        """
        self.model.train()
        self._tokens = tokens_in_global_batch
        losses = (
            self._through_schedule(batch, step) if self.stages > 1 else self._alone(batch, step)
        )
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.mesh.device)

    def _scaled(self, output: tuple[Tensor, Tensor], _target=None) -> Tensor:
        return output[0].sum() / self._tokens

    def _through_schedule(self, batch: Batch, step: int) -> list[Tensor]:
        inputs = (batch.tokens,) if self.is_first else ()
        losses: list[Tensor] = []
        ending = (
            {"target": batch.labels, "losses": losses, "return_outputs": False}
            if self.is_last
            else {}
        )
        self._schedule.step(*inputs, **batch.sides(), step=step, labels=batch.labels, **ending)
        return [loss.detach() for loss in losses]

    def _alone(self, batch: Batch, step: int) -> list[Tensor]:
        losses = []
        for i, micro in enumerate(batch.split(self.micro_batches)):
            last = i == self.micro_batches - 1
            self.model.set_requires_gradient_sync(last)  # reduce over the data axis once per step
            self.model.set_reshard_after_backward(last)  # and gather parameters once per step
            loss = self._scaled(
                self.model(micro.tokens, **micro.sides(), step=step, labels=micro.labels)
            )
            loss.backward()
            losses.append(loss.detach())
        return losses

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """(2,) float64 on every rank of the pipeline: summed loss and number of learned labels of
        this batch, one micro batch at a time."""
        self.model.eval()
        result = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for micro in batch.split(self.micro_batches):
            output = self._pass_on(micro)
            if self.is_last:
                result += torch.cat(output)
        if self.stages > 1:
            group = self.mesh.group("pipeline")
            dist.broadcast(result, group=group, group_src=self.stages - 1)
        return result

    def rest(self) -> None:
        """Give gathered parameters back after evaluation, so that optimizer and checkpoint see the
        divided ones."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _pass_on(self, batch: Batch):
        """Forward through this stage: hidden states from the stage before, and to the next."""
        group, x = self.mesh.group("pipeline"), batch.tokens
        if not self.is_first:
            x = self._empty_hidden(batch)
            dist.recv(x, group=group, group_src=self.stage - 1)
        x = self.model(x, **batch.sides(), step=0, labels=batch.labels)
        if not self.is_last:
            dist.send(x.contiguous(), group=group, group_dst=self.stage + 1)
        return x

    def _empty_hidden(self, batch: Batch) -> Tensor:
        samples, tokens = batch.tokens.shape
        shape = (samples, tokens // self._cuts_of_t, self.model.config.hidden_size)
        return torch.empty(shape, dtype=self._dtype, device=self.mesh.device)
