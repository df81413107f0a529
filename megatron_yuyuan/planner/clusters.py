"""GPUs and clusters of them: what their vendor publishes.

What of these peaks a training step reaches stands in `rates.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One GPU of a data sheet, in its SXM form: NVLink to every other GPU of its node."""

    architecture: str
    """Key of `rates.RATES`."""
    peak_tflops: float
    """Dense products in bfloat16 or float16, TFLOP/s."""
    memory_gib: float
    """What CUDA offers to programs; a little less than the name says."""
    memory_gb_per_second: float
    """Peak of the memory, GB/s."""
    link_gb_per_second: float
    """NVLink out of one GPU, in one direction, GB/s. Data sheets give the sum of both directions."""
    node_gb_per_second: float
    """Network out of a node of 8 of them, in one direction, GB/s, in the vendor's own machine."""
    watts: float
    """Thermal design power."""
    source: str


GPUS = {
    "a100-40g": GPU(
        *("ampere", 312.0, 39.4, 1555.0, 300.0, 200.0, 400.0),
        "NVIDIA A100 data sheet (2020); DGX A100 data sheet: 8 x 200 Gb/s",
    ),
    "a100-80g": GPU(
        *("ampere", 312.0, 79.1, 2039.0, 300.0, 200.0, 400.0),
        "NVIDIA A100 80GB data sheet (2021); DGX A100 data sheet: 8 x 200 Gb/s",
    ),
    "h100-80g": GPU(
        *("hopper", 989.4, 79.1, 3350.0, 450.0, 400.0, 700.0),
        "NVIDIA H100 data sheet (2023), SXM5; DGX H100 data sheet: 8 x 400 Gb/s",
    ),
    "h200-141g": GPU(
        *("hopper", 989.4, 139.8, 4800.0, 450.0, 400.0, 700.0),
        "NVIDIA H200 data sheet (2024), SXM5; DGX H200 data sheet: 8 x 400 Gb/s",
    ),
}
"""Name on the command line -> GPU. No V100: it has no bfloat16, and no published row to hold the
prediction to."""
RESERVED_GIB = 4.0
"""Kept free on each GPU by default, beside what `predict_memory` counts: CUDA's context, NCCL's buffers, cuBLAS's
workspaces, and what the allocator cannot use between tensors. Assumed."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    gpu: GPU
    gpus: int
    gpus_per_node: int = 8
    inter_node_gb_per_second: float = 0.0
    """Network out of a node, in one direction, GB/s. 0: that of the vendor's own machine."""

    @property
    def network(self) -> float:
        """Bytes per second out of a node."""
        return 1e9 * (self.inter_node_gb_per_second or self.gpu.node_gb_per_second)

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    def holds(self, size: int, stride: int) -> bool:
        """Whether every group of `size` ranks, `stride` apart, lies within a node."""
        return self.nodes == 1 or self.gpus_per_node % (size * stride) == 0

    def bandwidth(self, size: int, stride: int) -> float:
        """Bytes per second at which each rank of a group can send, all such groups at once.

        The group has `size` ranks, `stride` apart; ranks of a node are neighbours. Inside a node each
        has its own link. A ring that leaves the node does so once on each, and `stride` groups, or all
        GPUs if fewer, share the network.
        """
        link = 1e9 * self.gpu.link_gb_per_second
        if self.holds(size, stride):
            return link
        return min(link, self.network / min(stride, self.gpus_per_node))
