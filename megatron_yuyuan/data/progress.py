"""How far preprocessing is: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Sequence
from typing import Self

from megatron_yuyuan.data.scan import Unit


class Progress:
    """Counts documents and bytes of input, and says so on stderr.

    On a terminal a bar; elsewhere a line whenever `interval` more documents are read (0: none).
    """

    def __init__(self, interval: int):
        self.interval, self.documents, self._started = interval, 0, time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def resume(self, units: Sequence[Unit], missing: Sequence[Unit], otherwise: int) -> None:
        """Begin with `missing` of the `units`, of which some are there, but made `otherwise`."""
        if otherwise:
            cause = "from other inputs, with another tokenizer or with other options"
            print(f"{otherwise} units of the input were made {cause}: again", file=sys.stderr)
        if len(missing) < len(units):
            done = len(units) - len(missing)
            print(f"resuming: {done} of {len(units)} units of the input are done", file=sys.stderr)
        if self._bar:
            total = sum(unit.weight for unit in units)
            done = total - sum(unit.weight for unit in missing)
            self._task = self._bar.add_task("reading", total=total, completed=done, documents=0)

    def advance(self, unit: Unit, documents: int | None) -> None:
        """So many documents more of a unit are read; None: it is done."""
        before, self.documents = self.documents, self.documents + (documents or 0)
        if self._bar:
            done = 0 if documents else unit.weight
            self._bar.update(self._task, advance=done, documents=self.documents)
            self._bar.refresh()
        elif self.interval and self.documents // self.interval > before // self.interval:
            rate = self.documents / max(1e-9, time.monotonic() - self._started)
            line = f"{self.documents} documents, {rate:.0f} documents/s, now {unit}"
            print(line, file=sys.stderr, flush=True)


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    documents = TextColumn("{task.fields[documents]} documents")
    done = "{task.description}", BarColumn(), "{task.percentage:.0f} %", documents
    times, console = (TimeElapsedColumn(), TimeRemainingColumn()), Console(stderr=True)
    return Progress(*done, *times, console=console, auto_refresh=False)  # no thread: we fork
