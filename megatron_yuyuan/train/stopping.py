"""Reasons to end a run before its last iteration, on which all ranks agree."""

import platform
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from megatron_yuyuan.config import TrainingConfig
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.watch.signals import Signals


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

    signals: what this process has noted since it began; without them they are noted from now on.
    """

    def __init__(self, training: TrainingConfig, signals: Signals | None = None):
        self._interval, self._minutes = training.exit_interval, training.exit_duration_in_mins
        self._begun = time.monotonic()
        noted = signals or Signals()
        self.asked, self.note_interrupts = noted.asked, noted.note_interrupts
        """The name of the signal that came, empty without one; and have Ctrl-C be one from now on."""

    def agreed(self, iteration: int | None, device: torch.device) -> Stop | None:
        """The reason to stop after `iteration`, the same on every rank; all of them must ask. None: in the
        middle of an evaluation, where --exit-interval does not count.

        Signals and clocks differ from rank to rank: one all-reduce of a flag per step, and only
        where it is set the ranks exchange who and why.
        """
        mine = self._reason(iteration)
        flag = torch.tensor(float(mine is not None), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if not flag:
            return None
        return next(stop for stop in all_gather_object(mine) if stop)

    def _reason(self, iteration: int | None) -> Stop | None:
        stop_here = partial(Stop, rank=dist.get_rank(), host=platform.node())
        if cause := self.asked():
            return stop_here("signal", cause)
        if self._interval and iteration is not None and iteration % self._interval == 0:
            return stop_here("interval", f"exit_interval={self._interval}")
        if self._minutes and time.monotonic() - self._begun > 60 * self._minutes:
            return stop_here("duration", f"exit_duration_in_mins={self._minutes}")
        return None
