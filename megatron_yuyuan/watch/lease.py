"""One job at a time writes to a SAVE directory: SAVE/lease.json says which.

    {"id": "5f0c...", "job": "4711", "host": "node7", "pid": 812, "machine": "...", "began": "...",
     "since": "2026-11-22 12:01:07", "saved": 500, "furthest": 512, "starts": 1, "ended": false}

The holder touches the file every BEAT seconds, from a thread. A lease is stale if its holder says that it
has ended, if the holder is a dead process of this machine, or if nobody touches it for WATCH seconds:
what is compared is the change of its time, never two clocks. No lock is used, since file systems of
clusters have none that can be relied on. Who finds that his lease was taken ends at once.

A lease that was not given back tells that the run before was lost, and how far it had come: a job that
is started again and again and comes no further is refused. Starts whose ranks do not even meet have no
lease; SAVE/meeting.json counts them, until one meets or a person has ended it.
"""

import contextlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from megatron_yuyuan.errors import BusyError, DataError, LostError, NoProgressError, YuyuanError
from megatron_yuyuan.watch.exit_file import publish_once, read_exit, replace
from megatron_yuyuan.watch.processes import is_alive, machine, start_time

LEASE_FILE, MEETING_FILE = "lease.json", "meeting.json"
BEAT = 10.0
WATCH = 90.0
"""Seconds without a change after which a holder elsewhere counts as dead. NFS clients may show the times of
a file 60 seconds late."""
SETTLED = 0.5
"""Seconds after which of several that take over the same stale lease one has it."""
STARTS = 3
"""Starts that may end without a new step, one after another."""
_FIELDS = set("id job host pid machine began since saved furthest starts ended".split())
"""Of a lease; a file that lacks one is none."""


class Lease:
    """The right of this process to write to a directory, from `take` to the end of the `with` block.

    It is given back at a good end, and where a person must mend something or has interrupted the run; where
    a process was lost, or by a bug, it stays behind as ended.
    """

    def __init__(self, directory: Path, document: dict, made: list[Path]):
        self._path, self._document, self._made = directory / LEASE_FILE, document, made
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if not self._is_ours():
                return
            if error is None or _is_by_person(error):
                self._path.unlink()
                for folder in self._made:  # a run that is refused at its start leaves nothing
                    folder.rmdir()
            else:
                replace(self._path, self._document | {"ended": True})

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):  # a file system that fails for a moment
                if not self._is_ours():
                    _end_at_once(self._path, read_lease(self._path) or self._document)
                os.utime(self._path)

    def _is_ours(self) -> bool:
        """Whether nobody else has taken the lease; one that was removed by hand is."""
        found = read_lease(self._path)
        return found is None or found["id"] == self._document["id"]


def take(
    directory: Path, job: str, saved: int, reached: int, say: Callable[[str], None] = print
) -> Lease:
    """Take the lease of a directory, which is made if need be.

    saved: iteration of the newest checkpoint there; reached: steps that the run before had taken when it
    ended, as far as it is known. Raises BusyError, NoProgressError, and DataError where nothing can be
    written. Waits up to WATCH seconds for a holder on another machine to show that it lives.
    """
    path = directory / LEASE_FILE
    try:
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        before = read_lease(path)
        if before and _is_held(path, before, say):
            raise _busy(path, before)
        before = read_lease(path)  # it may have been given back while we looked
        document = _document(job, saved, reached, before)
        if before and document["starts"] > STARTS:
            path.unlink()
            raise _no_progress(before)
        _publish(path, document, before)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}",
            "the run could not say that it writes there, nor save",
            "a --save directory that may be written to",
        ) from None
    return Lease(directory, document, made)


@contextlib.contextmanager
def meeting_counted(directory: Path) -> Iterator[None]:
    """Count a start until its ranks have met, which is the end of the `with` block: before, no lease does. A
    start that ends there by a loss or a bug, or is killed, stays counted, unless another rank has reported
    what a person must mend. Raises NoProgressError.

    Nothing is made in a directory that is not there yet, or that another job has.
    """
    path = directory / MEETING_FILE
    if not directory.is_dir() or not is_free(directory):
        yield
        return
    starts = _starts(path)
    with contextlib.suppress(OSError):  # a place that cannot be written to is an error later
        if starts >= STARTS:
            path.unlink()
            raise _never_met(starts)
        replace(path, {"starts": starts + 1})
    try:
        yield
    except BaseException as error:
        to_mend = (read_exit(directory) or {}).get("status") == YuyuanError.status
        if to_mend or _is_by_person(error):
            _forget(path)
        raise
    _forget(path)


