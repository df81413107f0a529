"""What a rank says of itself, in memory that it shares with its witness: a beat is a few bytes, no file
and no message, and what was said last can still be read when the rank is dead. The witness writes it to
SAVE/heartbeats/rank_00001.json, for the other ranks and for people."""

import json
import mmap
import os
import platform
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from megatron_yuyuan.watch.signals import Signals

BEAT = 5.0
"""Seconds between two heartbeat files of a rank."""
PHASES = ("start", "refused", "load", "step", "evaluation", "save", "end")
"""start: before the rank's job holds its directory; refused: it ended then; load: from then to the first step."""
_RECORD = struct.Struct("<qqd")


@dataclass(frozen=True)
class Beat:
    """The last thing that a rank has said."""

    phase: str
    """What it began then: one of PHASES."""
    iteration: int
    """Steps it had taken."""
    idle: float
    """Seconds since then."""

    @property
    def owns(self) -> bool:
        """Whether the job holds its directory: until then another one may be writing there."""
        return self.phase not in ("start", "refused")

    @property
    def place(self) -> str:
        """`in step 51`, `while it started`: what it was doing."""
        return {
            "start": "while it started",
            "refused": "while it started",
            "load": "while it started",
            "step": f"in step {self.iteration + 1}",
            "evaluation": f"in the evaluation after step {self.iteration}",
            "save": f"while it saved step {self.iteration}",
            "end": f"while it ended after step {self.iteration}",
        }[self.phase]


class Heartbeat:
    """Written by a rank, read by its witness, which is forked after this is made."""

    def __init__(self):
        self._memory = mmap.mmap(-1, _RECORD.size)
        self.beat("start", 0)

    def beat(self, phase: str, iteration: int) -> None:
        """A phase begins, after so many steps."""
        _RECORD.pack_into(self._memory, 0, PHASES.index(phase), iteration, time.monotonic())

    def end(self) -> None:
        """The rank ends in an orderly way."""
        beat = self.read()
        self.beat("end" if beat.owns else "refused", beat.iteration)

    def read(self) -> Beat:
        phase, iteration, moment = _RECORD.unpack_from(self._memory)
        return Beat(PHASES[phase], iteration, time.monotonic() - moment)


@dataclass(frozen=True)
class Rank:
    """Which process of a job this is."""

    rank: int
    ranks: int
    job: str
    """SLURM's or torchrun's name for the job; empty under plain python."""
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    since: float = field(default_factory=time.time)
    """Seconds since 1970."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Watched:
    """What a rank knows of its being watched."""

    rank: Rank
    save: str
    """The run's --save; empty without one."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    signals: Signals | None = None
    """What has asked it to stop, noted since it is watched; None without a witness."""


def heartbeat_path(save: str | Path, rank: int) -> Path:
    """The file that the witness of a rank writes."""
    return Path(save) / "heartbeats" / f"rank_{rank:05d}.json"


def read_heartbeats(save: str, ranks: int) -> list[dict]:
    """The heartbeat files of a run, by rank; those of ranks that have none, or a cut one, are left out."""
    found = []
    for rank in range(ranks if save else 0):
        try:
            found.append(json.loads(heartbeat_path(save, rank).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return found


def absent(beats: list[dict], waiting: int) -> dict | None:
    """The rank for which another one waits: it stands still, outside of a collective, and elsewhere than
    the one that waits (on CUDA, ranks wait for each other in plain code too)."""
    place = next((b.get("stack", "") for b in beats if b["rank"] == waiting), "").split(" < ")[0]
    for beat in beats:
        elsewhere = beat["rank"] != waiting and beat.get("stack", "").split(" < ")[0] != place
        if beat.get("waits") is False and elsewhere:
            return beat
    return None


def astray(beats: list[dict]) -> list[dict]:
    """The ranks that stand elsewhere than more than half of those that stand still; none where no half is in
    one place. Several are no proof: in a long pipeline most stages wait for the one before."""
    still = [beat for beat in beats if "stack" in beat]
    [(place, ranks)] = Counter(beat["stack"] for beat in still).most_common(1) or [("", 0)]
    return [beat for beat in still if beat["stack"] != place and 2 * ranks > len(still)]
