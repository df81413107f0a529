"""Steps whose loss jumps: what the last steps say of the next one's loss, and samples that are left out
because they led to a jump.

Source of the rule: `SkipStepOptimizer` of OLMo-core, which watches the gradient norm in the same way too.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from megatron_yuyuan.data.loader import Dataset

WINDOW = 128
"""Losses that are remembered, those of steps that were passed over included: a lasting change of
level is accepted after a while."""
SIGMAS = 6.0
SPIKE = "loss spike"
"""Why a step was passed over."""

Ranges = list[list[int]]
"""[first, last] sample numbers, both included; in order, and none overlaps another."""


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """True for a loss above mean + 6 standard deviations of the recent ones; never before half a
    window of them is known."""
    if len(recent) < WINDOW // 2:
        return False
    mean = statistics.fmean(recent)
    variance = math.fsum((past - mean) ** 2 for past in recent) / (len(recent) - 1)
    return loss > mean + SIGMAS * math.sqrt(variance)


def number_of(position: int, left_out: Ranges) -> int:
    """The number, in the data set, of the sample at a position of the run: positions count what is read."""
    for first, last in left_out:
        if position >= first:
            position += last - first + 1
    return position


def left_out_too(left_out: Ranges, first: int, last: int) -> Ranges:
    """The ranges with one more, which may touch or overlap others."""
    found: Ranges = []
    for start, end in sorted([*left_out, [first, last]]):
        if found and start <= found[-1][1] + 1:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return found


def same_until(number: int, one: Ranges, other: Ranges) -> bool:
    """Whether the same samples are left out before sample `number`."""
    cut = [[[a, min(b, number - 1)] for a, b in ranges if a < number] for ranges in (one, other)]
    return cut[0] == cut[1]


class Remaining:
    """A data set without some ranges of samples; what follows them moves up."""

    def __init__(self, dataset: Dataset, left_out: Ranges):
        self.dataset, self.left_out = dataset, left_out

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        return self.dataset[number_of(position, self.left_out)]
