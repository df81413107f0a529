"""Everything that a rank exchanges with others, counted while real code runs.

Bytes are those of the whole tensors: gathered, not yet scattered; docs/parallelism.md, "Collectives of a
step", has the formulas.
"""

from collections import Counter

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_yuyuan.parallel.mesh import Mesh

KINDS = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}
"""Operator of c10d, or of the functional collectives of DTensor -> what it is."""
WAITS = {"wait_tensor", "_wrap_tensor_autograd"}
VOTES = torch.int32
"""What torch's stages agree by, before the first step alone, that they know their shapes. Nothing of a step is."""
Exchanged = dict[tuple[str, str], tuple[int, int]]
"""(axis, kind) -> (how often, bytes)."""


class Traffic(TorchDispatchMode):
    """Counts what is exchanged inside, by process group."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        """(name of the process group, kind) -> how often."""
        self.bytes: Counter[tuple[str, str]] = Counter()
        """The same -> bytes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if function.namespace in ("c10d", "_c10d_functional") and name not in WAITS:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.nbytes)
            what = (_group_of(args), KINDS[name])
            if largest.dtype != VOTES:
                self.calls[what] += 1
                self.bytes[what] += largest.nbytes
        return function(*args, **(kwargs or {}))

    def over(self, mesh: Mesh) -> Exchanged:
        """What went over more than one rank. A group that no axis has keeps its name."""
        axes = axes_of(mesh)
        return {
            (axes.get(name, name), kind): (self.calls[name, kind], self.bytes[name, kind])
            for name, kind in self.calls
            if axes.get(name, name)
        }


def axes_of(mesh: Mesh) -> dict[str, str]:
    """Name of a process group of this rank -> its axis, `tied` for the two stages that hold the embedding,
    `world` for all ranks; the first of them where one group is several, empty where it is one rank."""
    groups: dict[str, dist.ProcessGroup | None] = {
        **{axis: mesh.group(axis) for axis in ("tensor", "shard", "replica", "data", "pipeline")},
        "tied": mesh.tied_group,
        "world": dist.group.WORLD,
    }
    axes: dict[str, str] = {}
    for axis, group in groups.items():
        if group is not None:
            axes.setdefault(group.group_name, axis if group.size() > 1 else "")
    return axes


def _group_of(args) -> str:
    """The name of the process group of an operator: c10d's first argument that is no tensor,
    the last of a functional collective."""
    if isinstance(args[-1], str):
        return args[-1]
    return dist.ProcessGroup.unbox(
        next(a for a in args if isinstance(a, torch.ScriptObject))
    ).group_name
