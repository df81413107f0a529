"""The one place that knows the ranks: a mesh of three axes, pipeline x data x tensor.

The data axis is itself two, replica x shard: what a data rank holds at rest is divided over the shard axis
and repeated over the replica axis. Everyone else receives a `Mesh` as an argument. Neighbouring ranks
share a tensor axis, because it talks most, then a shard axis; the pipeline axis is outermost, because
it talks least.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from megatron_yuyuan import launcher
from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.errors import ConfigError, LostError
from megatron_yuyuan.parallel.alike import require_alike
from megatron_yuyuan.parallel.meeting import Meeting

set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
"""Public from torch 2.15 on, where the other warns."""


def world_size() -> int:
    """Processes of this job."""
    return dist.get_world_size() if dist.is_initialized() else launcher.world_size()


def rank() -> int:
    """This process's number among them, also before they have met."""
    return dist.get_rank() if dist.is_initialized() else launcher.rank()


def choose_device(parallel: ParallelConfig) -> torch.device:
    """The device of this process. Raises ConfigError: CUDA is asked for and absent, a rank has no
    device of its own, or the backend does not fit the device."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parallel.device == "cuda" and not found:
        raise ConfigError(
            "device=cuda, but this torch sees no CUDA device",
            f"torch {torch.__version__} finds none",
            "--device cpu, or a torch built for CUDA",
        )
    if parallel.device == "cpu" or not found:
        if parallel.distributed_backend == "nccl":
            why = "nccl carries CUDA tensors only"
            raise ConfigError("distributed_backend=nccl on the CPU", why, "gloo, or leave it out")
        return torch.device("cpu")
    rank = launcher.local_rank()
    if found == 1 and not launcher.by_torchrun():
        rank = 0  # srun can show each of its tasks that task's GPU alone; NCCL refuses one for two
    if rank >= found:
        raise ConfigError(
            f"local rank {rank} has no CUDA device: this machine has {found}",
            "every process computes on a device of its own",
            f"--nproc-per-node {found}, or --device cpu",
        )
    return torch.device("cuda", rank)


@dataclass(frozen=True)
class Mesh:
    """The ranks of a job, as one rank sees them."""

    axes: DeviceMesh
    """Named axes: pipeline, replica, shard, tensor."""
    data: DeviceMesh
    """The data axis: replica and shard in one."""
    device: torch.device
    tied_group: dist.ProcessGroup | None
    """First and last stage at this rank's place: the two copies of the embedding. None where
    both are on one rank."""

    def size(self, axis: str) -> int:
        return self._one(axis).size()

    def rank(self, axis: str) -> int:
        return self._one(axis).get_local_rank()

    def group(self, axis: str) -> dist.ProcessGroup:
        return self._one(axis).get_group()

    def _one(self, axis: str) -> DeviceMesh:
        return self.data if axis == "data" else self.axes[axis]

    @property
    def is_main(self) -> bool:
        """True on global rank 0, which speaks and writes for all."""
        return dist.get_rank() == 0

    def all_agree(self, yes: bool) -> bool:
        """Whether every rank of the job says yes. All must ask."""
        votes = torch.tensor(int(yes), device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return bool(votes)

    def describe(self) -> str:
        """`pipeline 2 x data 2 x tensor 2 on cpu over gloo`; `data 8 (replica 2 x shard 4)` where the data
        axis is neither only repeated nor only divided."""
        sizes = {axis: f"{axis} {self.size(axis)}" for axis in ("pipeline", "data", "tensor")}
        if 1 < self.size("shard") < self.size("data"):
            sizes["data"] += f" (replica {self.size('replica')} x shard {self.size('shard')})"
        return f"{' x '.join(sizes.values())} on {self.device.type} over {dist.get_backend()}"


def join(parallel: ParallelConfig, gives_up: Callable[[], str] = str) -> torch.device:
    """Join the process group (alone under plain python) if it is not joined, and choose the device.

    Rank and meeting place are those of the launcher. Under bare srun MASTER_ADDR and MASTER_PORT must
    be set. gives_up: see `Meeting`. Raises LostError where a rank does not come, ConfigError.
    """
    device = choose_device(parallel)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(parallel, device, gives_up)
    return device


def start(parallel: ParallelConfig, alike: Mapping[str, str] | None = None) -> Mesh:
    """Lay the mesh over the process group, which is joined if need be: see `join`.

    Validate the configuration first: sizes must fit. alike: what must be the same on every rank. Raises
    ConfigErrors where they differ.
    """
    device = join(parallel)
    if alike is not None:  # before a mesh, which could not be laid
        require_alike(alike)
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    data = parallel.data_ranks(dist.get_world_size())
    whole = parallel.data_parallel_sharding_strategy == "no_shard"
    replicas = data if whole else parallel.num_distributed_optimizer_instances
    shape = (pipeline, replicas, data // replicas, tensor)
    names = ("pipeline", "replica", "shard", "tensor")
    axes = init_device_mesh(device.type, shape, mesh_dim_names=names)
    if replicas in (1, data):  # one of the two is the data axis: a group of NCCL's costs memory
        data_axis = axes["shard" if replicas == 1 else "replica"]
    else:
        data_axis = axes["replica", "shard"]._flatten("data")  # torch 2.13 has no public one
    returns = parallel.pipeline_schedule == "ZBVZeroBubble"
    mesh = Mesh(axes, data_axis, device, None if returns else _tied_group(axes.mesh))
    if dist.get_backend() != "fake":
        _set_timeouts(mesh, timedelta(minutes=parallel.distributed_timeout_minutes))
    own = [device.index] if device.type == "cuda" else None
    dist.barrier(device_ids=own)  # nobody writes before everybody has read what the run starts from
    return mesh


def _set_timeouts(mesh: Mesh, timeout: timedelta) -> None:
    """Set the timeout of every subgroup: torch gives subgroups the backend's default, not that of the group of
    all ranks."""
    groups = [*mesh.axes.get_all_groups(), mesh.data.get_group(), mesh.tied_group]
    for group in groups:
        if group is not None:
            set_timeout(timeout, group)


def _join(parallel: ParallelConfig, device: torch.device, gives_up: Callable[[], str]) -> None:
    """Make the process group that the environment describes."""
    backend = parallel.distributed_backend
    backend = {"cuda": "nccl", "cpu": "gloo"}[device.type] if backend == "auto" else backend
    timeout, ranks = timedelta(minutes=parallel.distributed_timeout_minutes), world_size()
    if ranks == 1:
        store: dist.Store = dist.HashStore()
    else:
        store = _open_store(ranks, timeout)
        attempt = Meeting(store, rank(), ranks, timeout.total_seconds(), gives_up).agree()
        store = dist.PrefixStore(attempt, store)
    dist.init_process_group(backend, store=store, rank=rank(), world_size=ranks, timeout=timeout)


def _open_store(ranks: int, timeout: timedelta) -> dist.Store:
    """The store that torchrun keeps for its ranks, or else one that rank 0 keeps. Raises ConfigError where
    nothing says where it is, LostError where nobody answers there."""
    host, port = launcher.store_address()
    missing = [n for n, v in (("MASTER_ADDR", host), ("MASTER_PORT", port)) if not v]
    if missing:
        raise ConfigError(
            f"{ranks} processes, but {' and '.join(missing)} not set",
            "srun starts processes and does not say where they meet",
            "srun torchrun, as examples/*.slurm do, or export both",
        )
    keeps = launcher.keeps_store()
    try:
        return dist.TCPStore(host, int(port), None, keeps, timeout, wait_for_workers=False)
    except dist.DistError as error:
        raise LostError(
            f"rank {rank()} of {ranks} found no store at {host}:{port}",
            str(error).splitlines()[0],
            "a first host that runs and a port that is free; then the same command again",
        ) from None


def stop() -> None:
    """Leave the process group. NCCL's waits for the others: all call it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def abandon() -> None:
    """Leave the process group because of an error, which the others hear where gloo's connections close.
    A group of NCCL's is not destroyed: that would wait for ranks which may be waiting in a collective."""
    if dist.is_initialized() and dist.get_backend() != "nccl":
        dist.destroy_process_group()


def _tied_group(ranks: torch.Tensor) -> dist.ProcessGroup | None:
    """Every rank must take part in making every group, whether it is in it or not."""
    mine = None
    if ranks.shape[0] > 1:
        for first, last in zip(
            ranks[0].flatten().tolist(), ranks[-1].flatten().tolist(), strict=True
        ):
            group = dist.new_group([first, last])
            if dist.get_rank() in (first, last):
                mine = group
    return mine
