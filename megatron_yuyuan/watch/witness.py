"""A small process beside every rank that outlives it, says how it ended, and where it hangs.

torchrun sees only exit statuses, and names the first to fail, which is often not the one that was lost.
A witness is forked by its rank before torch is imported: it has a few megabytes and no threads, waits
for its rank's death with the kernel's pidfd, and ends right after it. Where the rank was killed, or died
by a fault or a bug of ours, the witness says so in three lines and in SAVE/exit.json. Every few seconds
it writes SAVE/heartbeats/rank_00001.json for those who look from outside: a rank that has not moved for
half of --distributed-timeout-minutes has its stack in there.
"""

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace

from megatron_yuyuan import launcher
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import BrokenError, LostError, ShortOfMemoryError, YuyuanError
from megatron_yuyuan.watch import exit_file, verdict
from megatron_yuyuan.watch.exit_file import claim_exit, read_exit
from megatron_yuyuan.watch.heartbeat import (
    BEAT,
    Beat,
    Rank,
    Watched,
    absent,
    heartbeat_path,
    read_heartbeats,
)
from megatron_yuyuan.watch.lease import is_free
from megatron_yuyuan.watch.processes import Process, die_with_parent
from megatron_yuyuan.watch.saved import find_checkpoint
from megatron_yuyuan.watch.signals import Signals
from megatron_yuyuan.watch.stacks import Stacks, in_one_line, waits

GRACE = 30.0
"""Seconds that a rank may live on after another one was lost: time to name it, and to end by itself."""
TOGETHER = ("done", "signal", "interval", "duration")
"""Classes of exit.json with which all ranks end together."""
LOSSES = (LostError.kind, BrokenError.kind, ShortOfMemoryError.kind)
"""Classes of exit.json after which no collective can end."""
FAULTS = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL)
QUIET = (0, 2, 75, 130, -signal.SIGINT, -signal.SIGHUP)
"""Ends that were spoken of, by the rank or by whoever asked for them."""


def unwatched(save: str) -> Watched:
    """For a process without a witness."""
    return Watched(Rank(launcher.rank(), launcher.world_size(), launcher.job()), save)


def watching(config: Config) -> AbstractContextManager[Watched | None]:
    """`watched` for a run of this configuration; nothing for a rehearsal, which has nothing to lose."""
    if config.parallel.dry_run:
        return nullcontext()
    return watched(config.checkpoint.save, 60 * config.parallel.distributed_timeout_minutes)


@contextmanager
def watched(save: str, timeout: float) -> Iterator[Watched]:
    """Take note of the signals that ask it to stop; fork a witness of this process, and bind its life to
    torchrun's, if that started it (on Linux). Call it before torch is imported, and once.

    timeout: seconds that a collective may wait.
    """
    own = replace(unwatched(save), signals=Signals())
    if sys.platform != "linux":
        yield own
        return
    if launcher.by_torchrun():
        die_with_parent()
    stacks, parent = Stacks(), os.getppid()
    witness, is_told = os.fork(), False
    if witness == 0:
        try:
            Witness(own, timeout, stacks, parent).stay()
        except BaseException:  # nobody else would say it
            traceback.print_exc()
        finally:
            os._exit(0)  # the handlers and buffers are the rank's
    try:
        yield own
        is_told = True
    except YuyuanError:
        is_told = True
        raise
    finally:
        own.heartbeat.end()
        if is_told:  # nothing is left to see: leave with nothing behind
            os.kill(witness, signal.SIGKILL)
            os.waitpid(witness, 0)
            if own.heartbeat.read().owns:
                forget(own)


def forget(own: Watched) -> None:
    """Remove the heartbeat file of a rank, what of it was begun, and the folder after the last one."""
    if own.save:
        path = heartbeat_path(own.save, own.rank.rank)
        with suppress(OSError):
            for file in (path, *path.parent.glob(f".{path.name}.*")):
                file.unlink(missing_ok=True)
            path.parent.rmdir()


