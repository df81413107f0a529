"""The signals by which SLURM, a preemption or a person asks a run to stop, noted from its first moment."""

import mmap
import os
import signal
import struct
import time

from megatron_yuyuan import launcher

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""USR1 by `sbatch --signal=USR1@120`."""
ONCE = 2.0
"""Seconds in which two SIGINTs are one Ctrl-C: torchrun forwards what the terminal has sent to all already."""
_RECORD = struct.Struct("<qd")


class Signals:
    """Takes note of the first of SIGNALS. torch takes seconds to import: what comes meanwhile must not end
    a job that would be started again.

    Handlers stay for the rest of the process and only take a note: a second signal, sent while the
    first one's checkpoint is written, must not break it. The note lies in memory that a witness, forked
    after this is made, shares.
    """

    def __init__(self):
        self._memory = mmap.mmap(-1, _RECORD.size)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def note_interrupts(self) -> None:
        """Take note of Ctrl-C too, from now on: there is something to save. Not where a shell has it ignored
        by what it starts in the background."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame) -> None:
        """Ctrl-C asks as the others do; a second one ends the run at once."""
        if not self.asked():
            self._note(number, frame)
            if launcher.rank() == 0:
                os.write(2, b"stopping after this step; Ctrl-C again ends at once\n")
        elif self.waited() > ONCE:
            signal.default_int_handler(number, frame)

    def _note(self, number: int, _frame) -> None:
        if not self.asked():
            _RECORD.pack_into(self._memory, 0, number, time.monotonic())

    def asked(self) -> str:
        """The name of the signal that came; empty without one."""
        number, _ = _RECORD.unpack_from(self._memory)
        return signal.Signals(number).name if number else ""

    def waited(self) -> float:
        """Seconds since it came."""
        _, moment = _RECORD.unpack_from(self._memory)
        return time.monotonic() - moment
