"""A forward pass through all stages of a divided model, for evaluation and generation.

torch's schedules are for training: their `eval` fails where the backward is split in two and is
silently wrong for batches that do not divide evenly. Here hidden states go from stage to stage by
send and receive, whatever the placement of the stages, the number of samples or their length.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.data import compute_dtype
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import plan_stages
from megatron_yuyuan.parallel.tensor import TensorAxis


@runtime_checkable
class OnTensorAxis(Protocol):
    """A module that knows the tensor ranks which share it."""

    axis: TensorAxis


class StagedForward:
    """This rank's stages of the model, through which one batch at a time passes."""

    def __init__(self, models: list[GPT2], mesh: Mesh, config: Config):
        self.mesh, self.plan = mesh, plan_stages(config)
        self.models = dict(zip(self.plan.of_rank(mesh.rank("pipeline")), models, strict=True))
        """Number of a stage -> its part of the model, in order."""
        self.dtype, self._width = compute_dtype(config.training), config.model.hidden_size
        self._cuts_of_t = mesh.size("tensor") if config.parallel.sequence_parallel else 1

    @torch.no_grad()
    def __call__(self, tokens: Tensor, **inputs):
        """The last stage's output on the rank that holds it, hidden states on the others.

        tokens (B, T) int64, T divisible by the tensor ranks under sequence parallelism; inputs: the
        keyword arguments of `GPT2.forward`, read alike on every rank.
        """
        group, ranks, output = self.mesh.group("pipeline"), self.plan.ranks, tokens
        for number, model in self.models.items():
            if number and ranks[number - 1] != ranks[number]:
                output = self._empty_hidden(tokens)
                dist.recv(output, group=group, group_src=ranks[number - 1])
            output = model.eval()(output, **inputs)
            if number + 1 < len(ranks) and ranks[number + 1] != ranks[number]:
                dist.send(output.contiguous(), group=group, group_dst=ranks[number + 1])
        return output

    def _empty_hidden(self, tokens: Tensor) -> Tensor:
        shape = (tokens.shape[0], tokens.shape[1] // self._cuts_of_t, self._width)
        return torch.empty(shape, dtype=self.dtype, device=self.mesh.device)

    def reshard(self) -> None:
        """Give gathered parameters back, so that optimizer and checkpoint see the divided ones."""
        for model in self.models.values():
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


class DividedModel:
    """The divided model, called for generation as the undivided `GPT2` is: every rank asks for the
    same tokens and gets the same logits."""

    def __init__(self, models: list[GPT2], mesh: Mesh, config: Config):
        self.config, self.device, self._mesh = config.model, mesh.device, mesh
        self._forward = StagedForward(models, mesh, config.replace(sequence_parallel=False))

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Generate with the stages of a training, which may have sequence parallelism: one token cannot
        be divided over the tensor ranks. Afterwards the stages are as they were."""
        modules = [module for model in self._forward.models.values() for module in model.modules()]
        axes = {module: module.axis for module in modules if isinstance(module, OnTensorAxis)}
        try:
            for module, axis in axes.items():
                module.axis = dataclasses.replace(axis, sequence_parallel=False)
            yield
        finally:
            for module, axis in axes.items():
                module.axis = axis
            self._forward.reshard()

    def __call__(self, tokens: Tensor, *, last_token_only: bool = False, **inputs) -> Tensor:
        """tokens (B, T) int64 -> (B, T or 1, vocab_size) float32; inputs: as `StagedForward`."""
        output = self._forward(tokens, last_token_only=last_token_only, **inputs)
        ranks = self._forward.plan.ranks
        if self._mesh.rank("pipeline") == ranks[-1]:
            logits = output.float().contiguous()
        else:
            length = 1 if last_token_only else tokens.shape[1]
            shape = (tokens.shape[0], length, self.config.vocab_size)
            logits = torch.empty(shape, device=self.device)
        dist.broadcast(logits, group=self._mesh.group("pipeline"), group_src=ranks[-1])
        return logits
