"""NVIDIA apex behind the seam: its LayerNorm and its Adam, for comparison.

apex is built from its source, https://github.com/NVIDIA/apex. The package of that name on PyPI is
another project; it is recognised by what it lacks, and refused.
"""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels, reference
from megatron_yuyuan.kernels.adamw import AdamW, local, local_gradient
from megatron_yuyuan.kernels.fused_adamw import FusedAdamW
from megatron_yuyuan.kernels.mask import DropoutMask

BUILD = "tools/install_apex.sh, which builds one commit of it for the torch that is installed"
EXTENSIONS = ("fused_layer_norm_cuda", "amp_C")
"""Modules of apex's CUDA build beside its Python package."""


def require() -> None:
    """Refuse to go on without the real apex, CUDA extensions included. Raises KernelsError."""
    found = importlib.util.find_spec("apex")  # imports nothing: the other project's needs Pyramid
    if found is None:
        raise KernelsError(
            "kernels=apex, but there is no apex", "it is built from its source", BUILD
        )
    folders = found.submodule_search_locations or ()
    if not any((Path(folder) / "normalization").is_dir() for folder in folders):
        raise KernelsError(
            "kernels=apex, but the apex that is installed is not NVIDIA's",
            "PyPI has another project of that name, without apex.normalization",
            f"pip uninstall apex, then {BUILD}",
        )
    absent = [name for name in EXTENSIONS if importlib.util.find_spec(name) is None]
    if absent:
        raise KernelsError(
            f"kernels=apex, but apex has no {' and no '.join(absent)}",
            "it was built without its CUDA extensions, in which its kernels are",
            BUILD,
        )


def kernels() -> Kernels:
    """apex's LayerNorm and Adam, the reference elsewhere. Raises KernelsError."""
    require()
    return Kernels(
        layer_norm=layer_norm,
        norm_beside=norm_beside,
        bias_dropout_add_norm=bias_dropout_add_norm,
        adamw=ApexAdamW,
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`reference.layer_norm` by apex.normalization."""
    normalization = importlib.import_module("apex.normalization.fused_layer_norm")
    return normalization.fused_layer_norm_affine(x, weight, bias, tuple(weight.shape), epsilon)


def norm_beside(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`reference.norm_beside`; the gradients are added by a pass of their own."""
    return x, layer_norm(x, weight, bias, epsilon)


def bias_dropout_add_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    mask: DropoutMask | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """`reference.bias_dropout_add_norm` with apex's norm."""
    total = reference.bias_dropout_add(x, bias, residual, mask)
    return norm_beside(total, weight, norm_bias, epsilon)


class ApexAdamW(FusedAdamW):
    """apex's FusedAdam over the local shards; state and checkpoints as ever."""

    squared_norm = AdamW.squared_norm

    @torch.no_grad()
    def update(self, coefficient: float) -> None:
        """Take a step with every gradient multiplied by `coefficient`."""
        for group in self.param_groups:
            held = [p for p in group["params"] if local(p).numel()]  # apex takes no empty shard
            states = [self.moments(parameter) for parameter in group["params"]]
            tensors = {
                "gradients": [local_gradient(parameter) for parameter in held],
                "parameters": [local(parameter) for parameter in held],
                **{
                    name: [local(self.moments(p)[name]) for p in held]
                    for name in ("exp_avg", "exp_avg_sq")
                },
            }
            torch._foreach_mul_(tensors["gradients"], coefficient)
            torch._foreach_add_([state["step"] for state in states], 1)
            _multi_tensor_adam(list(tensors.values()), group, int(states[0]["step"]))


def _multi_tensor_adam(tensors: list[list[Tensor]], group: dict, step: int) -> None:
    """apex's launch over lists of gradients, parameters and moments, decay decoupled, as its FusedAdam
    calls it."""
    apply = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
    launcher = importlib.import_module("amp_C").multi_tensor_adam
    overflow = torch.zeros(1, dtype=torch.int32, device=tensors[0][0].device)
    settings = (group["lr"], *group["betas"], group["eps"], step)
    decoupled = corrected = 1
    apply(launcher, overflow, tensors, *settings, decoupled, corrected, group["weight_decay"])
