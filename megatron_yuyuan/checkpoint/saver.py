"""When the training loop asks for a checkpoint: written at once, or in the background while
training goes on.

A save without room is a warning, and the next one tries again; the run ends with the error only if
its last save had no room. Any other failure ends the run, on every rank alike.
"""

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.checkpoint.leftovers import remove_leftovers
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.retention import remove_superseded
from megatron_yuyuan.checkpoint.space import checkpoint_bytes, require_place
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import SpaceError
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.log import Log
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.verification import require_same_copies
from megatron_yuyuan.watch.saved import find_checkpoint


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on the disk."""

    path: Path
    seconds: float
    """From the moment it was asked for."""
    removed: tuple[Path, ...] = ()
    """Older ones that no rule keeps; known on rank 0."""
    trouble: str = ""
    """Why older ones could not be removed; known on rank 0."""


class Saver:
    """Writes checkpoints of a run into its --save directory, while training waits.

    Every rank makes one and calls the same methods at the same steps. As a context: leaving it
    finishes what is under way.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        tokenizer: Tokenizer,
        started_from: Path | None,
        log: Log,
    ):
        self._config, self._state, self._tokenizer = config, state, tokenizer
        if started_from is not None and started_from.suffix == ".old":  # it gets its name back
            started_from = started_from.with_suffix("")
        self._started_from, self._log = started_from, log
        self._group: dist.ProcessGroup | None = None
        self._no_room: SpaceError | None = None

    def require_place(self) -> None:
        """Raises DataError on every rank where nothing can be written, or not even one checkpoint
        fits: at the start, not after the first thousand steps."""
        ranks, place = Ranks(), Path(self._config.checkpoint.save)
        needed = checkpoint_bytes(self._state.tensors(), ranks)
        self._say_removed(self._make_room())
        ranks.on_first(lambda: require_place(place, needed))

    def save(self, validation_loss: float | None = None) -> None:
        """Write a checkpoint of this moment. validation_loss: of an evaluation at this iteration. Raises
        MachineError where copies of a tensor on several ranks differ: see train/verification.py."""
        require_same_copies(self._state)
        begun, iteration = time.perf_counter(), self._state.iteration
        write = partial(
            self._write, begun, iteration, self._state.tensors(), self._document(validation_loss)
        )
        self._settle(iteration, write)

    def poll(self) -> None:
        """Between steps: nothing is ever under way."""

    def complete(self) -> None:
        """Wait for what is under way: nothing ever is."""

    def finish(self) -> None:
        """Raises SpaceError if the last save had no room."""
        if self._no_room:
            raise self._no_room

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def _document(self, validation_loss: float | None) -> dict:
        """What state.json says of this moment, also when training has gone on."""
        state = self._state
        run = describe_run(
            self._config, self._tokenizer, state.consumed_samples, state.optimizer_steps
        )
        now = {"ranks": Ranks().size, "validation_loss": validation_loss}
        return copy.deepcopy(run | state.history() | now)

    def _make_room(self) -> list[Path]:
        """On rank 0, remove what killed runs left, and what no rule keeps beside the newest
        checkpoint on the disk, before anybody looks for room; return the latter. What cannot be
        removed is said after the next save."""
        place, removed = Path(self._config.checkpoint.save), []
        if self._state.mesh.is_main:
            with suppress(OSError):
                remove_leftovers(place)
                if newest := find_checkpoint(place):
                    removed = remove_superseded(newest, self._config.checkpoint, self._started_from)
        return removed

    def _write(
        self, begun: float, iteration: int, tensors: dict[str, Tensor], document: dict
    ) -> Written:
        """Write one checkpoint, then remove those that it supersedes. Raises DataError, the same on
        every rank."""
        fault_point("save.begun")
        rules, removed, trouble = self._config.checkpoint, self._make_room(), ""
        path = save_checkpoint(rules.save, iteration, tensors, document, self._group)
        if self._state.mesh.is_main:
            try:
                removed += remove_superseded(path, rules, self._started_from)
            except OSError as error:
                trouble = str(error)
        return Written(path, time.perf_counter() - begun, tuple(removed), trouble)

    def _settle(
        self, iteration: int, write: Callable[[], Written], blocked: float | None = None
    ) -> None:
        """Wait for a checkpoint and say how it ended. blocked: seconds that training has waited for
        it, None for all of them."""
        try:
            written = write()
        except SpaceError as error:
            self._no_room = error
            self._log.event("save_failed", iteration=iteration, cause=error.what)
            self._log.line(f"warning: iteration {iteration} is not saved: {error.what}")
            return
        self._no_room = None
        seconds = written.seconds
        blocked = seconds if blocked is None else blocked
        figures = {"path": str(written.path), "seconds": seconds, "blocked_seconds": blocked}
        self._log.event("save", iteration=iteration, **figures)
        waited = "" if blocked == seconds else f"; training waited {blocked:.1f} s"
        self._log.line(f"saved {written.path} in {seconds:.1f} s{waited}")
        self._say_removed(written.removed)
        if written.trouble:
            self._log.line(f"warning: older checkpoints could not be removed: {written.trouble}")

    def _say_removed(self, removed: Sequence[Path]) -> None:
        if removed:
            self._log.line(f"removed {', '.join(path.name for path in removed)}")


