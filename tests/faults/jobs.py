"""Jobs of a few ranks, forked from a process that has imported torch: hundreds can be killed in minutes."""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from commands import serve

LIMIT = 120.0
"""Seconds that a job may take before it is killed and counts as hanging."""
SETTLED = 10.0
"""Seconds in which a witness, or the rank that has lost another, is gone too."""
EVENT = "megatron_yuyuan.fault_point"
"""What `faults.fault_point` says to Python's audit hooks."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    statuses: tuple[int, ...]
    """By rank; minus the signal of one that was killed."""
    said: str
    """What its ranks wrote on stderr, one after another."""
    orphans: tuple[int, ...]
    """Processes of the job that were still there SETTLED seconds after its last rank."""
    passes: tuple[tuple[str, int, int], ...]
    """(place, rank, pass): the fault points that were passed, in the order of each rank."""


def run_job(arguments: Sequence[object], ranks: int = 1) -> Ended:
    """`python ARGUMENTS` as so many ranks, which meet as under bare srun. Raises TimeoutError for a job that
    hangs, and kills it. Nothing outlives it in any case."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "megatron_yuyuan.run"])
    words, port = [str(word) for word in arguments], str(_free_port())
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()}
            given = (words, environment, f"{folder}/{rank}")
            processes.append(context.Process(target=_rank, args=given))
            processes[-1].start()
        sessions = {process.pid for process in processes}
        try:
            _wait(processes)
            return Ended(
                statuses=tuple(process.exitcode for process in processes),
                said="".join(_text(f"{folder}/{rank}.stderr") for rank in range(ranks)),
                orphans=tuple(_left(sessions)),
                passes=tuple(p for rank in range(ranks) for p in _passes(f"{folder}/{rank}", rank)),
            )
        finally:
            for pid in processes_of(sessions):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in processes:
                process.kill()
                process.join()


def _rank(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """One rank, in a session of its own, so that whatever it starts can be found."""
    os.setsid()
    os.environ.update(environment, MASTER_ADDR="127.0.0.1")
    passes = os.open(f"{output}.passes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def count(event: str, given: tuple) -> None:
        if event == EVENT:
            os.write(passes, f"{os.getpid()} {given[0]}\n".encode())

    sys.addaudithook(count)
    serve(arguments, Path.cwd(), [f"{output}.stdout", f"{output}.stderr"])


def _wait(processes: list) -> None:
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            raise TimeoutError(f"rank {processes.index(process)} is there after {LIMIT:.0f} s")


def _left(sessions: set[int]) -> list[int]:
    deadline = time.monotonic() + SETTLED
    while (left := processes_of(sessions)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def processes_of(sessions: set[int]) -> list[int]:
    """The processes of these sessions that are not dead. Linux: proc(5), fields 3 and 6 of stat."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _text(stat).rpartition(")")[2].split()
        if fields and fields[0] not in "ZX" and int(fields[3]) in sessions:
            found.append(int(stat.parent.name))
    return found


def _passes(output: str, rank: int) -> list[tuple[str, int, int]]:
    """Each process counts its own passes."""
    counts: dict[str, int] = {}
    found = []
    for line in _text(f"{output}.passes").splitlines():
        counts[line] = counts.get(line, 0) + 1
        found.append((line.split()[1], rank, counts[line]))
    return list(dict.fromkeys(found))


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # a process that is gone, or never came so far
        return ""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
