"""A named barrier: which rank is late, on which host, and in which phase."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from megatron_yuyuan.doctor.findings import OK, WARNING, Finding, name_ranks
from megatron_yuyuan.errors import LostError
from megatron_yuyuan.parallel.gathering import all_gather_object

LOOK = 0.01
"""Seconds between two looks at the store."""
SAY = 20.0
"""Seconds between two lines on who is awaited."""
SLOW = 2.0
"""A rank that takes so many seconds more than twice what half of the ranks take is slow."""


def complain(line: str) -> None:
    """Print beside the page."""
    print(line, file=sys.stderr, flush=True)


class Phases:
    """The way of all ranks through the examination, written to the store of their process group.

    It takes no collective, so that it can tell of a rank that takes part in none. limit: seconds that the
    ranks that are through with a phase wait for one that is not.
    """

    def __init__(self, limit: float, say: Callable[[str], None] = complain):
        store = dist.distributed_c10d._get_default_store()  # torch 2.13 has no public way to it
        self._store, self._limit, self._say = dist.PrefixStore("doctor", store), limit, say
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self.seconds: dict[str, float] = {}
        """What each phase took here, the waiting not counted."""
        self._store.set(f"host/{self._rank}", f"{platform.node()}, process {os.getpid()}")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Do what is within, then wait until every rank has. Raises LostError: one is not through in
        time; the phase in which it is need not be this one."""
        self._store.set(f"phase/{self._rank}", name)
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun
        self._store.set(f"{name}/{self._rank}", "")
        self._wait(name)

    def _wait(self, name: str) -> None:
        begun, said = time.monotonic(), 0.0
        while late := [r for r in range(self._ranks) if not self._store.check([f"{name}/{r}"])]:
            waited = time.monotonic() - begun
            if waited > self._limit:
                raise self._late(late, name)
            first = next(rank for rank in range(self._ranks) if rank not in late)
            if waited - said > SAY and self._rank == first:
                said = waited
                self._say(f"waiting for {self._where(late)} ... {waited:.0f} s")
            time.sleep(LOOK)

    def _late(self, late: list[int], name: str) -> LostError:
        return LostError(
            f"{name_ranks(late)} not through with `{name}` {self._limit:.0f} s after the first that "
            f"waited: {self._where(late)}",
            "a collective would wait for it as long, and name nobody",
            "look at that process on its host: py-spy dump --pid, its disk, its network",
        )

    def _where(self, late: list[int]) -> str:
        """`rank 3 (node2, process 4711) in `job``, for each of these ranks."""
        known = [r for r in late if self._store.check([f"phase/{r}", f"host/{r}"])]
        where = [f"rank {r} ({self._said('host', r)}) in `{self._said('phase', r)}`" for r in known]
        where += [f"rank {r}, which has not begun" for r in late if r not in known]
        return "; ".join(where)

    def _said(self, what: str, rank: int) -> str:
        return self._store.get(f"{what}/{rank}").decode()

    def finding(self) -> Finding:
        """What the phases took; a collective. A rank that was slow in one of them is a warning."""
        by_rank = all_gather_object(self.seconds)
        slow = []
        for name in self.seconds:
            times = [seconds[name] for seconds in by_rank]
            usual = sorted(times)[self._ranks // 2 if self._ranks > 2 else 0]
            slow += [
                f"rank {rank} ({self._said('host', rank)}) took {seconds:.1f} s for `{name}`, half of "
                f"them {usual:.1f} s"
                for rank, seconds in enumerate(times)
                if seconds > 2 * usual + SLOW
            ]
        if slow:
            why, remedy = "every step waits for the slowest rank", "its host: load, disk, network"
            return Finding("barrier", WARNING, "; ".join(slow), why, remedy)
        longest = max(self.seconds, key=lambda phase: self.seconds[phase])
        said = (
            f"all {self._ranks} passed {len(self.seconds)} phases; the longest, `{longest}`, took "
        )
        return Finding("barrier", OK, f"{said}{self.seconds[longest]:.1f} s")
