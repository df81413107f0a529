"""The definition of every kernel, in plain PyTorch. A fused kernel is right when it agrees with
these."""

import torch.nn.functional as F
from torch import Tensor

from megatron_yuyuan.kernels.philox import random_words


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """y = (x - mean) / sqrt(var + epsilon) * weight + bias over the last dim. x, return (B, T, C);
    weight, bias (C,).

    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's `gelu_new`: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Source:
    arXiv:1606.08415."""
    return F.gelu(x, approximate="tanh")


def dropout(x: Tensor, p: float, rows: Tensor, key: int, step: int, site: int) -> Tensor:
    """Zero elements of x with probability p and scale the others by 1 / (1 - p).

        x     (..., C)
        rows  (...)  int64, the global number of each row (`philox.random_words`)

    The mask is a function of (key, step, site, row, column): no layout, micro batch or
    recomputation changes it.
    """
    keep = random_words(rows, x.shape[-1], key, step, site) >= int(p * 2**32)
    return x * keep / (1.0 - p)
