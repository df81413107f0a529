"""The training loop: read a global batch, take a step, say what happened."""

import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_yuyuan.config import IGNORE, Config
from megatron_yuyuan.data.loader import Borders, Dataset, read_batch
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel.pipeline import Pipeline
from megatron_yuyuan.train.optimizer import clip_gradients, gradient_norm, sum_tied_gradients
from megatron_yuyuan.train.schedule import learning_rate
from megatron_yuyuan.train.state import TrainState


class Trainer:
    """Takes steps with a state. `config.training` has its train_iters and global_batch_size
    resolved."""

    def __init__(self, config: Config, state: TrainState, borders: Borders | None = None):
        self.config, self.state, self.mesh = config, state, state.mesh
        self.borders = borders
        self.pipeline = Pipeline(state.stages, self.mesh, config)

    def batch(self, dataset: Dataset, consumed: int, limit: int | None = None):
        """This data rank's share of the global batch after `consumed` samples."""
        return read_batch(
            dataset,
            consumed,
            self.config.training.global_batch_size,
            self.mesh.rank("data"),
            self.mesh.size("data"),
            self.mesh.device,
            limit,
            self.borders,
        )

    def gradients(self, dataset: Dataset) -> tuple[float, float]:
        """Leave the gradient of the next global batch in the parameters; return (loss, global
        gradient norm).

        The loss is the sum over all learned tokens of the global batch divided by their number,
        which is known before the first backward. Raises DataError where there is none.
        """
        batch = self.batch(dataset, self.state.consumed_samples)
        tokens = torch.sum(batch.labels != IGNORE, dtype=torch.float64)
        dist.all_reduce(tokens, group=self.mesh.group("data"))
        if not tokens:
            raise nothing_to_learn(f"the batch after sample {self.state.consumed_samples}")
        self.state.optimizer.zero_grad(set_to_none=True)
        loss = self.pipeline.forward_backward(batch, self.state.iteration, tokens.item()).double()
        dist.all_reduce(loss, group=self.mesh.group("data"))
        if self.pipeline.stages > 1:
            dist.broadcast(
                loss, group=self.mesh.group("pipeline"), group_src=self.pipeline.stages - 1
            )
        sum_tied_gradients(self.state.stages, self.mesh)
        return loss.item(), gradient_norm(self.state.stages, self.mesh).item()

    def step(self, dataset: Dataset) -> dict:
        """Take one optimizer step; return its figures. Raises DataError, before any update, if it
        is not finite."""
        training, optimizer = self.config.training, self.config.optimizer
        begun = time.perf_counter()
        loss, norm = self.gradients(dataset)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DataError(
                f"iteration {self.state.iteration + 1}: loss {loss}, gradient norm {norm}",
                "an update with them would destroy the weights; none was made",
                "a lower --lr, a longer warm-up, or look at the samples from number "
                f"{self.state.consumed_samples} on",
            )
        clip_gradients(self.state.stages, norm, optimizer.clip_grad)
        rate = learning_rate(self.state.iteration + 1, training.train_iters, optimizer)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.step()
        self.state.iteration += 1
        self.state.optimizer_steps += 1
        self.state.consumed_samples += training.global_batch_size
        seconds = time.perf_counter() - begun
        tokens = training.global_batch_size * self.config.data.seq_length
        return {
            "iteration": self.state.iteration,
            "lm_loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "global_batch_size": training.global_batch_size,
            "consumed_samples": self.state.consumed_samples,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }

    def evaluate(self, dataset: Dataset) -> dict:
        """Loss per learned token over the first eval_iters global batches of a dataset, each sample
        once. Raises DataError where nothing is learned, or the loss is not finite."""
        size = self.config.training.global_batch_size
        samples = min(len(dataset), self.config.training.eval_iters * size)
        total = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for consumed in range(0, samples, size):
            total += self.pipeline.evaluate(self.batch(dataset, consumed, limit=samples))
        self.pipeline.rest()
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
            "validation_loss": loss,
            "validation_perplexity": _perplexity(loss),
            "tokens": int(total[1].item()),
            "samples": samples,
        }


def nothing_to_learn(what: str) -> DataError:
    """The error for samples of which no token is learned."""
    return DataError(
        f"no token is learned in {what}",
        "every label is masked: the prompts fill the samples and leave no room for an answer",
        "a longer --seq-length",
    )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 100.0))


def train(
    trainer: Trainer,
    training_set: Dataset,
    validation_set: Dataset | None,
    save: Callable[[], None],
    log: Log,
) -> None:
    """Step until train_iters, evaluating and saving on the way and at the end."""
    config, state = trainer.config, trainer.state
    last = config.training.train_iters
    if state.iteration >= last:
        log.line(f"nothing left to do: {state.iteration} of {last} iterations are taken")
    if config.training.eval_iters == 0:
        validation_set = None
    while state.iteration < last:
        figures = trainer.step(training_set)
        log.event("step", **figures)
        if state.iteration % config.training.log_interval == 0 or state.iteration == last:
            log.step(figures, last)
        if validation_set is not None and _due(
            state.iteration, config.training.eval_interval, last
        ):
            figures = trainer.evaluate(validation_set)
            log.event("evaluation", **figures)
            log.line(
                f" validation loss at iteration {state.iteration} | lm loss value: "
                f"{figures['validation_loss']:.6E} | lm loss PPL: {figures['validation_perplexity']:.6E} |"
            )
        if _due(state.iteration, config.checkpoint.save_interval, last):
            save()


def _due(iteration: int, interval: int, last: int) -> bool:
    return iteration == last or (bool(interval) and iteration % interval == 0)
