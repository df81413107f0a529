"""One attempt of a job: its ranks meet, the directory is theirs alone, and whoever is lost is named."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import find_checkpoint, iteration_of
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.space import require_place
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import NoProgressError
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.watch import lease
from megatron_yuyuan.watch.exit_file import claim_exit
from megatron_yuyuan.watch.heartbeat import Rank, Watched
from megatron_yuyuan.watch.lost import losses_named
from megatron_yuyuan.watch.verdict import report_of


@contextmanager
def joined(
    config: Config, stopping: Stopping, watched: Watched, reached: int, alike: Mapping[str, str]
) -> Iterator[Mesh]:
    """The mesh, while the ranks are together and no other job writes to SAVE.

    reached: steps of the run before. alike: what must be the same on every rank. Raises LostError for a
    rank that does not come, or is lost in the `with` block; and, on every rank, ConfigErrors, and
    BusyError, NoProgressError and DataError: see watch/lease.py.
    """
    save = config.checkpoint.save
    with losses_named(watched):
        try:
            mesh = mesh_module.start(config.parallel, stopping.asked, alike)
            with _held(save, watched.rank, reached):
                watched.heartbeat.beat("load", 0)
                fault_point("start.joined")
                yield mesh
        finally:
            mesh_module.stop()


@contextmanager
def _held(save: str, rank: Rank, reached: int) -> Iterator[None]:
    """Hold the lease of SAVE on rank 0; every rank waits until it is taken, or raises why not."""
    held: list[AbstractContextManager] = []

    def take() -> None:
        require_place(Path(save), needed=0)
        newest = find_checkpoint(save)
        saved = iteration_of(newest) if newest else 0
        try:
            held.append(lease.take(Path(save), rank.job, saved, reached))
        except NoProgressError as error:
            claim_exit(save, report_of(error, save, reached, asdict(rank)))
            raise

    if save:
        Ranks().on_first(take)
    with held[0] if held else nullcontext():
        yield
