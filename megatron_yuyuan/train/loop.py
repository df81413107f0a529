"""The training loop: steps, evaluations and checkpoints, to the end of the run or a stop."""

import time
from collections.abc import Callable
from typing import Protocol

from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.log import Log
from megatron_yuyuan.train.schedule import due, train_iterations
from megatron_yuyuan.train.spikes import SPIKE
from megatron_yuyuan.train.stopping import Stop, Stopping
from megatron_yuyuan.train.trainer import Trainer


class Saver(Protocol):
    """What writes checkpoints; checkpoint/saver.py has them."""

    def save(self, validation_loss: float | None) -> None:
        """Keep this moment. validation_loss: of an evaluation of it."""

    def poll(self) -> None:
        """A step without a save has been taken."""


def train(
    trainer: Trainer,
    training_set: Dataset,
    validation_set: Dataset | None,
    saver: Saver,
    stopping: Stopping,
    log: Log,
    after_evaluation: Callable[[], None] = lambda: None,
    beat: Callable[[str, int], None] = lambda phase, iteration: None,
    after_step: Callable[[], None] = lambda: None,
    take_back: Callable[[dict], bool] = lambda spike: False,
) -> Stop | None:
    """Step to the end of the run, evaluating and saving on the way and there.

    after_evaluation: called after each, on every rank; it may use the model and changes nothing.
    beat: told what begins, after how many steps: see watch/heartbeat.py.
    after_step: called after each, on every rank, before it is saved; it changes nothing.
    take_back: called at a loss spike; whether the state is now that of an earlier iteration.
    Returns why the run stopped early, with its state saved, or None. A stop takes effect after the current
    step; an evaluation that is due or running is left for the next start, because it could outlast the
    grace period.
    """
    config, state, stop = trainer.config, trainer.state, None
    last = train_iterations(config.training)
    if state.iteration >= last:
        log.line(f"nothing left to do: {state.iteration} of {last} iterations are taken")
    held_out = validation_set if config.training.eval_iters > 0 else None

    def evaluate(dataset: Dataset) -> tuple[float | None, Stop | None]:
        beat("evaluation", state.iteration)
        loss, stop = _evaluate(trainer, dataset, stopping, log)
        if stop is None:
            after_evaluation()
        return loss, stop

    if held_out is not None and state.evaluation_due:
        validation_loss, stop = evaluate(held_out)
        beat("save", state.iteration)
        saver.save(validation_loss)  # the checkpoint of this iteration was written without it
    while state.iteration < last and stop is None:
        beat("step", state.iteration)
        figures, validation_loss = trainer.step(training_set), None
        log.event("skip" if "reason" in figures else "step", **figures)
        after_step()
        if figures.get("reason") == SPIKE and take_back(figures):
            continue
        if state.iteration < last:
            stop = stopping.agreed(state.iteration, trainer.mesh.device)
        state.evaluation_due = held_out is not None and due(
            state.iteration, config.training.eval_interval, last
        )
        if held_out is not None and state.evaluation_due and stop is None:
            validation_loss, stop = evaluate(held_out)
        if stop is not None or due(state.iteration, config.checkpoint.save_interval, last):
            beat("save", state.iteration)
            saver.save(validation_loss)
        else:
            saver.poll()
    return stop


def _evaluate(
    trainer: Trainer, validation_set: Dataset, stopping: Stopping, log: Log
) -> tuple[float | None, Stop | None]:
    """Evaluate and say so; return the loss, or why the evaluation was left."""
    begun, reasons = time.perf_counter(), []

    def should_stop() -> bool:
        reasons.append(stopping.agreed(None, trainer.mesh.device))
        return reasons[-1] is not None

    figures = trainer.evaluate(validation_set, should_stop)
    if figures is None:
        return None, reasons[-1]
    trainer.state.evaluation_due = False
    log.event("evaluation", **figures, seconds=time.perf_counter() - begun)
    return figures["validation_loss"], None
