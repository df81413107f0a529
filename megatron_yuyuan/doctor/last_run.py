"""What the run before left in the save directory: whether it still runs, and how it ended."""

import json
from pathlib import Path

from megatron_yuyuan.doctor.findings import OK, WARNING, Finding
from megatron_yuyuan.watch.exit_file import read_exit
from megatron_yuyuan.watch.lease import LEASE_FILE


def examine_last_run(directory: Path) -> list[Finding]:
    """A line for a lease that is not given back, or else for the end that exit.json tells of; none where
    there is neither."""
    lease, ending = _lease(directory), read_exit(directory)
    if lease and not lease.get("ended"):
        job, host, since = (lease.get(name, "?") for name in ("job", "host", "since"))
        said = f"{directory} is held by job {job} on {host} since {since}"
        why = "while it lives, another job is refused there"
        remedy = "wait for it or cancel it; a dead holder's place is taken over"
        return [Finding("last run", WARNING, said, why, remedy)]
    if not ending:
        return []
    said = f"{ending.get('class')} at step {ending.get('step')}: {ending.get('cause')}"
    if ending.get("status") in (1, 2):
        why, remedy = "the next run would end in the same way", "mend what it names first"
        return [Finding("last run", WARNING, said, why, remedy)]
    return [Finding("last run", OK, said)]


def _lease(directory: Path) -> dict:
    """What the lease says; empty where there is none that can be read."""
    try:
        found = json.loads((directory / LEASE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
