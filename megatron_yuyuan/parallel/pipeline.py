"""Pipeline parallelism: one training step and one evaluation pass through the stages of a model.

Training runs torch's schedules, evaluation the pass of `forward.py`.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    RESHARD,
    UNSHARD,
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    _PipelineScheduleRuntime,
    get_schedule_class,
)
from torch.profiler import record_function

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.data import compute_dtype
from megatron_yuyuan.parallel.forward import StagedForward
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import StagePlan, runs_as

Schedule = PipelineScheduleSingle | PipelineScheduleMulti
DIVIDES_BACKWARD = torch.__version__ >= "2.13"
"""Whether torch computes the gradients of inputs and of weights apart where autograd functions of ours are on
the way: earlier ones fail in the first backward of a zero-bubble schedule."""


class NamedStage(PipelineStage):
    """torch's stage, whose actions have names in a trace: `stage 2 forward 0` is its part of the forward
    of micro batch 0, without the waiting for it. The same under every schedule, which torch's own names
    are not."""

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments, **options):
        with record_function(f"stage {self.stage_index} forward {fwd_chunk_id}"):
            return super().forward_one_chunk(fwd_chunk_id, *arguments, **options)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments, **options):
        with record_function(f"stage {self.stage_index} backward {bwd_chunk_id}"):
            return super().backward_one_chunk(bwd_chunk_id, *arguments, **options)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *arguments, **options):
        with record_function(f"stage {self.stage_index} weights {bwd_chunk_id}"):
            return super().backward_weight_one_chunk(bwd_chunk_id, *arguments, **options)


class _ScaledLoss:
    """What a stage that ends the model returns -> what its backward begins with."""

    tokens: Tensor | float = 1.0

    def __call__(self, output: tuple[Tensor, Tensor], _target=None) -> Tensor:
        return output[0].sum() / self.tokens


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
        self._scaled = _ScaledLoss()
        """Known to the schedule in place of this: a circle of references would keep its buffers."""
        self._schedule = self._scheduled(config) if mesh.size("pipeline") > 1 else None

    def _scheduled(self, config: Config) -> Schedule:
        """torch's schedule over this rank's stages. Raises ConfigError."""
        name = runs_as(config.parallel, self.micro_batches)
        if "ZeroBubble" in name and not DIVIDES_BACKWARD:
            raise ConfigError(
                f"pipeline_schedule={name} with torch {torch.__version__}",
                "it cannot cut the backward of this model in two",
                "torch 2.13 or newer, or --pipeline-schedule Interleaved1F1B",
            )
        schedule = get_schedule_class(name)
        group, device, plan = self.mesh.group("pipeline"), self.mesh.device, self.forward.plan
        stages = [
            NamedStage(model, number, len(plan), device, *_ends(config, plan, number), group=group)
            for number, model in self.models.items()
        ]
        made = schedule(
            stages if issubclass(schedule, PipelineScheduleMulti) else stages[0],
            n_microbatches=self.micro_batches,
            loss_fn=self._scaled,
            scale_grads=False,
        )
        _leave_gathering_to_fsdp(made)
        return made

    def forward_backward(self, batch: Batch, step: int, tokens_in_global_batch: Tensor) -> Tensor:
        """Add the gradient of (sum of the losses of this batch) / tokens_in_global_batch to the
        parameters.

        batch: this data rank's share of the global batch, micro_batches * micro_batch_size samples.
        tokens_in_global_batch: () float32, divided by the loss scale if there is one.
        Returns that quotient, () float32, on `loss_rank` and 0 on the others. Gradients are summed
        over the data axis when the last micro batch is done.
        """
        for model in self.models.values():
            model.train()
        self._scaled.tokens = tokens_in_global_batch
        schedule = self._schedule
        losses = self._through(schedule, batch, step) if schedule else self._alone(batch, step)
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.mesh.device)

    def _through(self, schedule: Schedule, batch: Batch, step: int) -> list[Tensor]:
        inputs = (batch.tokens,) if self.holds_first else ()
        losses: list[Tensor] = []
        named: dict = {**batch.model_inputs(), "step": step, "labels": batch.labels}
        if self.holds_last:
            named |= {"target": batch.labels, "losses": losses, "return_outputs": False}
        if isinstance(schedule, _PipelineScheduleRuntime):
            schedule.unsharded_stages = set(self.models)  # torch 2.15 forgets them after a step
        schedule.step(*inputs, **named)
        return [loss.detach() for loss in losses]

    def _alone(self, batch: Batch, step: int) -> list[Tensor]:
        [model], losses = self.models.values(), []
        assert isinstance(model, FSDPModule)  # divide_over_data has made it one
        for i, micro in enumerate(batch.split(self.micro_batches)):
            last = i == self.micro_batches - 1
            model.set_requires_gradient_sync(last)  # reduce over the data axis once per step
            model.set_reshard_after_backward(last)  # and gather parameters once per step
            loss = self._scaled(
                model(micro.tokens, **micro.model_inputs(), step=step, labels=micro.labels)
            )
            loss.backward()
            losses.append(loss.detach())
        return losses

    def evaluate(self, batch: Batch) -> Tensor:
        """(2,) float64 on every rank of the pipeline: summed loss and number of learned labels of
        this batch, one micro batch at a time."""
        result = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for micro in batch.split(self.micro_batches):
            output = self.forward(micro.tokens, **micro.model_inputs(), step=0, labels=micro.labels)
            if self.holds_last:
                result += torch.cat(output)
        dist.broadcast(result, group=self.mesh.group("pipeline"), group_src=self.loss_rank)
        return result


def _leave_gathering_to_fsdp(schedule: Schedule) -> None:
    """Have each unit of FSDP2 gather its weights when it computes, and keep them or not as it was told, which
    is what 1F1B does. torch's plans for several stages a rank gather all units of up to three stages ahead of
    them: more than is held under optim_grads_params, and again and again where a rank has more stages."""
    if not isinstance(schedule, _PipelineScheduleRuntime):
        return
    for rank, actions in schedule.pipeline_order_with_comms.items():
        kept = [a for a in actions if a.computation_type not in (UNSHARD, RESHARD)]
        schedule.pipeline_order_with_comms[rank] = kept


def _ends(config: Config, plan: StagePlan, stage: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What a stage takes and what it gives for a micro batch, on the meta device. Told so, torch need not
    find out by a forward and backward of its own before the first step."""
    parallel, length = config.parallel, config.data.seq_length
    samples = config.training.micro_batch_size
    cuts = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    with torch.device("meta"):
        hidden = torch.empty(
            (samples, length // cuts, config.model.hidden_size),
            dtype=compute_dtype(config.training),
            requires_grad=True,
        )
        tokens = torch.empty((samples, length), dtype=torch.int64)
        loss, count = torch.empty(1, requires_grad=True), torch.empty(1)
    is_first, is_last = stage == 0, stage == len(plan) - 1
    return tokens if is_first else hidden, (loss, count) if is_last else (hidden,)
