"""Which elements a dropout keeps: a function of numbers, never a stored state."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuyuan.kernels.philox import random_words


@dataclass(frozen=True)
class DropoutMask:
    """The mask of one dropout of a matrix (..., C) whose rows are numbered globally.

    A function of (key, step, site, row, column): no layout, micro batch or recomputation changes it,
    and whoever needs it again draws it again.
    """

    p: float
    """Probability that an element becomes zero."""
    rows: Tensor
    """(...) int64: the number of each row in the whole batch, whichever rank holds it."""
    key: int
    """The seed, 64 bits."""
    step: int
    """The optimizer step."""
    site: int
    """The place in the model."""

    @property
    def threshold(self) -> int:
        """Elements are kept whose random word is at least this."""
        return int(self.p * 2**32)

    @property
    def scale(self) -> float:
        """What the kept elements are multiplied by."""
        return 1.0 / (1.0 - self.p)

    def kept(self, columns: int) -> Tensor:
        """(..., C) bool."""
        return random_words(self.rows, columns, self.key, self.step, self.site) >= self.threshold

    def apply(self, x: Tensor) -> Tensor:
        """x (..., C), its elements zeroed or scaled."""
        return torch.where(self.kept(x.shape[-1]), x * self.scale, 0.0)
