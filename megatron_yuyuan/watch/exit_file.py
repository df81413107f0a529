"""SAVE/exit.json without torch: how a run ended, written by whoever knows it first.

exit_report.py says what stands in it. A good end replaces what is there; a bad one is claimed: of all
processes that notice it one writes the file, and the others can read who was lost. What an earlier start
has left is in nobody's way: a claim takes its place.
"""

import json
import os
import platform
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_yuyuan import launcher
from megatron_yuyuan.watch.processes import process_age

EXIT_FILE = "exit.json"
APART = 10.0
"""Seconds by which a launcher may start the ranks of one machine later than those of another."""


def read_exit(save: str | Path) -> dict | None:
    """The report; None where there is none that can be read."""
    try:
        report = json.loads((Path(save) / EXIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def ended_before(save: str) -> str:
    """The cause by which the start before this one ended; empty where nothing says it, or where that start was
    refused before its ranks met."""
    report = (read_exit(save) if save else None) or {}
    return "" if report.get("refused") else str(report.get("cause", ""))


def as_json(document: dict) -> bytes:
    """The text of a file for people and programs."""
    return f"{json.dumps(document, indent=1)}\n".encode()


def claim_exit(save: str | Path, report: dict) -> bool:
    """Write the report unless this start has one, or there is no SAVE directory yet; whether it was
    written. One of several claimants succeeds, on NFS too: a link appears once."""
    target = Path(save) / EXIT_FILE
    if not target.parent.is_dir():
        return False
    forget_before(save)
    return publish_once(target, report | {"job": launcher.job(), "by": platform.node()})


def forget_before(save: str | Path) -> None:
    """Remove the report of an earlier start: of another job, or older than this process. One that a rank
    of this start has claimed stays, also where its machine was faster than this one."""
    target = Path(save) / EXIT_FILE
    with suppress(OSError):  # none is there, or the run says what is wrong with its directory
        found, report = target.stat(), read_exit(save) or {}
        elsewhere = report.get("by", platform.node()) != platform.node()
        of_another = report.get("job", launcher.job()) != launcher.job()
        with _written_beside(target, {}) as now:  # both times are the file system's
            older_by = now.stat().st_mtime - found.st_mtime - process_age()
        if stat.S_ISREG(found.st_mode) and (of_another or older_by > (APART if elsewhere else 0)):
            _remove(target, found)


def _remove(target: Path, found: os.stat_result) -> None:
    """Remove a file if it still is the one that was looked at; what has its name since gets it back."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    os.rename(target, aside)
    taken = aside.stat()
    if (taken.st_ino, taken.st_mtime_ns) != (found.st_ino, found.st_mtime_ns):
        with suppress(OSError):  # the name is taken again
            os.link(aside, target)
    aside.unlink()


def publish_once(target: Path, document: dict) -> bool:
    """Give a JSON file its name, whole, unless the name is taken; whether it got it. OSErrors are a
    no: what could be said of them, the caller says of the state of the run."""
    try:
        with _written_beside(target, document) as temporary:
            with suppress(OSError):  # NFS may report the failure of a link that it has made
                os.link(temporary, target)
            return temporary.stat().st_nlink >= 2
    except OSError:
        return False


def replace(target: Path, document: dict) -> None:
    """Give a JSON file its name, in place of what has it. Raises OSError."""
    with _written_beside(target, document) as temporary:
        os.replace(temporary, target)


@contextmanager
def _written_beside(target: Path, document: dict) -> Iterator[Path]:
    """A JSON file under a name of its own, gone at the end: a full disk is not filled with halves."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(as_json(document))
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
