"""SAVE/exit.json: how a run ended, for the scripts that start it; torchrun makes every status 1.

    {"class": "signal", "status": 75, "step": 812, "cause": "SIGTERM", "host": "node7", "rank": 0,
     "resume_from": "runs/pubmed/iter_0000812"}

class: done, signal, interval, duration, usage, data, space or unsafe. status: 0 done, 2 a person must change
something, 75 start the same command again. A run removes the file when it starts, so that one which
is killed, or ends by a bug of ours, leaves none.
"""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import find_checkpoint
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.config import CheckpointConfig
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import DataError, StoppedError, YuyuanError
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.stopping import Stop

EXIT_FILE = "exit.json"


def forget_exit(checkpoint: CheckpointConfig) -> None:
    """Remove the report of the run before."""
    if checkpoint.save and mesh_module.rank() == 0:
        with suppress(OSError):  # a place that cannot be written to is an error later
            (Path(checkpoint.save) / EXIT_FILE).unlink()


@contextmanager
def exit_reported(checkpoint: CheckpointConfig, state: TrainState) -> Iterator[None]:
    """Write the report when the steps of a run are taken, or end with a YuyuanError. Rank 0 writes
    it; an error that it does not see leaves none. Raises DataError where the report of a good end
    cannot be written; that of an error must not take the error's place."""
    here = {"cause": "every iteration is taken", "host": platform.node(), "rank": 0}
    try:
        yield
    except StoppedError as error:
        stop = error.stop
        of_stop = {"cause": stop.cause, "host": stop.host, "rank": stop.rank}
        with suppress(DataError):
            _write(checkpoint, state, {"class": stop.kind, "status": error.status}, of_stop)
        raise
    except YuyuanError as error:
        ending = {"class": error.kind, "status": error.status}
        with suppress(DataError):
            _write(checkpoint, state, ending, here | {"cause": error.what})
        raise
    _write(checkpoint, state, {"class": "done", "status": 0}, here)


def _write(checkpoint: CheckpointConfig, state: TrainState, ending: dict, cause: dict) -> None:
    if not checkpoint.save or not state.mesh.is_main:
        return
    resume_from = find_checkpoint(checkpoint.save)
    report = {
        **ending,
        "step": state.iteration,
        **cause,
        "resume_from": str(resume_from) if resume_from else None,
    }
    with AtomicFiles() as files:
        text = json.dumps(report, indent=1) + "\n"
        files.open(Path(checkpoint.save) / EXIT_FILE).write(text.encode())


def stopped(stop: Stop, checkpoint: CheckpointConfig, state: TrainState) -> StoppedError:
    """The error that ends a run which was asked to stop, the same on every rank; all of them call
    it. Rank 0 looks for the checkpoint, which it has published: another machine may see the tracker
    of the one before."""
    saved = Ranks().on_first(lambda: find_checkpoint(checkpoint.save)) if checkpoint.save else None
    return StoppedError(
        f"stopped after iteration {state.iteration}: {stop.cause} on rank {stop.rank} ({stop.host})",
        f"its state is saved in {saved}" if saved else "its state is lost: there is no --save",
        "the same command again, which goes on from there" if saved else "--save DIR",
        stop,
    )
