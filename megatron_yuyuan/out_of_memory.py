"""What is said of a rank whose memory does not suffice: what it holds, and flags that need less."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ShortOfMemoryError
from megatron_yuyuan.parallel.mesh import Mesh, rank, world_size
from megatron_yuyuan.planner.fitting import fitting
from megatron_yuyuan.planner.memory import predict_memory

GIB = 2**30
ON_CPU = "DefaultCPUAllocator: "
"""What torch says where the system refuses memory; its error is a plain RuntimeError."""
ON_GPU = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What CUDA, NCCL and cuBLAS say, of which each has an error of its own."""
LESS = 0.9
"""A flag is worth trying if what is held shrinks to this share."""


@contextmanager
def memory_explained(config: Config, mesh: Mesh) -> Iterator[None]:
    """Raises ShortOfMemoryError in place of torch's own error. The configuration is resolved."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        _, on_cpu, said = str(error).partition(ON_CPU)
        if not on_cpu:
            said = next(
                (line for line in str(error).splitlines() if any(map(line.count, ON_GPU))), ""
            )
        if not said:
            raise
        raise _explained(said, config, mesh) from error


def _explained(said: str, config: Config, mesh: Mesh) -> ShortOfMemoryError:
    """said: by torch: how much was asked for, and on CUDA what was held."""
    held = predict_memory(config, world_size(), mesh.rank("pipeline"))
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in vars(held).items() if size)
    said = said.partition("See documentation")[0].strip().rstrip(".")
    remedies = fitting(config, world_size(), LESS * held.total)[:3]
    return ShortOfMemoryError(
        f"rank {rank()} ({platform.node()}) ran out of memory: {said}",
        f"at the peak of a step its tensors take {held.total / GIB:.2f} GiB by prediction ({parts})",
        ", or ".join(remedies) or "more ranks, or a smaller model",
    )
