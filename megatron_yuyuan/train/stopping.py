"""Reasons to end a run before its last iteration, on which all ranks agree."""

import platform
import signal
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from megatron_yuyuan.config import TrainingConfig

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM, a preemption or a person sends; USR1 by `sbatch --signal=USR1@120`."""


@dataclass(frozen=True)
class Stop:
    """Why a run ends with its state saved."""

    kind: str
    """signal, interval or duration."""
    cause: str
    """SIGTERM, exit_interval=500, ..."""
    rank: int
    """The rank that had the reason; the first of several."""
    host: str


class Stopping:
    """Watches for signals, --exit-interval and --exit-duration-in-mins.

    Handlers stay for the rest of the process and only take a note: a second signal, sent while the
    first one's checkpoint is written, must not break it.
    """

    def __init__(self, training: TrainingConfig):
        self._interval, self._minutes = training.exit_interval, training.exit_duration_in_mins
        self._begun, self._signal = time.monotonic(), ""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame) -> None:
        self._signal = self._signal or signal.Signals(number).name

    def asked(self) -> str:
        """The name of the signal that came; empty without one."""
        return self._signal

    def agreed(self, iteration: int, device: torch.device) -> Stop | None:
        """The reason to stop after `iteration`, the same on every rank; all of them must ask.

        Signals and clocks differ from rank to rank: one all-reduce of a flag per step, and only
        where it is set the ranks exchange who and why.
        """
        mine = self._reason(iteration)
        flag = torch.tensor(float(mine is not None), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if not flag:
            return None
        found: list[Stop | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        return next(stop for stop in found if stop)

    def _reason(self, iteration: int) -> Stop | None:
        stop_here = partial(Stop, rank=dist.get_rank(), host=platform.node())
        if self._signal:
            return stop_here("signal", self._signal)
        if self._interval and iteration % self._interval == 0:
            return stop_here("interval", f"exit_interval={self._interval}")
        if self._minutes and time.monotonic() - self._begun > 60 * self._minutes:
            return stop_here("duration", f"exit_duration_in_mins={self._minutes}")
        return None
