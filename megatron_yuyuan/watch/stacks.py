"""Where a process is: the stack of its main thread, asked for by a signal.

faulthandler answers from the signal's handler, so that also a process which waits inside a library is
heard; one that is stopped is not. A fault (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves its stack too.
"""

import faulthandler
import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass

from megatron_yuyuan.watch.processes import Process

ANSWER = 1.0
"""Seconds in which a process that can answer does."""
WAITING = ("torch/distributed/", "megatron_yuyuan/parallel/meeting.py")
"""Code whose callers wait for other ranks."""
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


@dataclass(frozen=True)
class Frame:
    """One call of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({'/'.join(self.file.split('/')[-2:])}:{self.line})"


class Stacks:
    """A file, shared with a process forked later, into which this one writes its stack when asked."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)
        faulthandler.enable(self._file, all_threads=True)

    def ask(self, process: Process) -> list[Frame]:
        """The stack of the process that made this, innermost call first; empty without an answer."""
        os.ftruncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)  # the processes share the position
        process.send(signal.SIGUSR2)
        deadline, before = time.monotonic() + ANSWER, -1
        while time.monotonic() < deadline:
            size = os.fstat(self._file.fileno()).st_size
            if size == before > 0:
                break
            before = size
            time.sleep(0.05)
        return self.left()

    def left(self) -> list[Frame]:
        """What was written last: an answer, or where a fault happened."""
        size = os.fstat(self._file.fileno()).st_size
        return parse(os.pread(self._file.fileno(), size, 0).decode("utf-8", "replace"))


def parse(text: str) -> list[Frame]:
    """Calls, innermost first, of what faulthandler writes, a block a thread: those of the thread in which
    a fault happened, or else of the main thread, whose block is the last."""
    _, fault, written = text.rpartition("Fatal Python error: ")
    blocks = re.split(r"(?m)^(?=(?:Current thread|Thread) )", written)
    faulty = [block for block in blocks if fault and block.startswith("Current thread")]
    found = _FRAME.findall((faulty or blocks)[-1])
    return [Frame(file, int(line), function) for file, line, function in found]


def waits(stack: list[Frame]) -> bool:
    """Whether a process waits for other ranks: it is inside a collective, or they have yet to meet."""
    return any(place in frame.file for frame in stack[:3] for place in WAITING)


def in_one_line(stack: list[Frame]) -> str:
    """`sleep (x.py:3) < read_batch (data/loader.py:50) < ...`: each call, and who made it. Left out is
    how torch calls a module."""
    return " < ".join(str(frame) for frame in stack if "torch/nn/modules/" not in frame.file)
