"""How fast a job of two ranks reacts to a kill and to SIGTERM: docs/reliability.md holds the table that this prints.

    python tools/benchmark/recovery.py [--trials 5]

Seconds of the wall clock, seen from outside every 5 ms, under torchrun. A first step counts the start of Python,
the import of torch, the meeting of the ranks and the loading of the checkpoint; gone is every process of the job
but torchrun itself.
"""

import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.watch.exit_file import read_exit

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from commands import prepare
from faults.jobs import LIMIT
from faults.kills import STEPS, NotSurvived, Trials, iterations
from faults.launched import launched

AFTER = 8
"""Steps that are taken first: the newest checkpoint is of the fifth."""
TARGETS = {
    "kill -9 to a rank: it is named in exit.json": 1.0,
    "kill -9 to a rank, torchrun restarts: first new step": 5.0,
    "kill -9 to torchrun: its ranks are gone": 1.0,
    "SIGTERM to torchrun: state saved, ranks gone": 2.0,
}


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5, metavar="N", help="of a row")
    options = parser.parse_args(args)
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="recovery_") as folder:
        (prepared := Path(folder) / "prepared").mkdir()
        trials = Trials("data 2", STEPS, prepare(prepared), Path(folder))
        for number in range(options.trials):
            for what, seconds in reactions(trials, Path(folder) / "run", number % 2):
                taken.setdefault(what, []).append(seconds)
    print("| From | Median | Worst | Target |\n|---|---:|---:|---:|")
    for what, seconds in taken.items():
        cells = (statistics.median(seconds), max(seconds), TARGETS[what])
        print(f"| {what} | {cells[0]:.2f} s | {cells[1]:.2f} s | {cells[2]:.0f} s |")


def reactions(trials: Trials, save: Path, rank: int) -> Iterator[tuple[str, float]]:
    """(a row of the table, seconds) of one job after the other."""
    named, first_step, orphans_gone, saved = TARGETS
    with launched(trials, save, AFTER, "--max-restarts", "1") as job:
        os.kill(job.rank(rank), signal.SIGKILL)
        begun = time.monotonic()
        yield named, until(lambda: (read_exit(save) or {}).get("class") == "rank_lost", begun)
        yield first_step, until(lambda: went_back(save), begun)
    with launched(trials, save, AFTER) as job:
        job.launcher.kill()
        yield orphans_gone, until(lambda: not job.left(), time.monotonic())
    with launched(trials, save, AFTER) as job:
        ranks = [job.rank(number) for number in (0, 1)]
        job.launcher.terminate()
        yield saved, until(lambda: not any(map(is_alive, ranks)), time.monotonic())
        if (read_exit(save) or {}).get("class") != "signal":
            raise NotSurvived(f"the state was not saved: {read_exit(save)}")


def until(condition: Callable[[], bool], begun: float) -> float:
    """Seconds since `begun` when the condition holds. Raises NotSurvived after LIMIT seconds."""
    while not condition():
        if time.monotonic() - begun > LIMIT:
            raise NotSurvived(f"not within {LIMIT:.0f} s")
        time.sleep(0.005)
    return time.monotonic() - begun


def went_back(save: Path) -> bool:
    """Whether a step was taken again, which is the first of a restart."""
    taken = iterations(save)
    return any(later <= earlier for earlier, later in itertools.pairwise(taken))


def is_alive(pid: int) -> bool:
    """Linux: proc(5), field 3 of stat; a process that nobody has waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    run_command(main)
