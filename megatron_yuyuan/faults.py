"""Faults on purpose: at a named place the process is killed, stopped, delayed or refused.

    --fault save.renamed:kill@2                SIGKILL to this process when it comes there a second time
    --fault step.before_update:stop@5,rank=1   SIGSTOP, to rank 1 alone
    --fault files.renamed:sleep=3              three seconds
    --fault save.in_file:error                 an OSError (EIO), as of a disk that fails

A place in the code is a call of `fault_point`, which tells Python's audit hooks (PEP 578). Without --fault
there is no hook: no argument is passed on, nothing is kept, and the interpreter compares two pointers
with NULL.
"""

import difflib
import errno
import itertools
import os
import re
import signal
import sys
import time
from dataclasses import dataclass

from megatron_yuyuan.errors import ConfigError

PLACES = {
    "start.joined": "the ranks have met, and the directory is theirs",
    "step.before_forward": "the batch of a step is about to be read",
    "step.before_update": "its gradient is there",
    "step.after_update": "its update is made, and not yet counted",
    "evaluation.begun": "an evaluation begins",
    "save.begun": "a checkpoint is asked for; in the background, where that is so",
    "save.made": "its directory is made",
    "save.file_begun": "a file of tensors, or their table, is opened",
    "save.in_file": "a portion of it is written",
    "save.file_written": "it is written, flushed and closed",
    "save.state_written": "state.json is written",
    "save.manifest_written": "manifest.json is written",
    "save.file_synced": "one of the files, or the directory, is on the disk",
    "save.moved_aside": "an older checkpoint of the same iteration has made way",
    "save.renamed": "the checkpoint has its name, not yet on the disk",
    "save.published": "it has, and the tracker names the one before",
    "save.tracked": "the tracker names it",
    "retention.moved_aside": "a superseded checkpoint has lost its name",
    "retention.manifest_removed": "and its manifest",
    "retention.removed": "it is gone",
    "files.synced": "a file that is published by its name is on the disk, under another",
    "files.renamed": "it has its name",
    "scan.unit_begun": "preprocessing, in a worker: a unit of the input is begun",
    "scan.batch_recorded": "in a worker: a batch of its documents is recorded",
    "merge.decided": "what is kept of all units is decided",
    "merge.copied": "a portion of a unit is copied to the shard",
    "convert.made": "an export or import has its directory",
    "convert.in_file": "a tensor of an export is written",
    "convert.written": "everything is written, and checked",
    "convert.file_synced": "one of the files, or the directory, is on the disk",
    "convert.renamed": "the directory has its name",
}
"""Place -> what has just happened there."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
ACTIONS = (*SIGNALS, "error", "sleep=SECONDS")
FORM = re.compile(
    r"(?P<place>[\w.]+):(?P<action>[a-z]+)(=(?P<seconds>\d+(\.\d+)?))?"
    r"(@(?P<number>[1-9]\d*))?(,rank=(?P<rank>\d+))?",
    re.ASCII,
)
_EVENT = "megatron_yuyuan.fault_point"


@dataclass(frozen=True)
class Fault:
    """What is to happen, and where."""

    place: str
    action: str
    seconds: float = 0.0
    """Of a sleep."""
    number: int = 1
    """The pass of this process through that place at which it happens, once."""
    rank: int | None = None
    """On this rank alone; None for every one."""

    def happen(self) -> None:
        """Raises OSError for `error`."""
        if self.action == "error":
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}, on purpose at {self.place}")
        if self.action == "sleep":
            time.sleep(self.seconds)
        else:
            os.kill(os.getpid(), SIGNALS[self.action])


def fault_point(place: str) -> None:
    """Say that this process is at one of PLACES; a fault may happen."""
    sys.audit(_EVENT, place)


def arm(text: str, rank: int) -> None:
    """Have the fault that a text describes happen in this process, which is a rank of its job, and in
    those that it forks. It stays for the life of the process. Raises ConfigError."""
    fault = parse_fault(text)
    if fault.rank not in (None, rank):
        return
    passes = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        if event == _EVENT and arguments[0] == fault.place and next(passes) == fault.number:
            fault.happen()

    sys.addaudithook(hook)


def parse_fault(text: str) -> Fault:
    """The fault that PLACE:ACTION[@N][,rank=R] describes. Raises ConfigError."""
    found = FORM.fullmatch(text)
    if not found:
        raise ConfigError(
            f"fault={text} is not PLACE:ACTION[@N][,rank=R]",
            "it says where which fault happens",
            "--fault save.renamed:kill@2",
        )
    place, action, seconds = found["place"], found["action"], found["seconds"]
    if place not in PLACES:
        near = difflib.get_close_matches(place, PLACES, n=3, cutoff=0.0)
        what = f"fault={text}: no place is called {place}"
        raise ConfigError(what, "it would not happen", " or ".join(near))
    if action not in (*SIGNALS, "error", "sleep") or (action == "sleep") != (seconds is not None):
        given = action if seconds is None else f"{action}={seconds}"
        what = f"fault={text}: no action is called {given}"
        raise ConfigError(what, "it would not happen", ", ".join(ACTIONS))
    number, rank = int(found["number"] or 1), int(found["rank"]) if found["rank"] else None
    return Fault(place, action, float(seconds or 0), number, rank)
