"""What the run before left in the save directory: whether it still runs, and how it ended."""

from pathlib import Path

from megatron_yuyuan.doctor.findings import OK, WARNING, Finding
from megatron_yuyuan.watch.exit_file import read_exit
from megatron_yuyuan.watch.lease import LEASE_FILE, holder, read_lease


def examine_last_run(directory: Path) -> list[Finding]:
    """A line for a lease that is not given back, or else for the end that exit.json tells of; none where
    there is neither."""
    lease, ending = read_lease(directory / LEASE_FILE), read_exit(directory)
    if lease and not lease["ended"]:
        said = f"{directory} is in use by {holder(lease)}"
        why = "while it lives, another job is refused there"
        remedy = "wait for it or cancel it; a dead holder's place is taken over"
        return [Finding("last run", WARNING, said, why, remedy)]
    if not ending:
        return []
    how = f"{'a start was refused, ' if ending.get('refused') else ''}{ending.get('class')}"
    said = f"{how} at step {ending.get('step')}: {ending.get('cause')}"
    if ending.get("status") in (1, 2):
        why, remedy = "the next run would end in the same way", "mend what it names first"
        return [Finding("last run", WARNING, said, why, remedy)]
    return [Finding("last run", OK, said)]
