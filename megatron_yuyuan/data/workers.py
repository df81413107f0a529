"""Tasks over processes: one that dies is noticed at once, and what was doing it is named."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from megatron_yuyuan.errors import LostError, YuyuanError

Task = TypeVar("Task")
Told = Callable[[object], None]


def run_in_processes(
    work: Callable[[Task, Told], None], tasks: Sequence[Task], processes: int
) -> Iterator[tuple[Task, object]]:
    """Call work(task, tell) for every task in forked processes; yield (task, what it told) as it comes,
    and (task, None) at its end.

    The first error ends them all and is raised here: a YuyuanError as it is, another with its
    traceback. Raises LostError for a process that dies. `str(task)` names a task.
    """
    context = multiprocessing.get_context("fork")  # what the parent has loaded is there at once
    team: list[_Worker] = []
    try:
        for _ in range(min(processes, len(tasks))):
            ours, theirs = context.Pipe()
            inherited = [ours, *(worker.pipe for worker in team)]
            arguments = work, tasks, theirs, inherited
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            team.append(_Worker(process, ours))
        yield from _supervise(team, tasks)
    finally:
        for worker in team:
            worker.process.kill()
            worker.process.join()


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and the number of the task it is at."""

    process: BaseProcess
    pipe: Connection
    task: int | None = None

    def begin(self, number: int | None) -> None:
        self.task = number
        if number is not None:
            self.pipe.send(number)


def _supervise(team: list[_Worker], tasks: Sequence[Task]) -> Iterator[tuple[Task, object]]:
    """Hand out the tasks and pass on what is told, until every task is done."""
    waiting = iter(range(len(tasks)))
    for worker in team:
        worker.begin(next(waiting))
    while busy := [worker for worker in team if worker.task is not None]:
        ready = wait([end for worker in busy for end in (worker.pipe, worker.process.sentinel)])
        for worker in busy:
            task = tasks[worker.task]
            if worker.pipe in ready:
                try:
                    told = worker.pipe.recv()
                except EOFError:
                    raise _lost(worker.process, task) from None
                if isinstance(told, BaseException):
                    raise told
                yield task, told
                if told is None:
                    worker.begin(next(waiting, None))
            elif worker.process.sentinel in ready:
                raise _lost(worker.process, task)


def _serve(work: Callable, tasks: Sequence, pipe: Connection, inherited: list[Connection]) -> None:
    """One process: do what is asked until the pipe closes, as it does when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
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
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return LostError(
        f"the worker process {process.pid} died ({how}) while it read {task}",
        "killed from outside, most often because memory ran out",
        "the same command again goes on from what is done; with less memory, fewer --workers",
    )