def _starts(path: Path) -> int:
    """Starts in a row whose ranks did not meet."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _is_by_person(error: BaseException) -> bool:
    """Whether a person must mend something, or has interrupted the run."""
    asked = isinstance(error, YuyuanError | KeyboardInterrupt)
    return asked and not isinstance(error, LostError)


def is_free(directory: str | Path) -> bool:
    """Whether no lease says that another job may be writing there."""
    with contextlib.suppress(OSError):
        found = read_lease(Path(directory) / LEASE_FILE)
        return found is None or found["ended"] or _is_dead_here(found)
    return False


def _publish(path: Path, document: dict, before: dict | None) -> None:
    """Give the lease its name, in place of `before`. Raises BusyError if another one was faster, and
    OSError."""
    if before or not publish_once(path, document):
        found = read_lease(path)
        if found is not None and found != before:  # None: it is no lease, or there are no links
            raise _busy(path, found)
        replace(path, document)
        time.sleep(SETTLED)
    found = read_lease(path)
    if found is None or found["id"] != document["id"]:
        raise _busy(path, found or document)


def _document(job: str, saved: int, reached: int, before: dict | None) -> dict:
    """What the lease says; `starts` counts those since the last one that came further."""
    furthest, starts = max(saved, reached), 1
    if before:
        came_further = saved > before["saved"] or reached > before["furthest"]
        starts = 1 if came_further else before["starts"] + 1
        furthest = max(furthest, before["furthest"])
    return {
        "id": secrets.token_hex(16),
        "job": job,
        "host": platform.node(),
        "pid": os.getpid(),
        "machine": machine(),
        "began": start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "saved": saved,
        "furthest": furthest,
        "starts": starts,
        "ended": False,
    }


def _is_held(path: Path, lease: dict, say: Callable[[str], None]) -> bool:
    """Whether the holder of a lease lives; on another machine it is watched for a change."""
    if lease["ended"] or _is_dead_here(lease):
        return False
    if _is_here(lease):
        return True
    say(f"{path.parent} is in use by {holder(lease)}: looking {WATCH:.0f} s for a sign of life")
    seen, deadline = _changed(path), time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH / 10))
        if _changed(path) != seen:
            return read_lease(path) is not None  # given back meanwhile, or touched
    return False


def _is_here(lease: dict) -> bool:
    """Whether the holder is, or was, a process of this machine."""
    return bool(lease["machine"]) and lease["machine"] == machine()


def _is_dead_here(lease: dict) -> bool:
    """Whether the holder was a process of this machine, and is no more."""
    return _is_here(lease) and not is_alive(lease["pid"], lease["began"])


def _changed(path: Path) -> int:
    """When a file was last touched, as its own file system has it; 0 for none. It is opened, because an
    NFS client asks the server then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def read_lease(path: Path) -> dict | None:
    """A lease; None where there is none, or only one that nobody has written as we do."""
    try:
        lease = json.loads(path.read_text(encoding="utf-8"))
        return lease if lease.keys() >= _FIELDS else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def holder(lease: dict) -> str:
    """`job 4711 on node7 (pid 812) since 2026-11-22 12:01:07`."""
    job = f"job {lease['job']}" if lease["job"] else "a run"
    return f"{job} on {lease['host']} (pid {lease['pid']}) since {lease['since']}"


def _busy(path: Path, lease: dict) -> BusyError:
    return BusyError(
        f"{path.parent} is in use by {holder(lease)}",
        "two jobs that save to one directory would destroy each other's checkpoints",
        "wait for it, cancel it, or another --save",
    )


def _no_progress(before: dict) -> NoProgressError:
    return NoProgressError(
        f"{before['starts']} starts in a row came no further than step {before['furthest']}",
        "what ends the run ends it every time; more starts would only use up the allocation",
        "mend what the output of the last of them names; the next start counts anew",
    )


def _never_met(starts: int) -> NoProgressError:
    return NoProgressError(
        f"{starts} starts in a row ended before their ranks had met",
        "what keeps a rank away does so every time; more starts would only use up the allocation",
        "mend what the output of the last of them names; the next start counts anew",
    )


def _end_at_once(path: Path, found: dict) -> None:
    """End this process without another word to the disk: it is another job's now."""
    print(f"error: {_busy(path, found)}", file=sys.stderr, flush=True)
    os._exit(2)