class BackgroundSaver(Saver):
    """Writes checkpoints while training goes on, which waits only for a copy of the tensors.

    The copy lies in host memory, pinned beside a GPU, and its memory is kept for the next one. One
    thread on every rank then does what `Saver` does, over a gloo group of its own, since two threads
    must not talk over one group. At most one checkpoint is under way: the next save, and the end of
    the run, good or bad, wait for it.
    """

    def __init__(self, config: Config, state: TrainState, *rest):
        super().__init__(config, state, *rest)
        self._cuda = state.mesh.device.type == "cuda"
        self._stager = StateDictStager(pin_memory=self._cuda)
        """Not torch's DefaultStager, which in torch 2.11 stages only once."""
        timeout = timedelta(minutes=config.parallel.distributed_timeout_minutes)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._thread = ThreadPoolExecutor(
            1, "checkpoint", _use_a_stream_of_its_own, (state.mesh.device,)
        )
        self._under_way: tuple[int, Future, float] | None = None

    def save(self, validation_loss: float | None = None) -> None:
        """Copy this moment, and begin to write it. Raises MachineError as `Saver.save` does."""
        require_same_copies(self._state)
        begun, iteration = time.perf_counter(), self._state.iteration
        self._wait()
        staged = self._stager.stage(self._state.tensors(), non_blocking=self._cuda)
        if self._cuda:
            torch.cuda.synchronize(self._state.mesh.device)
        future = self._thread.submit(
            self._write, begun, iteration, staged, self._document(validation_loss)
        )
        self._under_way = iteration, future, time.perf_counter() - begun

    def poll(self) -> None:
        """Between steps: say how a checkpoint ended once every rank has ended it, so that all of
        them see a failure after the same step. Raises DataError."""
        if self._under_way is None:
            return
        _, future, _ = self._under_way
        if self._state.mesh.all_agree(future.done()):
            self._wait()

    def complete(self) -> None:
        """Wait for what is under way. Raises DataError if it failed."""
        self._wait()

    def finish(self) -> None:
        """The same, at the end of the run."""
        self._wait()
        super().finish()

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.finish()
        except Exception as other:
            if kind is None:
                raise
            self._log.line(f"warning: {other}")  # what ended the run comes first
        finally:
            self._thread.shutdown()
            self._stager.close()

    def _wait(self) -> None:
        if self._under_way is not None:
            (iteration, future, blocked), self._under_way = self._under_way, None
            self._settle(iteration, future.result, blocked)


def _use_a_stream_of_its_own(device: torch.device) -> None:
    """What a thread beside training does first. A new thread has CUDA device 0 and its default
    stream: it would hold memory on another rank's GPU, and wait for, and hold up, the training."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))


class NoSaver:
    """Stands in for a `Saver` where there is no --save: nothing is written."""

    def require_place(self) -> None: ...

    def save(self, validation_loss: float | None = None) -> None: ...

    def poll(self) -> None: ...

    def complete(self) -> None: ...

    def __enter__(self) -> "NoSaver":
        return self

    def __exit__(self, kind, error, trace) -> None: ...


def build_saver(
    config: Config, state: TrainState, tokenizer: Tokenizer, started_from: Path | None, log: Log
) -> Saver | NoSaver:
    """The saver that a configuration asks for. started_from: a checkpoint that is never removed."""
    if not config.checkpoint.save:
        return NoSaver()
    kind = BackgroundSaver if config.checkpoint.async_save else Saver
    return kind(config, state, tokenizer, started_from, log)
