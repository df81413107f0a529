"""How fast a job of two ranks reacts to a kill and to SIGTERM: docs/reliability.md holds the table that this prints.

    python tools/benchmark/recovery.py [--trials 5]

Seconds of the wall clock under torchrun. A first step counts the start of Python, the import of torch, the
meeting of the ranks and the loading of the checkpoint.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from commands import prepare
from faults.kills import RANKS, STEPS, Trials
from faults.recovery import FIRST_STEP, NAMED, ORPHANS_GONE, SAVED, reactions

TARGETS = {NAMED: 1.0, FIRST_STEP: 5.0, ORPHANS_GONE: 1.0, SAVED: 2.0}
"""Seconds."""


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5, metavar="N", help="of a row")
    options = parser.parse_args(args)
    taken: dict[str, list[float]] = {what: [] for what in TARGETS}
    with tempfile.TemporaryDirectory(prefix="recovery_") as folder:
        (prepared := Path(folder) / "prepared").mkdir()
        trials = Trials("data 2", STEPS, prepare(prepared), Path(folder))
        for number in range(options.trials):
            for what, seconds in reactions(trials, Path(folder) / "run", number % RANKS):
                taken[what].append(seconds)
    print("| From | Median | Worst | Target |\n|---|---:|---:|---:|")
    for what, seconds in taken.items():
        cells = (statistics.median(seconds), max(seconds), TARGETS[what])
        print(f"| {what} | {cells[0]:.2f} s | {cells[1]:.2f} s | {cells[2]:.0f} s |")


if __name__ == "__main__":
    run_command(main)
