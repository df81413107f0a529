"""The signals by which SLURM, a preemption or a person asks a run to stop, noted from its first moment."""

import mmap
import signal
import struct
import time

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""USR1 by `sbatch --signal=USR1@120`."""
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
