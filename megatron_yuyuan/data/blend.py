"""Several data sets as one: in a keyed order, in exact proportions, without a list."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from megatron_yuyuan.data.permutation import epoch_key, mix, permuted
from megatron_yuyuan.errors import ConfigError

BLOCK = 10_000
"""Samples in which a weighted blend has its proportions exactly."""


class BlendedDataset:
    """Sample i is a sample of one of `datasets`, found in O(1); no index files, no state.

    The samples come in blocks. A block holds `counts[k]` samples of data set k, in the order that
    (seed, number of the block) names, and the next block goes on in each data set where this one
    ended. So every block has the proportions exactly, and no sample is read twice before all of
    its data set were read.

    weights  one for each data set; None: as many as each has, so that one block is all of them
    seed     None, as for validation: the one order that is the same for every run

    A block is smaller where a data set has fewer samples than its share of 10,000; then the shares are
    rounded to whole samples of that block.

    An epoch ends before any data set would begin anew, at the end of a block: without weights it is
    every sample once. Raises ConfigError: a weight that gives no sample of a block.
    """

    def __init__(self, datasets: Sequence, weights: Sequence[float] | None, seed: int | None):
        self.datasets, self.key = list(datasets), mix(seed or 0)
        sizes = [len(dataset) for dataset in datasets]
        self.counts = sizes if weights is None else block_counts(weights, sizes, seed is None)
        self._ends = list(itertools.accumulate(self.counts))
        self.block = self._ends[-1]
        self._blocks = min(size // count for size, count in zip(sizes, self.counts, strict=True))

    def __len__(self) -> int:
        return self._blocks * self.block

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens, labels (T,) int64 of sample `number`, counted from the beginning of the run."""
        k, own = self.source(number)
        return self.datasets[k][own]

    def source(self, number: int) -> tuple[int, int]:
        """(data set, its own sample number) of sample `number`."""
        block, place = divmod(number, self.block)
        place = permuted(place, self.block, epoch_key(self.key, block))
        k = bisect_right(self._ends, place)
        return k, block * self.counts[k] + place - (self._ends[k] - self.counts[k])


def blend(datasets: Sequence, weights: Sequence[float] | None, seed: int | None):
    """One data set of several, of which those that are None are left out; None of none."""
    if weights is not None:
        weights = [weight for weight, d in zip(weights, datasets, strict=True) if d is not None]
    found = [dataset for dataset in datasets if dataset is not None]
    if len(found) > 1:
        return BlendedDataset(found, weights, seed)
    return found[0] if found else None


def block_counts(
    weights: Sequence[float], sizes: Sequence[int], validates: bool = False
) -> list[int]:
    """Samples of each data set in one block, by the largest remainder.

    A block is no larger than what can be read in these proportions before a data set of `sizes`
    begins anew. validates: samples may be so few that a share gives none; then each data set gives one.
    Raises ConfigError: a count of 0.
    """
    shares = [weight / sum(weights) for weight in weights]
    readable = min(size / share for size, share in zip(sizes, shares, strict=True))
    block = max(1, min(BLOCK, math.floor(readable)))
    exact = [share * block for share in shares]
    counts = [math.floor(count) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: block - sum(counts)]:
        counts[k] += 1
    if 0 in counts and validates:
        return [max(1, count) for count in counts]
    if 0 in counts:
        weight = weights[counts.index(0)]
        raise ConfigError(
            f"the weight {weight} of {sum(weights)} gives none of the {block} samples of a block",
            "that shard would never be read",
            "a larger weight, or leave it out",
        )
    return counts


def parse_blend(words: Sequence[str], flag: str) -> tuple[list[str], list[float] | None]:
    """Prefixes and weights of `0.7 A 0.3 B`, or prefixes and None of `A B`. Raises ConfigError."""
    numbers = [_number(word) for word in words]
    if all(number is None for number in numbers):
        return list(words), None
    weights, prefixes = [n for n in numbers[0::2] if n is not None], words[1::2]
    if 2 * len(weights) != len(words) or any(n is not None for n in numbers[1::2]):
        raise ConfigError(
            f"{flag} {' '.join(words)}: weights and prefixes do not alternate",
            "every shard has its weight, or none has one",
            f"{flag} 0.7 A 0.3 B, or {flag} A B",
        )
    if any(not 0 < weight < math.inf for weight in weights):
        raise ConfigError(
            f"{flag} {' '.join(words)}: a weight that is not above zero",
            "a weight is a share of the samples",
            f"{flag} 0.7 A 0.3 B; leave out what is not to be read",
        )
    return list(prefixes), weights


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
