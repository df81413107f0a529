"""A loss spike taken back: the run goes on from a checkpoint before it, without the samples that led to it.

Source: Chowdhery et al. 2022, arXiv:2204.02311 (PaLM), section 5.1: begin again about 100 steps before
the spike and leave out 200 to 500 batches; by their experiments it takes these samples and that state
of the weights together to make a spike.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import load_tensors, read_run
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.saver import NoSaver, Saver
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import DamagedError, DataError
from megatron_yuyuan.log import Log
from megatron_yuyuan.train.schedule import batch_size
from megatron_yuyuan.train.spikes import left_out_too, number_of, same_until
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.watch.saved import iteration_of, whole_checkpoints


class Rollback:
    """Takes a run back at its loss spikes. Every rank makes one and calls it after the same steps."""

    def __init__(self, config: Config, state: TrainState, saver: Saver | NoSaver, log: Log):
        self._config, self._state, self._saver, self._log = config, state, saver, log

    def __call__(self, spike: dict) -> bool:
        """Go back, if that is asked for and a checkpoint is old enough; spike: the figures of the step.
        Returns whether it did.

        What is left out begins with the first sample after that checkpoint and holds
        rollback_skip_batches batches beside what is left out already. The state is saved again at once,
        and from then on the run cannot but go on from there: the checkpoints after it are of the run
        that was taken back. Raises DataError where max_rollbacks are used up.
        """
        state, training = self._state, self._config.training
        if not training.rollback_iters:
            return False
        if state.rollbacks >= training.max_rollbacks:
            raise self._too_many(spike)
        self._saver.complete()
        left_out, rollbacks = state.left_out, state.rollbacks
        saved = self._load(spike["iteration"] - training.rollback_iters)
        if saved is None:
            self._log.line(
                f"warning: no checkpoint is {training.rollback_iters} iterations older than the loss spike at "
                f"iteration {spike['iteration']}: the step is passed over"
            )
            return False
        first = number_of(state.consumed_samples, state.left_out)
        size = batch_size(state.consumed_samples, training)
        position = state.consumed_samples + training.rollback_skip_batches * size - 1
        last = number_of(position, left_out)  # so many more than a rollback before has left out
        state.left_out, state.rollbacks = left_out_too(left_out, first, last), rollbacks + 1
        self._log.event("restart", iteration=state.iteration)
        self._log.event(
            "rollback",
            iteration=state.iteration,
            spike={name: spike[name] for name in ("iteration", "lm_loss", "samples")},
            left_out=[first, last],
            rollbacks=state.rollbacks,
        )
        self._saver.save(saved.get("validation_loss"))
        return True

    def _load(self, latest: int) -> dict | None:
        """Fill the state from the newest checkpoint of this run that has taken no more steps than `latest`;
        its state.json, or None where there is none."""
        state = self._state
        for path, saved in self._candidates(latest):
            try:
                state.fill(partial(load_tensors, path))
            except DamagedError as error:
                self._log.line(f"warning: {error.what}")
                continue
            steps = saved["optimizer_steps"]
            state.continue_after(saved["iteration"], saved["consumed_samples"], steps)
            state.recall(saved)
            return saved
        return None

    def _candidates(self, latest: int) -> Iterator[tuple[Path, dict]]:
        """Checkpoints of this run, the newest first, as rank 0 sees them. One that has read what is left out
        since is of a run that was taken back."""
        left_out = self._state.left_out
        found = Ranks().on_first(lambda: whole_checkpoints(self._config.checkpoint.save))
        for path in reversed(found):
            if iteration_of(path) > latest:
                continue
            try:
                saved = Ranks().on_first(partial(read_run, path))
            except DataError as error:  # on every rank
                self._log.line(f"warning: {error.what}")
                continue
            theirs = saved.get("left_out", [])
            reached = number_of(saved["consumed_samples"], theirs)
            if saved["optimizer"] and same_until(reached, left_out, theirs):
                yield path, saved

    def _too_many(self, spike: dict) -> DataError:
        return DataError(
            f"iteration {spike['iteration']}: loss {spike['lm_loss']:.6g} is a spike, and the run was taken back "
            f"{self._state.rollbacks} times (max_rollbacks)",
            "spikes that come again elsewhere have a cause that no samples explain",
            f"a lower --lr with --override, or --max-rollbacks {self._state.rollbacks + 1}",
        )
