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
Tell = Callable[[object], None]

TASKS_OF_A_PROCESS = 16
"""After which another takes its place: what libraries keep in memory does not add up."""
LOST = object()


def run_in_processes(
    work: Callable[[Task, Tell], None], tasks: Sequence[Task], processes: int
) -> Iterator[tuple[Task, object]]:
    """Call work(task, tell) for every task in forked processes; yield (task, what it told) as it comes,
    and (task, None) at its end.

    The first error ends them all and is raised here: a YuyuanError as it is, another with its
    traceback. Raises LostError for a process that dies. `str(task)` names a task.
    """
    team = [_Worker() for _ in range(min(processes, len(tasks)))]
    waiting = iter(range(len(tasks)))

    def begin(worker: _Worker) -> None:
        """Give a worker the next task, and a fresh process every now and then."""
        worker.task = next(waiting, None)
        if worker.task is not None:
            if worker.process is None or worker.left == 0:
                worker.end()
                worker.start(work, tasks, team)
            worker.begin(tasks)

    try:
        for worker in team:
            begin(worker)
        while busy := [worker for worker in team if worker.task is not None]:
            ready = wait([end for worker in busy for end in (worker.pipe, worker.process.sentinel)])
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    task, told = tasks[worker.task], worker.hear(tasks)
                    yield task, told
                    if told is None:
                        begin(worker)
    finally:
        for worker in team:
            worker.end()


@dataclass
class _Worker:
    """A process, our end of the pipe to it, the number of the task it is at, and how many it may still
    begin."""

    process: BaseProcess | None = None
    pipe: Connection | None = None
    task: int | None = None
    left: int = 0

    def start(self, work: Callable, tasks: Sequence, team: list["_Worker"]) -> None:
        context = multiprocessing.get_context("fork")  # what the parent has loaded is there at once
        self.pipe, theirs = context.Pipe()
        inherited = [worker.pipe for worker in team if worker.pipe]
        arguments = work, tasks, theirs, inherited
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.left = TASKS_OF_A_PROCESS

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = self.pipe = None

    def begin(self, tasks: Sequence) -> None:
        """Hand the process its next task. Raises LostError."""
        self.left -= 1
        try:
            self.pipe.send(self.task)
        except OSError:
            raise _lost(self.process, tasks[self.task]) from None

    def hear(self, tasks: Sequence) -> object:
        """What the process tells. Raises what went wrong there, and LostError for its death."""
        try:
            told = self.pipe.recv() if self.pipe.poll() else LOST
        except (EOFError, OSError):
            told = LOST
        if told is LOST:
            raise _lost(self.process, tasks[self.task])
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
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return LostError(
        f"the worker process {process.pid} died ({how}) while it read {task}",
        "killed from outside, most often because memory ran out",
        "the same command again goes on from what is done; with less memory, fewer --workers",
    )
