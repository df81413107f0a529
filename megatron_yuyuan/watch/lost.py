"""The ranks that are left say which one they have lost.

A rank whose collective breaks knows no more than that a connection is gone, or that the time is up.
Who is missing stands in SAVE: in exit.json, if the witness of the lost rank has written it; in the
heartbeat files, if that rank hangs; and if its whole machine is gone, its heartbeats stop.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from megatron_yuyuan.errors import LostError, ShortOfMemoryError, YuyuanError
from megatron_yuyuan.watch import verdict
from megatron_yuyuan.watch.exit_file import claim_exit, read_exit
from megatron_yuyuan.watch.heartbeat import BEAT, Watched, absent, astray, read_heartbeats
from megatron_yuyuan.watch.lease import is_free
from megatron_yuyuan.watch.saved import find_checkpoint

BROKEN = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused",
          "Socket closed", "remote process exited", "Connection was likely closed")  # fmt: skip
LATE = ("Timed out", "timed out", "Timeout", "timeout")
"""What gloo, NCCL and torch's store say of a peer that is gone, and of one that does not come."""
REPORT = 5.0
"""Seconds in which the witness of a lost rank has written its report."""


@contextmanager
def losses_named(own: Watched) -> Iterator[None]:
    """Raises LostError, naming the rank that was lost, in place of the communication error that its
    loss has caused; in SAVE/exit.json too. Other errors pass; one that may be of this rank alone, while the
    others wait, is written there: any before the first step (after it exit_report.py writes), and memory
    that ran out."""
    try:
        yield
    except LostError as error:
        _claim(own, error, {})
        raise
    except ShortOfMemoryError as error:
        if (first := _claim(own, error, asdict(own.rank))) is not error:
            raise first from error
        raise
    except YuyuanError as error:
        if own.heartbeat.read().phase in ("start", "load"):
            _claim(own, error, asdict(own.rank))
        raise
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        text = str(error)
        late = any(sign in text for sign in LATE)
        of_torch = "gloo" in text or type(error).__name__.startswith("Dist")
        if not of_torch or not (late or any(sign in text for sign in BROKEN)):
            raise
        found = _lost(own, late)
        found.is_own = bool(own.save)  # it has claimed exit.json: no other rank prints it
        raise found from error


def _lost(own: Watched, late: bool) -> YuyuanError:
    """The error for a collective that broke, or was waited for too long."""
    if not late and (report := _report(own.save)):
        return verdict.reported(report)
    beats = read_heartbeats(own.save, own.rank.ranks)
    saved = find_checkpoint(own.save) if own.save else None
    if late and (missing := absent(beats, own.rank.rank)):
        return _claim(own, verdict.did_not_come(own.rank, missing, saved), missing)
    if silent := _silent(own, beats):
        return _claim(own, verdict.hosts_gone(silent, saved), silent[0])
    if late and (odd := astray(beats)):
        return _claim(
            own, verdict.went_astray(own.rank, beats, odd, saved), odd[0] if len(odd) == 1 else {}
        )
    error = verdict.unknown(own.rank, own.heartbeat.read(), beats, late, saved)
    return _claim(own, error, {})


def _claim(own: Watched, error: YuyuanError, culprit: dict) -> YuyuanError:
    """Write the error to SAVE/exit.json; the error, or, where another rank was faster, that rank's."""
    if not own.save or not (own.heartbeat.read().owns or is_free(own.save)):
        return error
    report = verdict.report_of(error, own.save, own.heartbeat.read().iteration, culprit)
    if not claim_exit(own.save, report) and (found := read_exit(own.save)):
        return verdict.reported(found)
    return error


def _report(save: str) -> dict | None:
    """What a witness says of the end, if one comes in time."""
    if not save:
        return None
    deadline = time.monotonic() + REPORT
    while (report := read_exit(save)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return report


def _silent(own: Watched, before: list[dict]) -> list[dict]:
    """The heartbeats of other hosts that stand still while two more are due."""
    others = [b for b in before if b["host"] != own.rank.host]
    if not others:
        return []
    time.sleep(2.2 * BEAT)
    count = {b["rank"]: b["beats"] for b in read_heartbeats(own.save, own.rank.ranks)}
    return [b for b in others if count.get(b["rank"]) == b["beats"]]
