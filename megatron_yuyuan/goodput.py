"""Goodput: the share of a run's wall time that went to steps that count, and where the rest went.

Everything follows from the events of the run (docs/metrics.md), so that a report says the same as the
run said while it lived, over all its starts.
"""

import time
from collections.abc import Iterable
from contextlib import suppress

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.log import Log, Sink, duration
from megatron_yuyuan.watch.processes import process_age

CAUSES = {
    "steps": "steps that count",
    "skipped": "steps passed over",
    "repeated": "steps that a restart took back",
    "evaluation": "evaluation",
    "saving": "waiting for checkpoints",
    "start_up": "starting up",
    "idle": "between two starts",
    "other": "everything else",
}
"""Where time goes -> how it is said."""
CAUSE_OF = {
    "step": ("steps", "seconds"),
    "skip": ("skipped", "seconds"),
    "evaluation": ("evaluation", "seconds"),
    "continuations": ("evaluation", "seconds"),
    "save": ("saving", "blocked_seconds"),
}
"""Event -> the cause of the time it tells of, and the field that holds it."""


class TimeSplit:
    """Divides the time from the first start to the last event over its causes.

    What no event accounts for is `start_up` before the first step or evaluation of a start, and
    `other` after it; from the last event of one start to the next start it is `idle`, the step that a
    kill broke off included. Lines from before the first `start` event have no clock and are left out.
    """

    def __init__(self, events: Iterable[dict] = ()):
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._now: float | None = None
        self._starting = True
        self._steps: dict[int, float] = {}  # iteration -> seconds, of the steps that count
        for event in events:
            self.add(event["event"], event)

    @property
    def total(self) -> float:
        """Wall seconds divided so far."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of them that went to steps that count; 0 before there are any."""
        return self.seconds["steps"] / self.total if self.total else 0.0

    def add(self, event: str, values: dict) -> None:
        """Account for the time that passed before an event."""
        if event == "start":
            self._begin(values["begun"])
        if event == "restart":
            self._take_back(values["iteration"])
        if self._now is None or "time" not in values:
            return
        passed, self._now = values["time"] - self._now, values["time"]
        cause, field = CAUSE_OF.get(event, ("other", ""))
        known = values.get(field, 0.0)  # an older line has none
        rest = "start_up" if self._starting else "other"
        self._starting = self._starting and cause in ("saving", "other")
        self.seconds[cause] += known
        self.seconds[rest] += passed - known  # an asynchronous save tells of time already passed
        if cause == "steps":
            self._steps[values["iteration"]] = known

    def _begin(self, begun: float) -> None:
        if self._now is not None:
            self.seconds["idle"] += max(0.0, begun - self._now)
        self._now, self._starting = begun, True

    def _take_back(self, iteration: int) -> None:
        for later in [step for step in self._steps if step > iteration]:
            seconds = self._steps.pop(later)
            self.seconds["steps"] -= seconds
            self.seconds["repeated"] += seconds

    def figures(self) -> dict:
        """Of a `goodput` event."""
        return {
            "goodput": self.goodput,
            "wall_seconds": self.total,
            "seconds_by_cause": dict(self.seconds),
        }

    def describe(self) -> str:
        """`goodput: 81.2% of 0:12:34; evaluation 9.1%, starting up 6.4%, ...`; no more where nothing was lost."""
        lost = sorted(
            (seconds / self.total, name)
            for name, seconds in self.seconds.items()
            if name != "steps" and self.total
        )
        parts = [f"{CAUSES[name]} {share:.1%}" for share, name in reversed(lost) if share >= 5e-4]
        used = f"goodput: {self.goodput:.1%} of {duration(self.total)}"
        return f"{used}; {', '.join(parts)}" if parts else used


class Goodput(Sink):
    """Says, after every evaluation and checkpoint and at the end, where the run's time has gone so
    far: a `goodput` event, and a line at the end."""

    def __init__(self, log: Log, history: Iterable[dict]):
        self._log, self._split, self._iteration = log, TimeSplit(history), 0
        self._started = False

    def start(self) -> None:
        self._started = True

    def event(self, event: str, values: dict) -> None:
        self._split.add(event, values)
        self._iteration = values.get("iteration", self._iteration)
        if event in ("evaluation", "save"):
            self._say()

    def close(self) -> None:
        if self._started:
            with suppress(DataError):  # a full disk, which ends the run with its own message
                self._say()
            self._log.line(self._split.describe())

    def _say(self) -> None:
        self._log.event("goodput", iteration=self._iteration, **self._split.figures())


def process_begun() -> float:
    """Unix time at which this process was started, as far as the system says it."""
    return time.time() - process_age()
