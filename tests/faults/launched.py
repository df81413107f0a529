"""Trials under torchrun itself: it is killed, or one of its ranks is, after some step."""

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.jobs import LIMIT, SETTLED
from faults.kills import RANKS, SEED, NotSurvived, Outcome, Trials, iterations, require

MARK = "SURVIVAL_JOB"
"""In the environment of every process of such a job."""


class Job:
    """torchrun over RANKS ranks."""

    def __init__(self, command: tuple[object, ...], *options: str):
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        name, value = self._mark.split("=")
        self.launcher = subprocess.Popen(
            [sys.executable, *launcher, *options, *map(str, command)],
            env=os.environ | {name: value, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def left(self) -> list[int]:
        """Its processes but for the launcher. Linux: proc(5)."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            pid = int(path.parent.name)
            if pid != self.launcher.pid and self._mark in environment(pid):
                found.append(pid)
        return found

    def rank(self, number: int) -> int:
        """The pid of a rank; of its witness, which has the same environment, the launcher knows nothing."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text()
        [pid] = [p for p in map(int, children.split()) if f"RANK={number}" in environment(p)]
        return pid


def environment(pid: int) -> list[str]:
    """NAME=value of a process; nothing where it is gone, or not ours to read."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


@contextmanager
def launched(trials: Trials, save: Path, after: int, *options: str) -> Iterator[Job]:
    """A job that has taken so many steps; nothing of it is left afterwards. Raises NotSurvived."""
    job = Job(trials.command(save), *options)
    try:
        deadline = time.monotonic() + LIMIT
        while max(iterations(save), default=0) < after:
            require(job.launcher.poll() is None, "it ended by itself")
            require(time.monotonic() < deadline, f"no step {after} in {LIMIT:.0f} s")
            time.sleep(0.01)
        yield job
    finally:
        for pid in job.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.launcher.kill()
        job.launcher.wait()
        shutil.rmtree(save, ignore_errors=True)


def torchrun_killed(trials: Trials, save: Path, after: int) -> Outcome:
    """kill -9 to torchrun: its ranks and their witnesses go too, and the run goes on when it is started again."""
    try:
        with launched(trials, save, after) as job:
            job.launcher.kill()
            job.launcher.wait()
            deadline = time.monotonic() + SETTLED
            while job.left() and time.monotonic() < deadline:
                time.sleep(0.01)
            require(not job.left(), f"torchrun left the processes {job.left()}")
            return Outcome("", trials.resume(save))
    except (NotSurvived, TimeoutError) as error:
        return Outcome(f"torchrun, killed after step {after}: {error}")


def rank_killed(trials: Trials, save: Path, after: int, rank: int) -> Outcome:
    """kill -9 to a rank: torchrun --max-restarts starts both again, and they end as if nothing had been."""
    try:
        with launched(trials, save, after, "--max-restarts", "2") as job:
            os.kill(job.rank(rank), signal.SIGKILL)
            try:
                status = job.launcher.wait(LIMIT)
            except subprocess.TimeoutExpired:
                raise NotSurvived(f"torchrun is there after {LIMIT:.0f} s") from None
            require(status == 0, f"torchrun ended with status {status}")
            taken = iterations(save)
            again = [i for i in range(1, len(taken)) if taken[i] <= taken[i - 1]]
            require(len(again) == 1, f"it was started {len(again)} times again")
            trials.require_expected(save)
            return Outcome("", max(taken[: again[0]]) - taken[again[0]])
    except NotSurvived as error:
        return Outcome(f"rank {rank}, killed after step {after}: {error}")


def moments(number: int, last: int) -> list[int]:
    """After which steps: a fixed draw."""
    chance = random.Random(SEED)
    return [chance.randrange(1, last) for _ in range(number)]
