"""What a rank has to compute with: torch, its device, the backend, compilers, kernels, apex."""

import importlib.util
import platform

import torch
import torch.distributed as dist

from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.doctor.findings import OK, WARNING, Finding, attempt
from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import apex, compilers
from megatron_yuyuan.kernels.choice import choose
from megatron_yuyuan.parallel.mesh import choose_device

IN_USE = 0.05
"""Share of a GPU's memory that may be taken before a warning: a driver's own contexts."""


def examine_machine(parallel: ParallelConfig) -> list[Finding]:
    """Every rank's own findings; the same on a good cluster. Kernels that are asked for are built."""
    found = [torch_finding(), *attempt("device", lambda: device_finding(parallel))]
    if found[-1].level not in (OK, WARNING):
        return found
    device = choose_device(parallel)
    found += [backend_finding(device), compiler_finding(device)]
    found += attempt("kernels", lambda: kernels_finding(parallel.kernels, device))
    return [*found, apex_finding()]


def torch_finding() -> Finding:
    """Versions."""
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    said = f"{torch.__version__}, built {built}; Python {platform.python_version()}"
    return Finding("torch", OK, said)


def device_finding(parallel: ParallelConfig) -> Finding:
    """Where the model of this rank would live. Raises ConfigError."""
    device = choose_device(parallel)
    if device.type != "cuda":
        why = "as --device says" if torch.cuda.is_available() else "torch sees no CUDA device"
        said = f"the CPU, threads a rank: {torch.get_num_threads()}; {why}"
        return Finding("device", OK, said)
    free, total = torch.cuda.mem_get_info(device)
    about = torch.cuda.get_device_properties(device)
    said = f"{about.name}, {total / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
    if free < (1 - IN_USE) * total:
        taken = f"{said}; {(total - free) / 2**30:.1f} GiB of {device} are taken"
        return Finding("device", WARNING, taken, "another process is on it", "nvidia-smi names it")
    return Finding("device", OK, said)


def backend_finding(device: torch.device) -> Finding:
    """Who would carry the collectives."""
    if device.type == "cuda":
        version = ".".join(map(str, torch.cuda.nccl.version()))
        return Finding("backend", OK, f"NCCL {version}")
    return Finding("backend", OK, f"gloo; NCCL {'too' if dist.is_nccl_available() else 'absent'}")


def compiler_finding(device: torch.device) -> Finding:
    """What the CUDA kernels are compiled with."""
    found, missing = [], []
    for name in ("nvcc", "g++"):
        try:
            lines = compilers.run([compilers.find(name), "--version"]).splitlines()
            version = next((line for line in lines if "release" in line), lines[0])
            found.append(f"{name}: {version.strip()}")
        except KernelsError:
            missing.append(name)
    said = "; ".join(found + [f"no {name}" for name in missing])
    if missing and device.type == "cuda":
        why = "kernels that no host has built cannot be built here"
        return Finding("compilers", WARNING, said, why, f"{' and '.join(missing)} on PATH")
    return Finding(
        "compilers", OK, f"{said}{'' if device.type == 'cuda' else '; the CPU needs none'}"
    )


def kernels_finding(name: str, device: torch.device) -> Finding:
    """Which kernels --kernels gives. Raises KernelsError."""
    _, chosen = choose(name, device)
    if name == "auto" and device.type == "cuda" and chosen != "cuda":
        remedy = "what it names; or --kernels reference, which is slower and says the same"
        return Finding("kernels", WARNING, chosen, "the fused kernels would not be used", remedy)
    return Finding("kernels", OK, f"{chosen} (--kernels {name})")


def apex_finding() -> Finding:
    """Whether there is an apex, and whose it is. Nothing but --kernels apex needs one."""
    if importlib.util.find_spec("apex") is None:
        return Finding("apex", OK, "not installed; only --kernels apex needs it")
    try:
        apex.require()
    except KernelsError as error:
        what = error.what.removeprefix("kernels=apex, but ")
        return Finding("apex", WARNING, what, error.why, error.remedy)
    return Finding("apex", OK, "NVIDIA's, with its CUDA extensions")
