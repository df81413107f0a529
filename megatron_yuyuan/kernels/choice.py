"""Which kernels a run computes with: --kernels, once, for the device of the model."""

import dataclasses

import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels, apex, build, fused
from megatron_yuyuan.kernels.compilers import CUDA


def choose(name: str, device: torch.device) -> tuple[Kernels, str]:
    """The kernels of that name, and what to say of them: `cuda`, `reference, on cpu`.

    | name      | kernels                                                                                  |
    |-----------|------------------------------------------------------------------------------------------|
    | auto      | cuda on a CUDA device if they can be built there, else reference                         |
    | cuda      | csrc/*.cu, built at first use                                                            |
    | compile   | the reference through torch.compile                                                      |
    | reference | plain PyTorch, which defines the result                                                  |
    | apex      | NVIDIA apex's LayerNorm and Adam, the rest as reference                                  |

    Raises KernelsError for what is asked for by name and cannot be had; auto says why instead.
    """
    if name == "auto":
        return automatic(device)
    if name == "reference":
        return Kernels(), name
    return {"cuda": of_cuda, "compile": compiled, "apex": of_apex}[name](device), name


def automatic(device: torch.device) -> tuple[Kernels, str]:
    """What suits the device, and why."""
    if device.type != "cuda":
        return Kernels(), f"reference, on {device.type}"
    try:
        return of_cuda(device), "cuda"
    except KernelsError as error:
        return Kernels(), f"reference, because {error.what}: {' '.join(error.why.split())}"


def of_cuda(device: torch.device) -> Kernels:
    """This package's CUDA kernels, built if need be and tried once: a GPU may be older than they are, or
    its driver older than nvcc. Raises KernelsError."""
    require_cuda("cuda", device)
    build.load(CUDA)
    row = torch.zeros(1, 8, device=device)
    try:
        fused.layer_norm(row, row[0], row[0], 1.0)
    except RuntimeError as error:
        what = f"the kernels are built and do not run on {torch.cuda.get_device_name(device)}"
        remedy = "a GPU of compute capability 8.0 or later with a driver for this nvcc, or --kernels auto"
        raise KernelsError(what, str(error).splitlines()[0], remedy) from error
    return fused.KERNELS


def compiled(_: torch.device) -> Kernels:
    """Each function of the reference by itself, compiled at its first call. The optimizer is torch's
    fused one as it is."""
    plain, names = Kernels(), {field.name for field in dataclasses.fields(Kernels)} - {"adamw"}
    functions: dict = {name: torch.compile(getattr(plain, name)) for name in names}
    return Kernels(**functions)


def of_apex(device: torch.device) -> Kernels:
    """NVIDIA apex's. Raises KernelsError."""
    kernels = apex.kernels()
    require_cuda("apex", device)
    return kernels


def require_cuda(name: str, device: torch.device) -> None:
    """Refuse CUDA kernels for a model that lives elsewhere."""
    if device.type != "cuda":
        raise KernelsError(
            f"kernels={name}, but the model lives on {device.type}",
            "they are CUDA's",
            "--device cuda, or --kernels auto",
        )
