"""SAVE/exit.json: how a run ended, for the scripts that start it; torchrun makes every status 1.

    {"class": "signal", "status": 75, "step": 812, "cause": "SIGTERM", "host": "node7", "rank": 0,
     "resume_from": "runs/pubmed/iter_0000812"}

class: done, signal, interval, duration, rank_lost, usage, memory, data, space, unsafe, machine, no_progress
or internal.
status: 0 done, 1 a bug of ours, 2 a person must change something, 75 start the same command again. Of a rank
that was lost, `rank`, `host`, `pid` and `signal` say which and how, and `why` the rest. A run removes the
file when its ranks meet; one that is refused before writes its own, with `refused` true and the `step` that
the run before had reached, unless another job has the directory.
One whose every process was killed leaves none.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.config import CheckpointConfig
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import DataError, MachineError, StoppedError, YuyuanError
from megatron_yuyuan.origin import goes_back
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.stopping import Stop
from megatron_yuyuan.watch.exit_file import EXIT_FILE, as_json, claim_exit
from megatron_yuyuan.watch.saved import find_checkpoint


def forget_exit(checkpoint: CheckpointConfig) -> None:
    """Remove the report of the run before, on rank 0."""
    if not checkpoint.save or mesh_module.rank() != 0:
        return
    with suppress(OSError):  # a place that cannot be written to is an error later
        (Path(checkpoint.save) / EXIT_FILE).unlink()


@contextmanager
def exit_reported(checkpoint: CheckpointConfig, state: TrainState) -> Iterator[None]:
    """Write the report when the steps of a run are taken, or end with a YuyuanError: rank 0 does, and
    of an error that only others see, one of them. Raises DataError where the report of a good end
    cannot be written; that of an error must not take the error's place."""
    here = {"cause": "every iteration is taken", "host": platform.node(), "rank": Ranks().rank}
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
        here |= error.culprit if isinstance(error, MachineError) else {}
        with suppress(DataError):
            _write(checkpoint, state, ending, here | {"cause": error.what, "why": error.why})
        raise
    _write(checkpoint, state, {"class": "done", "status": 0}, here)


def _write(checkpoint: CheckpointConfig, state: TrainState, ending: dict, cause: dict) -> None:
    if not checkpoint.save:
        return
    resume_from = find_checkpoint(checkpoint.save)
    report = {
        **ending,
        "step": state.iteration,
        **cause,
        "resume_from": str(resume_from) if resume_from else None,
    }
    if not state.mesh.is_main:
        if ending["status"] == 2:  # what ends well, or is stopped, rank 0 sees too
            claim_exit(checkpoint.save, report)
        return
    with AtomicFiles() as files:
        files.open(Path(checkpoint.save) / EXIT_FILE).write(as_json(report))


def stopped(stop: Stop, checkpoint: CheckpointConfig, state: TrainState) -> StoppedError:
    """The error that ends a run which was asked to stop, the same on every rank; all of them call
    it. Rank 0 looks for the checkpoint, which it has published: another machine may see the tracker
    of the one before."""
    save = checkpoint.save
    saved = Ranks().on_first(lambda: find_checkpoint(save)) if save else None
    remedy = "the same command again, which goes on from there" if saved else "--save DIR"
    if saved and goes_back(checkpoint):
        remedy = "the same command without --load and --ckpt-step, which go back to where it began"
    return StoppedError(
        f"stopped after iteration {state.iteration}: {stop.cause} on rank {stop.rank} ({stop.host})",
        f"its state is saved in {saved}" if saved else "its state is lost: there is no --save",
        remedy,
        stop,
    )
