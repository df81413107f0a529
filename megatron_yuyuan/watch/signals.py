"""The signals by which SLURM, a preemption or a person asks a run to stop, noted from its first moment."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""USR1 by `sbatch --signal=USR1@120`."""


class Signals:
    """Takes note of the first of SIGNALS. torch takes seconds to import: what comes meanwhile must not end
    a job that would be started again.

    Handlers stay for the rest of the process and only take a note: a second signal, sent while the
    first one's checkpoint is written, must not break it.
    """

    def __init__(self):
        self._first = ""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame) -> None:
        self._first = self._first or signal.Signals(number).name

    def asked(self) -> str:
        """The name of the signal that came; empty without one."""
        return self._first
