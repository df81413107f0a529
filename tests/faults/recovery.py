"""How a job under torchrun reacts to a kill and to SIGTERM, by the clock, seen from outside every 5 ms."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.jobs import LIMIT
from faults.kills import RANKS, NotSurvived, Trials, iterations
from faults.launched import launched

from megatron_yuyuan.watch.exit_file import read_exit

AFTER = 8
"""Steps that are taken first: the newest checkpoint is of the fifth."""
NAMED = "kill -9 to a rank: it is named in exit.json"
FIRST_STEP = "kill -9 to a rank, torchrun restarts: first new step"
ORPHANS_GONE = "kill -9 to torchrun: its ranks are gone"
SAVED = "SIGTERM to torchrun: state saved, ranks gone"


def reactions(trials: Trials, save: Path, rank: int) -> Iterator[tuple[str, float]]:
    """(what happened, seconds after its cause), in the order of events, of one job after the other. Raises
    NotSurvived."""
    with launched(trials, save, AFTER, "--max-restarts", "1") as job:
        os.kill(job.rank(rank), signal.SIGKILL)
        begun = time.monotonic()
        yield NAMED, until(lambda: (read_exit(save) or {}).get("class") == "rank_lost", begun)
        yield FIRST_STEP, until(lambda: went_back(save), begun)
    with launched(trials, save, AFTER) as job:
        job.launcher.kill()
        yield ORPHANS_GONE, until(lambda: not job.left(), time.monotonic())
    with launched(trials, save, AFTER) as job:
        ranks = [job.rank(number) for number in range(RANKS)]
        job.launcher.terminate()
        yield SAVED, until(lambda: not any(map(is_alive, ranks)), time.monotonic())
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
    return any(later <= earlier for earlier, later in itertools.pairwise(iterations(save)))


def is_alive(pid: int) -> bool:
    """Linux: proc(5), field 3 of stat; a process that nobody has waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
