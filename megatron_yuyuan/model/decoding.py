"""What a model wants for one token after another: the keys and values of those before, and matrices that
lie in memory as one token reads them. Letters as in gpt2.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_TEXTS = 12
"""Below so many texts `next_logits` takes the product as it is written."""
LARGE = 1 << 22
"""And of a matrix of fewer elements."""


class KeyValueCache:
    """Keys and values, (B, N, T, D) each, of the tokens seen so far, for every layer that asks.

    `length` tokens are in it, of at most `capacity`; a forward pass over T more appends them, then
    the caller calls `advance(T)`.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._store: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append this layer's new keys and values; return all of them so far."""
        if layer not in self._store:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self._store[layer] = k.new_empty(shape), v.new_empty(shape)
        stop = self.length + k.shape[2]
        for kept, new in zip(self._store[layer], (k, v), strict=True):
            kept[:, :, self.length : stop] = new
        keys, values = self._store[layer]
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def keep(self, samples: list[int]) -> None:
        """Go on with these samples alone."""
        self._store = {layer: (k[samples], v[samples]) for layer, (k, v) in self._store.items()}


@torch.no_grad()
def store_by_columns(model: nn.Module) -> None:
    """Lay the matrices of a model on the CPU out in memory by columns; shapes and values stay.

    y = x W^T of one token reads all of W (C_out, C_in) and computes little. By rows that is C_out dot
    products, by columns C_in additions to y, which stream from memory faster; except where y is the
    shorter one (`mlp.c_proj`), which stays as it is.
    """
    for weight in model.parameters():
        if weight.dim() == 2 and weight.shape[0] >= weight.shape[1]:
            weight.data = weight.data.t().contiguous().t()


def next_logits(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, of one token of each text.

        x       (B, 1, C)
        weight  (V, C)      by columns, as `store_by_columns` lays it out
        return  (B, 1, V)

    Of 12 texts or more and a large vocabulary W x^T is a third faster on a CPU where their number is a
    multiple of 8 and at least 16, and slower where it is not: so they are filled up with zeros.
    """
    texts = x.shape[0]
    few = texts < FEW_TEXTS or weight.numel() < LARGE
    if x.device.type != "cpu" or few or x.shape[1] > 1 or weight.stride(0) != 1:
        return F.linear(x, weight)
    filled = F.pad(x[:, 0], (0, 0, 0, max(-texts % 8, 16 - texts)))
    return (weight @ filled.t()).t()[:texts, None]
