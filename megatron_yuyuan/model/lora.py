"""LoRA: a frozen matrix W (C_out, C_in) and, beside it, a learned product of two thin ones.

    y = x W^T + b + s (x A^T) B^T        s = lora_alpha / lora_rank
    A (r, C_in)  `lora_A`                B (C_out, r)  `lora_B`, 0 at the beginning

which is y = x W'^T + b of the merged W' = W + s B A. Source: Hu et al. 2021, arXiv:2106.09685, section
4.1; the names are Hugging Face PEFT's. (In a shape, as in (B, T, C), B is the number of samples as ever.)
This file knows undivided factors; the layers that hold parts of them are in `parallel/lora.py`.
"""

import torch
from torch import Tensor

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.kernels.philox import name_key, normal

LORA_A, LORA_B = "lora_A", "lora_B"


def is_factor(name: str) -> bool:
    """Whether a parameter's name is that of one of the two."""
    return name.endswith((LORA_A, LORA_B))


def factor_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name -> shape of every factor of the whole model."""
    c, f, rank = config.hidden_size, config.mlp_size, config.lora_rank
    sizes = {  # (C_out, C_in)
        "attn.c_attn": (3 * c, c),
        "attn.c_proj": (c, c),
        "mlp.c_fc": (f, c),
        "mlp.c_proj": (c, f),
    }
    shapes = {}
    for layer in range(config.num_layers if rank else 0):
        for module in config.lora_target_modules:
            c_out, c_in = sizes[module]
            shapes[f"h.{layer}.{module}.{LORA_A}"] = (rank, c_in)
            shapes[f"h.{layer}.{module}.{LORA_B}"] = (c_out, rank)
    return shapes


def initial_factor(
    name: str, shape: tuple[int, ...], rows: range, config: ModelConfig, seed: int, device
) -> Tensor:
    """Rows [rows.start, rows.stop) of a factor's initial value: of A normal, std = 1 / sqrt(C_in), so
    that x A^T varies as x does; of B 0. A function of (seed, name, element), as `initial_values`."""
    width = shape[1]
    if name.endswith(LORA_B):
        return torch.zeros(len(rows), width, device=device)
    values = normal(rows.start * width, rows.stop * width, name_key(seed, name), device)
    return values.view(len(rows), width).mul_(width**-0.5)


@torch.no_grad()
def merge_factors(
    weights: dict[str, Tensor], factors: dict[str, Tensor], config: ModelConfig
) -> None:
    """W += s B A in place, for every pair of factors whose matrix is among the weights (of
    GPT2.state_dict(), or some of them)."""
    for name, b in factors.items():
        module, _, kind = name.rpartition(".")
        weight = weights.get(f"{module}.weight")
        if kind == LORA_B and weight is not None:
            weight.addmm_(b, factors[f"{module}.{LORA_A}"], alpha=config.lora_scale)
