"""One step: read a global batch, compute its gradient, update the weights; or evaluate, which updates
nothing."""

import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from megatron_yuyuan.config import IGNORE, Config
from megatron_yuyuan.data.loader import Borders, Dataset, read_batch
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.kernels.philox import name_key
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.pipeline import Pipeline
from megatron_yuyuan.train.not_finite import first_gradient, first_output
from megatron_yuyuan.train.optimizer import clip_coefficient, gradient_norm, sum_tied_gradients
from megatron_yuyuan.train.schedule import batch_size, due, learning_rate
from megatron_yuyuan.train.spikes import SPIKE, WINDOW, Remaining, is_spike, number_of
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.throughput import Throughput
from megatron_yuyuan.train.verification import verify_step


class Trainer:
    """Takes steps with a state. `config.training` has its length and global_batch_size resolved."""

    def __init__(self, config: Config, state: TrainState, borders: Borders | None = None):
        self.config, self.state, self.mesh = config, state, state.mesh
        self.borders, self.batch_size = borders, 0
        self.own_loss = torch.zeros(())
        """This rank's part of the last batch's loss, for verification.py."""
        self.throughput = Throughput(config, self.mesh.device, dist.get_world_size())
        self._use_batches_of(config.training.global_batch_size)

    def _use_batches_of(self, size: int) -> None:
        """Read and compute global batches of so many samples: a pipeline is built for its number of
        micro batches, and there is one at a time, for it holds buffers."""
        if size == self.batch_size:
            return
        self.batch_size = size
        self.pipeline = Pipeline(
            self.state.stages, self.mesh, self.config.replace(global_batch_size=size)
        )

    def batch(self, dataset: Dataset, consumed: int, limit: int | None = None):
        """This data rank's share of the global batch after `consumed` samples."""
        return read_batch(
            dataset,
            consumed,
            self.batch_size,
            self.mesh.rank("data"),
            self.mesh.size("data"),
            self.mesh.device,
            limit,
            self.borders,
        )

    def gradients(self, dataset: Dataset) -> tuple[float, float]:
        """Leave the gradient of the next global batch, times the loss scale, in the parameters; return
        (loss, global gradient norm), without the scale.

        The loss is the sum over all learned tokens of the global batch divided by their number,
        which is known before the first backward. The host reads these three figures together, and
        nothing before: a GPU never waits for it between two micro batches. Raises DataError where no
        token is learned.
        """
        self._use_batches_of(batch_size(self.state.consumed_samples, self.config.training))
        fault_point("step.before_forward")
        remaining = Remaining(dataset, self.state.left_out)
        batch = self.batch(remaining, self.state.consumed_samples)
        tokens = torch.sum(batch.labels != IGNORE, dtype=torch.float64)
        dist.all_reduce(tokens, group=self.mesh.group("data"))
        self.state.optimizer.zero_grad(set_to_none=True)
        if not self.config.is_layout_free:
            seed_torch(self.config.training.seed, self.state.iteration, self.mesh)
        scale = self.state.loss_scale.scale
        divisor = (tokens / scale).float()
        self.own_loss = self.pipeline.forward_backward(batch, self.state.iteration, divisor)
        loss = self.own_loss.double()
        dist.all_reduce(loss, group=self.mesh.group("data"))
        if self.mesh.size("pipeline") > 1:
            group = self.mesh.group("pipeline")
            dist.broadcast(loss, group=group, group_src=self.pipeline.loss_rank)
        if self.mesh.size("tensor") > 1:  # one copy decides for all, whatever their last bit
            dist.broadcast(loss, group=self.mesh.group("tensor"), group_src=0)
        sum_tied_gradients(self.state.stages, self.mesh)
        norm = gradient_norm(self.state.stages, self.state.optimizer, self.mesh)
        scaled_loss, scaled_norm, learned = torch.stack((loss, norm, tokens)).tolist()
        if not learned:
            raise nothing_to_learn(f"the batch after sample {self.state.consumed_samples}")
        return scaled_loss / scale, scaled_norm / scale

    def step(self, dataset: Dataset) -> dict:
        """Take one optimizer step, or pass over it; return its figures, with `reason`, `samples` and
        `next_loss_scale` if it was passed over.

        A step is passed over if its loss or gradient is not finite, or, with skip_loss_spikes or
        rollback_iters, if its loss is a spike. Every rank decides alike, and none updates anything.
        Raises DataError for a step that is not finite when max_skipped_iterations are used up, unless
        its gradient overflowed and the loss scale can fall, and MachineError: see verification.py.
        """
        begun, scale = time.perf_counter(), self.state.loss_scale.scale
        loss, norm = self.gradients(dataset)
        if due(self.state.iteration + 1, self.config.training.verify_every):
            verify_step(self, dataset)
        rate, reason = self._learning_rate(), self._reason_to_skip(loss, norm, dataset)
        first = self.state.consumed_samples
        fault_point("step.before_update")
        if not reason:
            self._update(norm, rate, scale)
        fault_point("step.after_update")
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize(self.mesh.device)  # `Stopping` would wait for the update next
        self.state.iteration += 1
        self.state.consumed_samples += self.batch_size
        seconds = time.perf_counter() - begun
        figures = {
            "iteration": self.state.iteration,
            "lm_loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "loss_scale": scale,
            "global_batch_size": self.batch_size,
            "consumed_samples": self.state.consumed_samples,
            "seconds": seconds,
            **self.throughput.figures(self.batch_size, seconds, self.state),
        }
        if reason:
            figures |= {
                "reason": reason,
                "samples": self._samples(first),
                "next_loss_scale": self.state.loss_scale.scale,
            }
        return figures

    def _samples(self, first: int) -> list[int]:
        """Numbers of the first and the last sample of the batch that begins after `first` others."""
        positions = first, first + self.batch_size - 1
        return [number_of(position, self.state.left_out) for position in positions]

    def close(self) -> None:
        """No step follows."""

    def _learning_rate(self) -> float:
        """Of the step that is being taken."""
        training, optimizer = self.config.training, self.config.optimizer
        if training.train_samples:
            position = self.state.consumed_samples + self.batch_size
            return learning_rate(position, training.train_samples, optimizer)
        return learning_rate(self.state.iteration + 1, training.train_iters, optimizer)

    def _reason_to_skip(self, loss: float, norm: float, dataset: Dataset) -> str:
        """Why no update may be made with this gradient; empty if it may. Counts and remembers.

        A loss that is not finite is no overflow: the forward does not know the scale, and no smaller
        one would mend it.
        """
        state = self.state
        if not math.isfinite(loss):
            return self._not_finite(loss, norm, dataset)
        overflow, can_fall = not math.isfinite(norm), state.loss_scale.can_fall
        state.loss_scale.update(overflow)
        if overflow:
            return "overflow" if can_fall else self._not_finite(loss, norm, dataset)
        training = self.config.training
        if not (training.skip_loss_spikes or training.rollback_iters):
            return ""
        spike = is_spike(loss, state.recent_losses)
        state.recent_losses = [*state.recent_losses, loss][-WINDOW:]
        return SPIKE if spike else ""

    def _not_finite(self, loss: float, norm: float, dataset: Dataset) -> str:
        """Pass over a step that nothing can mend, or raise DataError if too many were, naming where it
        began."""
        state, training = self.state, self.config.training
        if state.skipped_iterations >= training.max_skipped_iterations:
            first, last = self._samples(state.consumed_samples)
            scale = f" at loss scale {state.loss_scale.scale:g}" if training.fp16 else ""
            stages, again = self.pipeline.models, partial(self.gradients, dataset)
            where = first_gradient(stages) if math.isfinite(loss) else first_output(stages, again)
            raise DataError(
                f"iteration {state.iteration + 1}: loss {loss}, gradient norm {norm}{scale}, on samples "
                f"{first} to {last}, {where}",
                "an update with them would destroy the weights; none was made on any rank",
                f"{'--bf16 in place of --fp16, ' if training.fp16 else ''}a lower --lr, a longer "
                f"warm-up, --max-skipped-iterations {state.skipped_iterations + 1}, or look at these "
                "samples",
            )
        state.skipped_iterations += 1
        return "not finite"

    def _update(self, norm: float, rate: float, scale: float) -> None:
        """Clip the gradient, whose norm is known, take the loss scale out of it, and take the
        optimizer's step."""
        clipped = clip_coefficient(norm, self.config.optimizer.clip_grad)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.update(clipped / scale)
        self.state.optimizer_steps += 1

    def evaluate(
        self, dataset: Dataset, should_stop: Callable[[], bool] = lambda: False
    ) -> dict | None:
        """Loss per learned token over the first eval_iters global batches of a dataset, each sample
        once. Raises DataError where nothing is learned, or the loss is not finite.

        should_stop: asked before each batch, on every rank alike; where it says so, the evaluation ends
        and None is returned.
        """
        size = self.config.training.global_batch_size
        self._use_batches_of(size)
        fault_point("evaluation.begun")
        samples = min(len(dataset), self.config.training.eval_iters * size)
        total = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for consumed in range(0, samples, size):
            if should_stop():
                self.pipeline.forward.reshard()
                return None
            total += self.pipeline.evaluate(self.batch(dataset, consumed, limit=samples))
        self.pipeline.forward.reshard()
        dist.all_reduce(total, group=self.mesh.group("data"))
        if not total[1]:
            raise nothing_to_learn("the validation set")
        loss = (total[0] / total[1]).item()
        if not math.isfinite(loss):
            raise DataError(
                f"iteration {self.state.iteration}: validation loss {loss}",
                "the weights compute no number on the validation set",
                "a lower --lr, and the last checkpoint",
            )
        return {
            "iteration": self.state.iteration,
            "consumed_samples": self.state.consumed_samples,
            "validation_loss": loss,
            "validation_perplexity": _perplexity(loss),
            "tokens": int(total[1].item()),
            "samples": samples,
        }


def seed_torch(seed: int, step: int, mesh: Mesh) -> None:
    """Give torch's own generator the seed of this step on this rank: a run that is resumed on the same
    layout draws the same masks, and there is no random state to save."""
    torch.manual_seed(name_key(seed, f"masks of step {step} on rank {mesh.axes.get_rank()}"))


def nothing_to_learn(what: str) -> DataError:
    """The error for samples of which no token is learned."""
    return DataError(
        f"no token is learned in {what}",
        "every label is masked: the prompts fill the samples and leave no room for an answer",
        "a longer --seq-length",
    )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 100.0))
