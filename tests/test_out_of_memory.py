"""Whoever runs out of memory, CUDA, NCCL, cuBLAS or the system, the error says what a rank holds."""

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, build_trainer

from megatron_yuyuan.errors import ShortOfMemoryError
from megatron_yuyuan.out_of_memory import memory_explained

SAID = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB"),
    (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    (RuntimeError, "CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (dist.DistBackendError, "NCCL error in: x.cpp\nCuda failure 2 'out of memory'\n"),
]


def explained(kind: type, said: str) -> tuple[str, str]:
    """What becomes of an error of the steps."""
    mesh = build_trainer(TINY).mesh
    try:
        with memory_explained(TINY, mesh):
            raise kind(said)
    except ShortOfMemoryError as error:
        return error.what, error.why


@pytest.mark.parametrize(("kind", "said"), SAID, ids=[said[:20] for _, said in SAID])
def test_every_kind_is_explained(ranks, kind, said):
    what, why = ranks.run(1, explained, kind, said)
    assert " ran out of memory: " in what and "\n" not in what
    assert "at the peak of a step its tensors take" in why


def other(mesh) -> None:
    with memory_explained(TINY, mesh):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        other(None)
