"""Trials of survival: a job is killed at one point, the same command is started again, and the run must be the
one that nothing has disturbed, to the last bit.

A trial is survived if the kill happened, no process of the job was left, the second start came to the end,
and every digest of both starts (--log-digests: parameters, moments, counters, place in the data) is that of
the undisturbed run.
"""

import random
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from commands import train_flags
from faults.jobs import Ended, run_job

from megatron_yuyuan.digests import DIGESTS
from megatron_yuyuan.log import read_events

RANKS, SEED = 2, 1234
LAYOUTS = {"data 2": (), "pipeline 2": ("--pipeline-model-parallel-size", 2)}
COMMON = ("--log-digests", "--eval-iters", 0, "--keep-last", 2)
SAVES = (*COMMON, "--train-iters", 8, "--save-interval", 2)
STEPS = (*COMMON, "--train-iters", 24, "--save-interval", 5)
EVALUATES = (*SAVES, "--eval-iters", 1, "--eval-interval", 3, "--eval-prompt-tokens", 0)
MOMENTS = (
    *("start.joined", "step.before_forward", "step.before_update", "step.after_update"),
    *("evaluation.begun", "save.in_file"),
)
"""Where SIGTERM comes: at the start, before a forward, after a backward, after an update, in an evaluation, in
a save."""


def read_digests(path: Path) -> dict[int, set[str]]:
    """Iteration -> the digests of the whole state after it, one unless a restart came to another."""
    found: dict[int, set[str]] = {}
    for line in read_events(path):
        found.setdefault(line["iteration"], set()).add(line["sha256"])
    return found


class Point(NamedTuple):
    """Where and how one process of a job ends."""

    place: str
    rank: int
    number: int
    action: str = "kill"

    def __str__(self) -> str:
        return f"{self.place}:{self.action}@{self.number},rank={self.rank}"


class NotSurvived(Exception):
    """What a trial shows of a weakness."""


class Outcome(NamedTuple):
    """How a trial ended."""

    fault: str
    """What was not survived; empty if all was."""
    lost: int = 0
    """Steps that were taken again."""


class Trials:
    """Trials of one command, beside the run of it that nothing disturbs.

    prepared: a tokenizer and shards, as commands.prepare makes them; folder: where runs may lie.
    """

    def __init__(self, layout: str, flags: tuple[object, ...], prepared: Path, folder: Path):
        self._flags, self._prepared = (*flags, *LAYOUTS[layout]), prepared
        self._folder, save = folder, folder / "undisturbed"
        ended = self._start(save)
        require(ended.statuses == (0,) * RANKS, ended.said)
        self.expected = read_digests(save / DIGESTS)
        """Iteration -> digest."""
        self.passes = tuple(Point(*passed) for passed in ended.passes)
        """Every point at which a kill can come."""

    def outcome(self, *points: Point) -> Outcome:
        """Of one start for each of the points, and one after them."""
        save = self._folder / "run"
        try:
            for point in points:
                self._die(save, point)
            return Outcome("", self.resume(save))
        except (NotSurvived, TimeoutError) as error:
            return Outcome(f"{' then '.join(map(str, points))}: {error}")
        finally:
            shutil.rmtree(save, ignore_errors=True)

    def _die(self, save: Path, point: Point) -> None:
        """Start the command, which ends at a point. Raises NotSurvived."""
        ended = self._start(save, "--fault", point)
        status = 75 if point.action == "term" else -signal.SIGKILL
        happened = ended.statuses[point.rank] == status
        require(happened, f"it did not happen: {ended.statuses} {ended.said}")
        require(not ended.orphans, f"it left the processes {ended.orphans}")

    def resume(self, save: Path) -> int:
        """Start it again, to its end; how many steps were taken again. Raises NotSurvived."""
        before = iterations(save)
        ended = self._start(save)
        require(ended.statuses == (0,) * RANKS, f"then: {ended.statuses} {ended.said}")
        require(not ended.orphans, f"then it left the processes {ended.orphans}")
        self.require_expected(save)
        return max(before) - iterations(save)[len(before)] if before else 0

    def require_expected(self, save: Path) -> None:
        """Raises NotSurvived where a run is not the undisturbed one."""
        require_equal(read_digests(save / DIGESTS), self.expected)

    def command(self, save: Path) -> tuple[object, ...]:
        """What is started."""
        return train_flags(self._prepared, save, *self._flags)

    def _start(self, save: Path, *more: object) -> Ended:
        return run_job((*self.command(save), *more), RANKS)


def iterations(save: Path) -> list[int]:
    """Of the lines of a digest log, in order; none where it was not begun."""
    if not (save / DIGESTS).exists():
        return []
    return [line["iteration"] for line in read_events(save / DIGESTS)]


def require(condition: bool, what: str) -> None:
    """Raises NotSurvived."""
    if not condition:
        raise NotSurvived(what)


def require_equal(found: dict[int, set[str]], expected: dict[int, set[str]]) -> None:
    """Raises NotSurvived for the first iteration with another digest, or that is in one alone."""
    for iteration in sorted(found.keys() | expected.keys()):
        mine, theirs = found.get(iteration), expected.get(iteration)
        require(mine == theirs, f"iteration {iteration} has the digest {mine}, not {theirs}")


def drawn(points: Iterable[Point], rooms: Sequence[str], number: int) -> list[Point]:
    """So many of the points in some rooms (what stands before the dot of a place), a fixed draw: places and
    ranks in turn, of each any pass."""
    chance, lots = random.Random(SEED), dict[tuple[str, int], list[Point]]()
    for point in points:
        if point.place.split(".")[0] in rooms:
            lots.setdefault((point.place, point.rank), []).append(point)
    for lot in lots.values():
        chance.shuffle(lot)
    found: list[Point] = []
    while len(found) < number and any(lots.values()):
        turn = [key for key in sorted(lots) if lots[key]]
        chance.shuffle(turn)
        found += [lots[key].pop() for key in turn]
    return found[:number]


def terms(points: Iterable[Point]) -> Iterator[Point]:
    """SIGTERM at each of MOMENTS, to the ranks in turn."""
    points = list(points)
    for number, place in enumerate(MOMENTS):
        there = [p for p in points if p.place == place and p.rank == number % RANKS]
        yield there[len(there) // 3]._replace(action="term")
