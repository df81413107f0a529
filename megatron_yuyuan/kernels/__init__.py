"""The seam between the model and its kernels: one signature, several bodies, an explicit choice.

Today there is one body, the PyTorch reference that defines each result.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from megatron_yuyuan.kernels import reference


@dataclass(frozen=True)
class Kernels:
    """What the model asks for; shapes and algebra stand in `reference`."""

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = reference.layer_norm
    gelu: Callable[[Tensor], Tensor] = reference.gelu
    dropout: Callable[[Tensor, float, Tensor, int, int, int], Tensor] = reference.dropout
