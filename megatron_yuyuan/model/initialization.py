"""The values a model starts from: a function of the seed and a parameter's name, whatever the layout."""

import math

import torch
from torch import Tensor

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.kernels.philox import name_key, normal
from megatron_yuyuan.model.gpt2 import GPT2


def initial_values(
    name: str, shape: tuple[int, ...], rows: range, config: ModelConfig, seed: int, device
) -> Tensor:
    """Rows [rows.start, rows.stop) of a parameter's initial value.

    | parameter                     | value                                                                |
    |-------------------------------|----------------------------------------------------------------------|
    | biases                        | 0                                                                    |
    | LayerNorm weights             | 1                                                                    |
    | c_proj weights (2 per layer)  | normal, std = init_method_std / sqrt(2 * num_layers)                 |
    | every other matrix            | normal, std = init_method_std                                        |

    A function of (seed, name, element), so that every layout starts from the same model. Source of
    the depth scaling: Radford et al. 2019, section 2.3.
    """
    if len(shape) == 1:
        return torch.full((len(rows),), float(name.endswith("weight")), device=device)
    std = config.init_method_std
    if name.endswith("c_proj.weight"):
        std /= math.sqrt(2 * config.num_layers)
    width = math.prod(shape[1:])
    values = normal(rows.start * width, rows.stop * width, name_key(seed, name), device)
    return values.view(len(rows), *shape[1:]).mul_(std)


@torch.no_grad()
def init_weights(model: GPT2, seed: int) -> None:
    """Fill an undivided model with its initial values."""
    for name, parameter in model.named_parameters():
        rows = range(parameter.shape[0])
        parameter.copy_(
            initial_values(name, tuple(parameter.shape), rows, model.config, seed, parameter.device)
        )
