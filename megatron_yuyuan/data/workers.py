"""Tasks over processes: one that dies is noticed at once, and what was doing it is named."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from megatron_yuyuan.errors import LostError, YuyuanError

Task = TypeVar("Task")
Told = TypeVar("Told")

TASKS_OF_A_PROCESS = 16
"""After which another takes its place: what libraries keep in memory does not add up."""
LOST = object()


def run_in_processes(
    work: Callable[[Task, Callable[[Told], None]], None], tasks: Sequence[Task], processes: int
) -> Iterator[tuple[Task, Told | None]]:
    """Call work(task, tell) for every task in forked processes; yield (task, what it told) as it comes,
    and (task, None) at its end.

    The first error ends them all and is raised here: a YuyuanError as it is, another with its
    traceback. Raises LostError for a process that dies. `str(task)` names a task.
    """
    team: list[_Worker[Task]] = []
    waiting = iter(range(len(tasks)))
    try:
        for number in islice(waiting, processes):
            team.append(_Worker(work, tasks, team))
            team[-1].begin(number)
        while team:
            ready = wait([end for worker in team for end in worker.ends])
            for worker in [each for each in team if any(end in ready for end in each.ends)]:
                told = worker.hear()
                yield worker.task, told
                if told is None:
                    _begin_next(worker, next(waiting, None), work, team)
    finally:
        for worker in team:
            worker.end()


def _begin_next(
    worker: "_Worker", number: int | None, work: Callable, team: list["_Worker"]
) -> None:
    """Give a worker another task, and a fresh process every now and then; or let it go."""
    if number is not None and worker.left:
        worker.begin(number)
        return
    worker.end()
    team.remove(worker)
    if number is not None:
        team.append(_Worker(work, worker.tasks, team))
        team[-1].begin(number)


class _Worker(Generic[Task]):
    """A process, our end of the pipe to it, the task it is at, and how many it may still begin."""

    def __init__(self, work: Callable, tasks: Sequence[Task], team: list["_Worker[Task]"]):
        context = multiprocessing.get_context("fork")  # what the parent has loaded is there at once
        self.pipe, theirs = context.Pipe()
        self.tasks, self.task, self.left = tasks, tasks[0], TASKS_OF_A_PROCESS
        arguments = work, tasks, theirs, [self.pipe, *(worker.pipe for worker in team)]
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.ends = self.pipe, self.process.sentinel
        """What is ready when the process has told something, or has died."""

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def begin(self, number: int) -> None:
        """Hand the process its next task. Raises LostError."""
        self.task = self.tasks[number]
        self.left -= 1
        try:
            self.pipe.send(number)
        except OSError:
            raise _lost(self.process, self.task) from None

    def hear(self):
        """What the process tells. Raises what went wrong there, and LostError for its death."""
        try:
            told = self.pipe.recv() if self.pipe.poll() else LOST
        except (EOFError, OSError):
            told = LOST
        if told is LOST:
            raise _lost(self.process, self.task)
        if isinstance(told, BaseException):
            raise told
        return told


def _serve(work: Callable, tasks: Sequence, pipe: Connection, inherited: list[Connection]) -> None:
    """One process: do what is asked until the pipe closes, as it does when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for connection in inherited:
        connection.close()
    try:
        while True:
            task = tasks[pipe.recv()]
            try:
                work(task, pipe.send)
            except YuyuanError as error:
                pipe.send(error)
            except Exception:
                pipe.send(RuntimeError(traceback.format_exc()))
            else:
                pipe.send(None)
    except (EOFError, BrokenPipeError):
        return


def _lost(process: BaseProcess, task) -> LostError:
    process.join()
    status = process.exitcode
    assert status is not None  # it was joined
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return LostError(
        f"the worker process {process.pid} died ({how}) while it read {task}",
        "killed from outside, most often because memory ran out",
        "the same command again goes on from what is done; with less memory, fewer --workers",
    )
