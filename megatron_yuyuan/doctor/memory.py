"""Whether the fullest rank would fit into its device, by the planner's prediction."""

import torch
import torch.distributed as dist

from megatron_yuyuan.config import Config
from megatron_yuyuan.doctor.findings import OK, WARNING, Finding
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.planner.clusters import RESERVED_GIB
from megatron_yuyuan.planner.memory import predict_memory

GIB = 2**30


def examine_memory(config: Config, mesh: Mesh) -> Finding:
    """A collective; the finding is the same on every rank."""
    ranks, held = dist.get_world_size(), 0
    needed = predict_memory(config, ranks, mesh.rank("pipeline")).total
    if mesh.device.type == "cuda":
        held = torch.cuda.get_device_properties(mesh.device).total_memory
    return memory_finding(all_gather_object((needed, held)))


def memory_finding(by_rank: list[tuple[int, int]]) -> Finding:
    """Of (bytes predicted, bytes of the device, 0 for the CPU) by rank."""
    rank = max(range(len(by_rank)), key=lambda r: by_rank[r][0] / max(1, by_rank[r][1]))
    needed, held = (size / GIB for size in by_rank[rank])
    said = f"{needed:,.2f} GiB predicted for a step on rank {rank}, the fullest"
    if not held:
        return Finding("memory", OK, said)
    said += f", whose GPU has {held:,.0f}"
    if needed > held - RESERVED_GIB:
        why = f"it would run out; {RESERVED_GIB:g} GiB are assumed for the driver and the libraries"
        return Finding(
            "memory", WARNING, said, why, "--dry-run, which says what takes it and what to change"
        )
    return Finding("memory", OK, said)
