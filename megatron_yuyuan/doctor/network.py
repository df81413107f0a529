"""The process groups of the mesh: whether they add up, how fast, and which of them is slow."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_yuyuan.doctor.findings import ERROR, OK, WARNING, Finding
from megatron_yuyuan.errors import LostError
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.parallel.mesh import Mesh

MEASURED_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""What an all-reduce carries when its bandwidth is measured, by the device."""
REPEATS = 10
"""Of each measurement; the best counts."""
SLOW = 0.5
"""A group with less than this share of the bandwidth of the best on its axis is slow."""


@dataclass(frozen=True)
class Measured:
    """One group, as one of its ranks measured it."""

    ranks: tuple[int, ...]
    seconds: float
    """Of the smallest all-reduce."""
    bytes_per_second: float
    """Bus bandwidth of a large one: bytes * 2 (n - 1) / n / seconds, which a link must carry whatever the
    number of ranks n. Source: NVIDIA/nccl-tests, doc/PERFORMANCE.md."""
    adds_up: bool
    """The sum of the ranks' numbers was right."""


def groups(mesh: Mesh) -> dict[str, dist.ProcessGroup]:
    """Every group that this rank is in and that has two ranks at least, by its axis."""
    axes = ("pipeline", "replica", "shard", "tensor", "data")
    found = {axis: mesh.group(axis) for axis in axes if mesh.size(axis) > 1}
    if mesh.tied_group is not None:
        found["tied"] = mesh.tied_group  # first and last stage
    world = dist.group.WORLD
    return {"all": world} | found if world is not None and world.size() > 1 else {}


def examine_groups(mesh: Mesh) -> list[Finding]:
    """Measure all groups, those of an axis at the same time, as training uses them. A collective; the
    findings are the same on every rank. Raises LostError where a group carries nothing."""
    try:
        everyone = measure_all(mesh)
    except RuntimeError as error:  # what gloo and NCCL raise
        raise LostError(
            f"a collective failed: {str(error).splitlines()[0]}",
            "training would end in the same way",
            "the hosts' network: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, a firewall; NCCL_DEBUG=INFO says more",
        ) from error
    by_axis: dict[str, dict[tuple[int, ...], Measured]] = {}
    for of_rank in everyone:
        for axis, measured in of_rank.items():
            slowest = by_axis.setdefault(axis, {}).get(measured.ranks, measured)
            slower = min(slowest, measured, key=lambda m: (m.adds_up, m.bytes_per_second))
            by_axis[axis][measured.ranks] = slower
    if not by_axis:
        return [Finding("groups", OK, "one rank has nobody to talk to")]
    return [group_finding(axis, list(found.values())) for axis, found in by_axis.items()]


def measure_all(mesh: Mesh) -> list[dict[str, Measured]]:
    """{axis: what that rank measured} of every rank. A collective."""
    mine, own = {}, groups(mesh)
    for axis in dict.fromkeys(name for of_rank in all_gather_object(list(own)) for name in of_rank):
        dist.barrier()
        if axis in own:
            mine[axis] = measure(own[axis], mesh.device)
    return all_gather_object(mine)


def measure(group: dist.ProcessGroup, device: torch.device) -> Measured:
    """All-reduce among the ranks of a group, the smallest and a large one. A collective of the group."""
    size = dist.get_world_size(group)
    small = torch.full((1,), float(dist.get_rank(group) + 1), device=device)
    dist.all_reduce(small, group=group)
    adds_up = small.item() == size * (size + 1) / 2
    large = torch.zeros(MEASURED_BYTES[device.type] // 4, device=device)
    shortest = min(_timed(small, group) for _ in range(REPEATS))
    seconds = min(_timed(large, group) for _ in range(REPEATS))
    speed = large.nbytes * 2 * (size - 1) / size / seconds
    return Measured(tuple(dist.get_process_group_ranks(group)), shortest, speed, adds_up)


def _timed(tensor: torch.Tensor, group: dist.ProcessGroup) -> float:
    _wait_for(tensor.device)
    begun = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    _wait_for(tensor.device)
    return time.perf_counter() - begun


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def group_finding(axis: str, found: list[Measured]) -> Finding:
    """The line of an axis."""
    name = f"group {axis}"
    wrong = [measured for measured in found if not measured.adds_up]
    if wrong:
        said = f"an all-reduce of ranks {_ranks(wrong[0])} gave a wrong sum"
        why, remedy = "every gradient would be wrong", "the network and the drivers of their hosts"
        return Finding(name, ERROR, said, why, remedy)
    best = max(measured.bytes_per_second for measured in found)
    slowest = min(found, key=lambda measured: measured.bytes_per_second)
    latency = max(measured.seconds for measured in found)
    many = "one group" if len(found) == 1 else f"{len(found)} groups"
    said = f"{many} of {len(found[0].ranks)} ranks: {best / 1e9:.2f} GB/s"
    if len(found) > 1:
        said += f", the slowest {slowest.bytes_per_second / 1e9:.2f} (ranks {_ranks(slowest)})"
    said += f", latency {1000 * latency:.2f} ms"
    if slowest.bytes_per_second < SLOW * best:
        why = "every step waits for the slowest group"
        return Finding(name, WARNING, said, why, "the links between the hosts of these ranks")
    return Finding(name, OK, said)


def _ranks(measured: Measured) -> str:
    return " ".join(map(str, measured.ranks))
