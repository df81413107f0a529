"""Several pairs in one sample: less padding, and nothing else changes.

Each pair attends to itself alone and counts its positions from 0, as if it had the sample for itself
(`loader.Borders`): what is learned from it is the same. Source: Krell et al. 2021, arXiv:2107.02027.
"""

from bisect import bisect_left, insort

import numpy as np

from megatron_yuyuan.data.permutation import epoch_key, permuted
from megatron_yuyuan.data.qa_dataset import Pairs, QADataset


class PackedQADataset(QADataset):
    """Sample i is one or more pairs of a shard, as many as have room.

    Which lengths stand together is decided once, by `best_fit_decreasing`; it is a function of the
    lengths alone, so every epoch has the same number of samples. Which of the pairs of a length stands
    where, and in which order the samples come, is the epoch's, by its key: sample i is found in O(1),
    and every pair is read once in an epoch. Without a seed both are as the lengths have them.
    """

    def __init__(
        self,
        shard: Pairs,
        seq_length: int,
        eod: int,
        seed: int | None,
        loss_on_prompt: bool = False,
    ):
        super().__init__(shard, seq_length, eod, seed, loss_on_prompt)
        self._longest_first = np.argsort(-self.lengths, kind="stable")
        lengths = self.lengths[self._longest_first]
        _, first, own, counts = np.unique(
            -lengths, return_index=True, return_inverse=True, return_counts=True
        )
        self._first, self._count = first[own], counts[own]
        """(pairs,): where the pairs of this place's length begin among the places, and their number."""
        self._samples = best_fit_decreasing(lengths.tolist(), seq_length + 1)

    def __len__(self) -> int:
        return len(self._samples)

    def pairs(self, number: int) -> list[int]:
        """The pairs of sample `number`, counted from the beginning of the run."""
        epoch, sample = divmod(number, len(self))
        if self.seed is None:
            return [int(self._longest_first[place]) for place in self._samples[sample]]
        key = epoch_key(self.seed, epoch)
        places = self._samples[permuted(sample, len(self), key)]
        return [int(self._longest_first[self._exchanged(place, key)]) for place in places]

    def _exchanged(self, place: int, key: int) -> int:
        """Another place of the same length: a bijection, one for each epoch."""
        first, count = int(self._first[place]), int(self._count[place])
        return first + permuted(place - first, count, key)

    def describe(self) -> str:
        """As of unpacked pairs, and how full the samples are."""
        full = self.lengths.sum() / (len(self) * (self.seq_length + 1))
        return f"{super().describe()}; packed into {len(self):,} samples, {full:.1%} full"


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Places 0, 1, ... of `lengths`, which descend from `capacity` at most, in samples of `capacity`
    tokens at most: each goes where it leaves least room, or begins a new sample.

    At most 11/9 of the fewest samples possible, and 4 more. O(n log capacity). Source: Johnson et al.
    1974, Worst-case performance bounds for simple one-dimensional packing algorithms.
    """
    samples: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> samples that have them
    rooms: list[int] = []  # the keys of by_room, ascending
    for place, length in enumerate(lengths):
        found = bisect_left(rooms, length)
        if found == len(rooms):
            sample, room = len(samples), capacity
            samples.append([])
        else:
            room = rooms[found]
            sample = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[found]
        samples[sample].append(place)
        left = room - length
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(sample)
    return samples
