"""One attempt of a job: its ranks meet, the directory is theirs alone, and whoever is lost is named."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.space import require_place
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import NoProgressError, StoppedError, YuyuanError
from megatron_yuyuan.exit_report import forget_exit
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.watch import lease
from megatron_yuyuan.watch.exit_file import claim_exit, forget_before, read_exit
from megatron_yuyuan.watch.heartbeat import Watched
from megatron_yuyuan.watch.lost import losses_named
from megatron_yuyuan.watch.saved import find_checkpoint, iteration_of
from megatron_yuyuan.watch.verdict import report_of


@contextmanager
def refusal_reported(watched: Watched) -> Iterator[None]:
    """Write SAVE/exit.json for what a person must change, found before the ranks meet: on whichever rank,
    since the others are stopped while they wait, and a script would start them again. Nothing where
    another job may be writing."""
    try:
        yield
    except YuyuanError as error:
        save = watched.save
        if save and lease.is_free(save):
            report = report_of(error, save, _reached(save), asdict(watched.rank))
            claim_exit(save, report | {"refused": True})
        raise


def _reached(save: str) -> int:
    """Steps that the run before had taken, by its report; 0 where unknown."""
    return (read_exit(save) or {}).get("step") or 0


@contextmanager
def mesh_of_job(
    config: Config, stopping: Stopping, watched: Watched, alike: Mapping[str, str]
) -> Iterator[Mesh]:
    """The mesh, while the ranks are together and no other job writes to SAVE.

    alike: what must be the same on every rank. Raises LostError for a rank that does not come, or is lost
    in the `with` block; NoProgressError on rank 0 if none came in the starts before; and, on every rank,
    ConfigErrors, and BusyError, NoProgressError and DataError: see watch/lease.py.
    """
    save, leads = config.checkpoint.save, watched.rank.rank == 0
    reached = _reached(save) if save else 0
    with losses_named(watched):
        try:
            if save and leads and lease.is_free(save):
                forget_before(save)
            with lease.meeting_counted(Path(save)) if save and leads else nullcontext():
                mesh_module.join(config.parallel, stopping.asked)
            with _held(config, watched, reached):  # first: another job's checkpoints differ by rank
                mesh = mesh_module.start(config.parallel, alike)
                fault_point("start.joined")
                yield mesh
        except StoppedError:  # on every rank, after the same step
            mesh_module.stop()
            raise
        except BaseException:
            mesh_module.abandon()
            raise
        mesh_module.stop()


@contextmanager
def _held(config: Config, watched: Watched, reached: int) -> Iterator[None]:
    """Hold the lease of SAVE on rank 0; every rank waits until it is taken, or raises why not, and may report
    there from then on. Whatever report is there now is that of an earlier start: of this one every rank has
    come."""
    save, rank = config.checkpoint.save, watched.rank
    held: list[AbstractContextManager] = []

    def take() -> str:
        if not save:
            return save
        require_place(Path(save), needed=0)
        newest = find_checkpoint(save)
        saved = iteration_of(newest) if newest else 0
        try:
            held.append(lease.take(Path(save), rank.job, saved, reached))
        except NoProgressError as error:
            claim_exit(save, report_of(error, save, reached, asdict(rank)))
            raise
        forget_exit(config.checkpoint)
        return save

    if Ranks().on_first(take) == save:  # whether all have the same --save is compared next
        watched.heartbeat.beat("load", 0)
    with held[0] if held else nullcontext():
        yield