class Witness:
    """What runs in the forked process."""

    def __init__(self, own: Watched, timeout: float, stacks: Stacks, parent: int):
        self._own, self._rank, self._save, self._heartbeat = own, own.rank, own.save, own.heartbeat
        self._timeout, self._stacks = timeout, stacks
        self._process, self._launcher = Process(own.rank.pid), Process(parent)
        self._count, self._alone_since = 0, math.inf
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # sent to the rank's whole process group
        for stream in (0, 1):  # who reads the rank's output need not wait for us
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)

    def stay(self) -> None:
        """Watch to the end."""
        while not self._process.ended(min(BEAT, self._timeout / 8)):
            self._write()
            self._end_after_others()
        status, beat = self._process.status(), self._heartbeat.read()
        late = self._awaited(status)
        if error := self._error(status, beat, late):
            self._report(error, status, beat, late)
        elif beat.owns:
            forget(self._own)

    def _write(self) -> None:
        """One heartbeat file; none before the first step, so that a failed start leaves nothing."""
        beat = self._heartbeat.read()
        if not self._save or not beat.owns:
            return
        if beat.phase == "load":
            forget(self._own)  # what the run before has left
            return
        stack = self._stack(beat)
        self._count += 1
        document = {
            **asdict(self._rank),
            "beats": self._count,
            "phase": beat.phase,
            "iteration": beat.iteration,
            "idle_seconds": round(beat.idle, 1),
            "place": beat.place,
            **stack,
        }
        path = heartbeat_path(self._save, self._rank.rank)
        with suppress(OSError):  # the run says what is wrong with its directory
            path.parent.mkdir(exist_ok=True)
            exit_file.replace(path, document)

    def _end_after_others(self) -> None:
        """Kill a rank that waits for one that is lost: NCCL waits for its whole timeout, and only the lost
        one's own torchrun would end it."""
        report = read_exit(self._save) if self._save else None
        is_ours = self._heartbeat.read().owns  # before, it may be that of another run
        if not report or not is_ours or report.get("class") in TOGETHER:
            self._alone_since = math.inf
            return
        now = time.monotonic()
        self._alone_since = min(self._alone_since, now)
        slowly = 1 if report.get("class") in LOSSES else 10  # an error's log may take time to close
        if now - self._alone_since > slowly * GRACE:
            self._process.send(signal.SIGKILL)

    def _stack(self, beat: Beat) -> dict:
        """Where a rank is that has not moved for half of what a collective may wait, and whether it
        waits for others."""
        if beat.idle < self._timeout / 2:
            return {}
        if self._process.is_stopped():
            return {"waits": False, "stack": "stopped by a signal (SIGSTOP, or a debugger)"}
        stack = self._stacks.ask(self._process)
        return {"waits": waits(stack), "stack": in_one_line(stack) or "no answer from it"}

    def _error(self, status: int | None, beat: Beat, late: dict | None) -> YuyuanError | None:
        """What to say of this end; None for one of which the rank itself has spoken, or that was asked
        for."""
        if status in QUIET or (status is None and beat.phase in ("end", "refused")):
            return None
        if status == 1:
            return BrokenError(f"{self._rank} ended with an error of this program {beat.place}")
        saved = find_checkpoint(self._save) if self._save else None
        if launcher.by_torchrun() and status in (None, -signal.SIGKILL) and self._launcher.ended():
            return verdict.launcher_died(self._rank, self._launcher.pid, beat, saved)
        if late:
            return verdict.did_not_come(self._rank, late, saved)
        signals = self._own.signals if self._save else None
        if status == -signal.SIGKILL and signals and (asked := signals.asked()):
            return verdict.not_awaited(self._rank, asked, signals.waited(), beat, saved)
        stack = in_one_line(self._stacks.left()) if status in FAULTS else ""
        return verdict.died(self._rank, status, beat, stack, saved)

    def _awaited(self, status: int | None) -> dict | None:
        """The rank for which this one may have waited until NCCL aborted it."""
        if status != -signal.SIGABRT:
            return None
        return absent(read_heartbeats(self._save, self._rank.ranks), self._rank.rank)

    def _report(
        self, error: YuyuanError, status: int | None, beat: Beat, late: dict | None
    ) -> None:
        """To SAVE/exit.json, and on stderr, unless it is known already why the run ends."""
        number, culprit = -status if status and status < 0 else 0, asdict(self._rank)
        if late:
            number, culprit = 0, late
        report = verdict.report_of(error, self._save, beat.iteration, culprit, number)
        has_place = self._save and (beat.owns or is_free(self._save)) and os.path.isdir(self._save)
        is_first = not has_place or claim_exit(self._save, report) or not read_exit(self._save)
        if is_first and error.status != 1:  # a bug has its traceback
            print(f"error: {error}", file=sys.stderr, flush=True)
