"""What the watch over a run costs: a beat of a rank, and the processor time of its witness.

    python tools/benchmark/heartbeat.py

No process group and no torch: a beat is three numbers in shared memory, at most three a step. The
witness writes one small file every five seconds; here every tenth of a second, to see it at all.
"""

import os
import resource
import tempfile
import time
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.watch import witness
from megatron_yuyuan.watch.heartbeat import Heartbeat, Rank, Watched
from megatron_yuyuan.watch.stacks import Stacks
from megatron_yuyuan.watch.witness import Witness, unwatched

BEATS, INTERVAL, SECONDS = 1_000_000, 0.1, 10.0


def seconds_of_a_beat() -> float:
    """One call of Heartbeat.beat."""
    heartbeat = Heartbeat()
    begun = time.perf_counter()
    for iteration in range(BEATS):
        heartbeat.beat("step", iteration)
    return (time.perf_counter() - begun) / BEATS


def seconds_of_a_look() -> float:
    """Processor time of the witness for one look at its rank, with the file that it writes."""
    with tempfile.TemporaryDirectory() as directory:
        own, stacks = unwatched(directory), Stacks()
        own.heartbeat.beat("step", 0)
        witness.BEAT = INTERVAL
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        watched = os.fork()
        if watched == 0:
            time.sleep(SECONDS)
            os._exit(0)
        observer = os.fork()
        if observer == 0:
            rank = Rank(0, 1, "", pid=watched)
            Witness(Watched(rank, directory, own.heartbeat), 1e6, stacks, os.getppid()).stay()
            os._exit(0)
        for process in (watched, observer):
            os.waitpid(process, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert not list(Path(directory).iterdir())
    return (
        (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * INTERVAL / SECONDS
    )


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    print(f"a beat: {1e6 * seconds_of_a_beat():.2f} microseconds")
    print(f"a look of the witness: {1e6 * seconds_of_a_look():.0f} microseconds of processor time")


if __name__ == "__main__":
    run_command(main)
